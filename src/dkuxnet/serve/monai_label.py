"""The part of MONAI Label's REST protocol with which 3D Slicer's plugin segments a scan.

For the part that saves labels see `monai_store`.

A conversation: GET /info/ (models and labels), PUT /session/ (the scan), GET /session/ID (still
there?), POST /infer/MODEL?session_id=ID (a form with `params`; the answer is a form with `params`
and the file of the label map). The plugin also sends GET /train/, and takes any status except 200
for "no training is running", which is true here. Source: MONAI Label's `monailabel/endpoints` and
its plugin `plugins/slicer`, Apache 2.0.
"""

import asyncio
import json
import os
import secrets
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from dkuxnet.core.documents import parse_json
from dkuxnet.core.types import Case
from dkuxnet.serve import monai_store
from dkuxnet.serve.label_folder import LabelFolder, check_loaded
from dkuxnet.serve.limits import Limits, Refused
from dkuxnet.serve.model import Model
from dkuxnet.serve.names import FILE, label_ending, scan_suffix, shown
from dkuxnet.serve.tasks import Task, TaskQueue
from dkuxnet.serve.uploads import file_of, received_form, store

RESULT_ENDINGS = (".nrrd", ".nii.gz", ".nii", ".mha")
LOOK_SECONDS = 0.1  # between two looks at a task, and at whether its sender is still there


@dataclass(frozen=True)
class Session:
    """A scan that is sent once and may be segmented several times; `scan` is its file."""

    id: str
    name: str
    suffix: str
    folder: Path

    @property
    def scan(self) -> Path:
        return self.folder / f"{FILE}{self.suffix}"

    def described(self) -> dict[str, Any]:
        """What the protocol says of a session."""
        return {"name": shown(self.name), "image": shown(self.name), "meta": {}}


class Sessions:
    """The latest scans: a new one replaces the oldest. Two are received at a time."""

    def __init__(self, folder: Path, limits: Limits):
        self.folder, self.limits = folder, limits
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._receiving = asyncio.Semaphore(2)

    async def add(self, request: Request) -> Session:
        """The scan in the field `files` of a form. Raises Refused."""
        if self._receiving.locked():
            raise self.limits.full()
        async with self._receiving, received_form(request) as form:
            if not (upload := file_of(form, "files")):
                raise Refused(400, "Expected a scan in the field `files` of the form.")
            name = upload.filename or ""
            session = Session(
                token := secrets.token_urlsafe(16), name, scan_suffix(name), self.folder / token
            )
            session.folder.mkdir(mode=0o700)
            try:
                await store(upload, session.scan, self.limits)
            except BaseException:
                shutil.rmtree(session.folder, ignore_errors=True)
                raise
        self._sessions[session.id] = session
        while len(self._sessions) > self.limits.kept:
            self.remove(next(iter(self._sessions)))
        return session

    def get(self, token: str) -> Session:
        """The session of this id. Raises Refused where there is none."""
        if token not in self._sessions:
            raise Refused(
                404,
                "Session not found: it has ended, or the server was restarted. Send the scan "
                "again.",
            )
        self._sessions.move_to_end(token)
        return self._sessions[token]

    def remove(self, token: str) -> Session:
        """Forget a session and delete its file. Raises Refused where there is none."""
        session = self.get(token)
        del self._sessions[token]
        shutil.rmtree(session.folder, ignore_errors=True)
        return session


def router(
    model: Model, queue: TaskQueue, folder: Path, limits: Limits, labels: LabelFolder | None
) -> APIRouter:
    """The protocol's addresses. labels: None where there is no label folder."""
    routes, sessions = APIRouter(), Sessions(folder, limits)
    receiving = asyncio.Semaphore(limits.waiting)

    @routes.get("/info/")
    def info() -> dict[str, Any]:
        return described(model) | monai_store.described(labels)

    @routes.put("/session/")
    async def add_session(request: Request) -> dict[str, Any]:
        session = await sessions.add(request)
        return {"session_id": session.id, "session_info": session.described()}

    @routes.get("/session/{token}")
    async def look_at_session(token: str) -> dict[str, Any]:
        return sessions.get(token).described()

    @routes.delete("/session/{token}")
    async def remove_session(token: str) -> dict[str, Any]:
        return sessions.remove(token).described()

    @routes.post("/infer/{name}")
    async def infer(
        request: Request, name: str, image: str = "", session_id: str = "", output: str = "all"
    ) -> Response:
        if name != model.name:
            raise Refused(
                404, f"There is no model “{shown(name)}” here; this server has “{model.name}”."
            )
        if output not in ("all", "image", "json"):
            raise Refused(400, "Expected output=all, image or json.")
        if receiving.locked():
            raise limits.full()
        async with receiving, received_form(request) as form:
            session = sessions.get(session_id) if session_id else None
            case = None
            if labels and image and not session and not file_of(form, "file"):
                case = await run_in_threadpool(_stored, image, labels)
            task = await _task_of(form, session, case, queue, limits)
        try:
            await _wait(request, task)
            return answer(task, output)
        finally:
            queue.remove(task)

    return routes


def described(model: Model) -> dict[str, Any]:
    """What the plugin shows of the server: models by name, and the labels that become segments.

    Labels are 1, 2, ... as in the label maps of `infer`: for the plugin the n-th name is value n.
    """
    labels = {name: index for index, name in enumerate(model.classes, 1)}
    text = f"dkuxnet: {', '.join(model.classes)} in {', '.join(model.segmenter.channels)}"
    return {
        "name": "dkuxnet",
        "description": text,
        "version": version("dkuxnet"),
        "labels": labels,
        "models": {
            model.name: {
                "type": "segmentation",
                "labels": labels,
                "dimension": 3,
                "description": text,
                "config": {},
            }
        },
        "trainers": {},
        "scoring": {},
        "train_stats": {},
    }


def _stored(image: str, labels: LabelFolder) -> Case:
    sample = monai_store.Sample.of(image, labels)
    check_loaded(sample.case, sample.loaded)
    return sample.case


async def _task_of(
    form: FormData, session: Session | None, case: Case | None, queue: TaskQueue, limits: Limits
) -> Task:
    """A task for a scan of the label folder, of a session, or of the form's field `file`.

    Raises Refused where there is none.
    """
    if case:
        ending = _ending(form, ".nii.gz")
        with queue.receiving(case.name, ".nii.gz", ending, as_indices=True, case=case) as task:
            return task
    source = session or file_of(form, "file")
    if source is None:
        raise Refused(
            404,
            "This server keeps no images of its own: send the scan in a session (PUT /session/), "
            "or in the field `file`.",
        )
    name = (source.name if isinstance(source, Session) else source.filename) or ""
    suffix = scan_suffix(name)
    with queue.receiving(name, suffix, _ending(form, suffix), as_indices=True) as task:
        if isinstance(source, Session):
            os.link(source.scan, task.scan)  # the session may end while the task waits
        else:
            await store(source, task.scan, limits)
    return task


def _ending(form: FormData, suffix: str) -> str:
    try:
        params = parse_json(str(form.get("params") or "{}"))
        asked = params.get("result_extension")
    except (ValueError, AttributeError):
        raise Refused(400, "Expected a JSON object in the field `params` of the form.") from None
    return asked if asked in RESULT_ENDINGS else label_ending(suffix)


async def _wait(request: Request, task: Task) -> None:
    while not task.finished.is_set():
        if await request.is_disconnected():
            task.unwanted.set()
            return
        await asyncio.sleep(LOOK_SECONDS)


def answer(task: Task, output: str) -> Response:
    """The label map, the results, or a form of both.

    The response states its length: the plugin cannot read a chunked body.
    """
    if task.state != "done":
        raise Refused(500, task.error or "Cancelled.")
    params = {
        "label_names": {c["name"]: c["index"] for c in task.result["classes"]},
        "volumes_ml": {c["name"]: c["volume_ml"] for c in task.result["classes"]},
        "warnings": task.result["warnings"],
        "seconds": task.result["seconds"],
    }
    if output == "json":
        return JSONResponse(params)
    image, name = task.label.read_bytes(), f"{task.id}{task.ending}"
    if output == "image":
        return Response(
            image,
            media_type="application/octet-stream",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )
    limit = secrets.token_hex(16)
    parts = (
        (b'name="params"\r\nContent-Type: application/json', json.dumps(params).encode()),
        (
            f'name="image"; filename="{name}"\r\nContent-Type: application/octet-stream'.encode(),
            image,
        ),
    )
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
        % (limit.encode(), head, content)
        for head, content in parts
    )
    return Response(
        body + f"--{limit}--\r\n".encode(), media_type=f"multipart/form-data; boundary={limit}"
    )
