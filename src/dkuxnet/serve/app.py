"""The addresses of the server. Each handler reads the request, makes one call and answers."""

import logging
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from dkuxnet.core.errors import NO_ROOM
from dkuxnet.serve import monai_label
from dkuxnet.serve.guard import Guard
from dkuxnet.serve.limits import Limits, Refused, no_room
from dkuxnet.serve.model import Model
from dkuxnet.serve.names import ACCEPTED, label_ending, label_name, scan_suffix, shown
from dkuxnet.serve.reading import Reader
from dkuxnet.serve.segmenting import Work
from dkuxnet.serve.tasks import Task, TaskQueue
from dkuxnet.serve.uploads import receive_body
from dkuxnet.serve.view import VIEWS, view_path

log = logging.getLogger("dkuxnet.serve")
STATIC = Path(str(resources.files("dkuxnet.serve"))) / "static"
NIIVUE = Path(str(resources.files("dkuxnet.report"))) / "vendor" / "niivue.umd.js"
TASK = "/jobs/{token}"


def create_app(
    model: Model, folder: Path, bound: str, limits: Limits, keep: Path | None = None
) -> FastAPI:
    """The server of one model.

    folder: private, for scans and results. bound: the address that it listens on. keep: see `Work`.
    """
    # FastAPI's own pages load scripts from elsewhere.
    app = FastAPI(title="dkuxnet", docs_url=None, redoc_url=None, openapi_url=None)
    reader = app.state.reader = Reader(limits, model.segmenter.channels, folder / "reading")
    work = Work(model.segmenter, reader, limits.voxels, keep)
    queue = app.state.queue = TaskQueue(folder, limits, work)
    _add_page(app, model, limits, keep)
    _add_tasks(app, queue, limits)
    app.include_router(monai_label.router(model, queue, folder, limits))
    _add_error_handlers(app)
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


def _add_tasks(app: FastAPI, queue: TaskQueue, limits: Limits) -> None:
    def known(token: str) -> Task:
        if task := queue.get(token):
            return task
        raise Refused(404, "This scan is no longer here. Send it again.")

    def finished(token: str) -> Task:
        if (task := known(token)).state == "done":
            return task
        raise Refused(409, "This scan has no result.")

    @app.post("/jobs", status_code=201)
    async def add(request: Request, name: str) -> dict[str, Any]:
        """The body is the file itself."""
        suffix = scan_suffix(name)
        with queue.receiving(name, suffix, label_ending(suffix)) as task:
            await receive_body(request, task.scan, limits)
        return status(queue, task)

    @app.get(TASK)
    def look(token: str) -> dict[str, Any]:
        return status(queue, known(token))

    @app.delete(TASK, status_code=204)
    def remove(token: str) -> None:
        queue.remove(known(token))

    @app.get(TASK + "/label")
    def label(token: str) -> FileResponse:
        task = finished(token)
        return FileResponse(
            task.label,
            media_type="application/octet-stream",
            filename=label_name(task.name, task.ending),
        )

    @app.get(TASK + "/view/{name}.nii.gz")
    def view(token: str, name: str) -> FileResponse:
        task = finished(token)
        if name not in VIEWS:
            raise Refused(404, "There is no such view.")
        return FileResponse(view_path(task.folder, name), media_type="application/octet-stream")


def status(queue: TaskQueue, task: Task) -> dict[str, Any]:
    """A task as the page sees it."""
    return {
        "id": task.id,
        "name": shown(task.name),
        "state": task.state,
        "stage": task.stage,
        "done": task.done,
        "total": task.total,
        "ahead": queue.ahead(task),
        "error": task.error,
        "result": task.result or None,
        "download": label_name(task.name, task.ending),
    }


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    def refuse(request: Request, refused: Refused) -> JSONResponse:
        return JSONResponse({"detail": str(refused)}, refused.status)

    @app.exception_handler(OSError)
    def explain_disk(request: Request, error: OSError) -> JSONResponse:
        log.error("a request failed: %s", error.strerror)
        if error.errno in NO_ROOM:
            return refuse(request, no_room())
        return refuse(request, Refused(500, f"The server failed: {error.strerror or 'its disk'}."))

    @app.exception_handler(ClientDisconnect)
    def end(request: Request, gone: ClientDisconnect) -> Response:
        return Response(status_code=400)

    @app.exception_handler(HTTPException)
    def explain(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)
