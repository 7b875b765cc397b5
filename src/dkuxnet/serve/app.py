"""The addresses of the server. Each handler reads the request, makes one call and answers."""

import logging
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from dkuxnet.core.errors import NO_ROOM, UserError
from dkuxnet.serve import monai_label, monai_store
from dkuxnet.serve.guard import Guard
from dkuxnet.serve.label_folder import Drawing, LabelFolder, Question, scan_checksum
from dkuxnet.serve.limits import Limits, Refused, no_room
from dkuxnet.serve.model import Model
from dkuxnet.serve.names import (
    ACCEPTED,
    label_ending,
    label_name,
    scan_suffix,
    shown,
    signature,
    without_folders,
)
from dkuxnet.serve.reading import Reader, ReadScan
from dkuxnet.serve.segmenting import Work
from dkuxnet.serve.tasks import Task, TaskQueue
from dkuxnet.serve.uploads import Uploads, receive_body
from dkuxnet.serve.view import LABEL, VIEWS, view_path

log = logging.getLogger("dkuxnet.serve")
STATIC = Path(str(resources.files("dkuxnet.serve"))) / "static"
NIIVUE = Path(str(resources.files("dkuxnet.report"))) / "vendor" / "niivue.umd.js"
TASK = "/jobs/{token}"
CHECKSUM_LENGTH = 64


def create_app(
    model: Model,
    folder: Path,
    bound: str,
    limits: Limits,
    keep: Path | None = None,
    labels: LabelFolder | None = None,
) -> FastAPI:
    """The server of one model.

    folder: private, for scans and results. bound: the address that it listens on. keep: see `Work`.
    labels: the label folder, if any.
    """
    # FastAPI's own pages load scripts from elsewhere.
    app = FastAPI(title="dkuxnet", docs_url=None, redoc_url=None, openapi_url=None)
    reader = app.state.reader = Reader(limits, model.segmenter.channels, folder / "reading")

    def drawn(task: Task) -> ReadScan:
        names = model.segmenter.labels
        if task.case is None or task.case.label is None:
            raise UserError("this scan has no label")
        return reader.label(task.case, task.case.label, names, None, task.folder, task.unwanted)

    work = Work(model.segmenter, reader, limits.voxels, keep, drawn)
    queue = app.state.queue = TaskQueue(folder, limits, work)
    _add_page(app, model, limits, keep, labels)
    _add_tasks(app, queue, limits)
    if labels:
        _add_labels(app, queue, labels, limits)
    app.include_router(monai_label.router(model, queue, folder, limits, labels))
    app.include_router(monai_store.router(labels, limits))
    _add_error_handlers(app)
    app.add_middleware(Guard, bound=bound, limits=limits)
    return app


def _add_page(
    app: FastAPI, model: Model, limits: Limits, keep: Path | None, labels: LabelFolder | None
) -> None:
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
            "label_folder": labels and labels.folder.resolve().name,
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
        path = view_path(task.folder, name)
        if name not in (*VIEWS, LABEL) or not path.exists():
            raise Refused(404, "There is no such view.")
        return FileResponse(path, media_type="application/octet-stream")


def _add_labels(app: FastAPI, queue: TaskQueue, labels: LabelFolder, limits: Limits) -> None:
    uploads = Uploads(labels.private, limits)

    @app.get("/scans")
    def scans() -> dict[str, Any]:
        return {"scans": labels.listed()}

    @app.post("/scans/open", status_code=201)
    def open_scan(name: str) -> dict[str, Any]:
        """Segment a scan of the label folder, to draw on the result."""
        case = labels.case(name)
        opened = {"loaded": scan_checksum(case), "label": labels.state(case)}
        with queue.receiving(case.name, ".nii.gz", ".nii.gz", case=case) as task:
            pass
        return status(queue, task) | opened

    @app.put("/scans/label")
    async def save(
        request: Request,
        name: str,
        loaded: str,
        start: Literal["model", "label", "empty"],
        replace: str = "",
        who: str = "",
    ) -> dict[str, Any]:
        """The body is a NIfTI in gzip of class indices, 0 being the background."""
        if len(loaded) != CHECKSUM_LENGTH:
            raise Refused(400, "Expected the checksum of the scan that was loaded.")
        async with uploads.place() as place:
            await receive_body(request, file := place / "drawing.nii.gz", limits)
            values = list(labels.labels.values())
            drawing = Drawing(
                file, values, loaded, replace=replace, who=signature(who), start=start
            )
            return await run_in_threadpool(labels.save, name, drawing)


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
        question = {"version": refused.version} if isinstance(refused, Question) else {}
        return JSONResponse({"detail": str(refused)} | question, refused.status)

    @app.exception_handler(UserError)
    def explain_folder(request: Request, error: UserError) -> JSONResponse:
        return refuse(request, Refused(500, f"{without_folders(str(error))}."))

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
