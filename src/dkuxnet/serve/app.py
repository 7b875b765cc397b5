"""The server's addresses. Each handler reads the request, makes one call and answers."""

from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from dkuxnet.serve import monai_label
from dkuxnet.serve.guard import Guard
from dkuxnet.serve.jobs import Job, Jobs
from dkuxnet.serve.limits import Limits, Refused
from dkuxnet.serve.model import Model
from dkuxnet.serve.names import ACCEPTED, label_ending, label_name, scan_suffix, shown
from dkuxnet.serve.segmenting import Work
from dkuxnet.serve.uploads import receive_body
from dkuxnet.serve.view import VIEWS, view_path

STATIC = Path(str(resources.files("dkuxnet.serve"))) / "static"
NIIVUE = Path(str(resources.files("dkuxnet.report"))) / "vendor" / "niivue.umd.js"
JOB = "/jobs/{token}"


def create_app(
    model: Model, folder: Path, bound: str, limits: Limits, keep: Path | None = None
) -> FastAPI:
    """The server of one model. folder: private, for what is in work; bound: the address that it
    listens on.
    """
    app = FastAPI(
        title="dkuxnet", docs_url=None, redoc_url=None, openapi_url=None
    )  # their pages load from outside
    jobs = app.state.jobs = Jobs(folder, limits, Work(model.segmenter, limits.voxels, keep))
    _add_page(app, model, limits, keep)
    _add_jobs(app, jobs, limits)
    app.include_router(monai_label.router(model, jobs, folder, limits))
    app.add_exception_handler(
        Refused, lambda _, refused: JSONResponse({"detail": str(refused)}, refused.status)
    )
    app.add_exception_handler(ClientDisconnect, lambda _, gone: Response(status_code=400))
    app.add_exception_handler(HTTPException, _plain_error)
    app.add_middleware(Guard, bound=bound, limits=limits)
    return app


def _add_page(app: FastAPI, model: Model, limits: Limits, keep: Path | None) -> None:
    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/niivue.js")
    def niivue() -> FileResponse:
        return FileResponse(
            NIIVUE, media_type="text/javascript", headers={"Cache-Control": "max-age=3600"}
        )

    @app.get("/about")
    def about() -> dict[str, Any]:
        return {
            "version": version("dkuxnet"),
            "model": model.name,
            "classes": model.classes,
            "channels": model.segmenter.channels,
            "accepted": ACCEPTED,
            "upload_bytes": limits.upload_bytes,
            "kept": keep is not None,
        }

    app.mount("/static", StaticFiles(directory=STATIC))


def _add_jobs(app: FastAPI, jobs: Jobs, limits: Limits) -> None:
    def known(token: str) -> Job:
        if job := jobs.get(token):
            return job
        raise Refused(404, "This scan is not here any more. Send it again.")

    def finished(token: str) -> Job:
        if (job := known(token)).state == "done":
            return job
        raise Refused(409, "This scan has no result.")

    @app.post("/jobs", status_code=201)
    async def add(request: Request, name: str) -> dict[str, Any]:
        """The body is the file itself."""
        suffix = scan_suffix(name)
        with jobs.receiving(name, suffix, label_ending(suffix)) as job:
            await receive_body(request, job.scan, limits)
        return status(jobs, job)

    @app.get(JOB)
    def look(token: str) -> dict[str, Any]:
        return status(jobs, known(token))

    @app.delete(JOB, status_code=204)
    def remove(token: str) -> None:
        jobs.remove(known(token))

    @app.get(JOB + "/label")
    def label(token: str) -> FileResponse:
        job = finished(token)
        return FileResponse(
            job.label,
            media_type="application/octet-stream",
            filename=label_name(job.name, job.ending),
        )

    @app.get(JOB + "/view/{name}.nii.gz")
    def view(token: str, name: str) -> FileResponse:
        job = finished(token)
        if name not in VIEWS:
            raise Refused(404, "There is no such view.")
        return FileResponse(view_path(job.folder, name), media_type="application/octet-stream")


def status(jobs: Jobs, job: Job) -> dict[str, Any]:
    """A job as the page sees it."""
    return {
        "id": job.id,
        "name": shown(job.name),
        "state": job.state,
        "stage": job.stage,
        "done": job.done,
        "total": job.total,
        "ahead": jobs.ahead(job),
        "error": job.error,
        "result": job.result or None,
        "download": label_name(job.name, job.ending),
    }


async def _plain_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)
