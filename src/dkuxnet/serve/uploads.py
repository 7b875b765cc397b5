"""Uploads: from a request to a file, never whole in memory."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from dkuxnet.serve.limits import Limits, Refused


async def receive_body(request: Request, path: Path, limits: Limits) -> None:
    """Write the body of a request to `path`.

    Raises Refused where it is too large, starlette's ClientDisconnect where it is cut off.
    """
    count = 0
    with path.open("xb") as file:
        async for chunk in request.stream():
            count += len(chunk)
            if count > limits.upload_bytes:
                raise limits.too_large()
            file.write(chunk)


class Uploads:
    """Places for files that are wanted for one request. Two are received at a time."""

    def __init__(self, folder: Path, limits: Limits):
        self.folder, self.limits = folder, limits
        self._receiving = asyncio.Semaphore(2)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Path]:
        """A private folder for the time of the block. Raises Refused where both are taken."""
        if self._receiving.locked():
            raise self.limits.full()
        async with self._receiving:
            place = self.folder / secrets.token_urlsafe(16)
            place.mkdir(mode=0o700)
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)


@asynccontextmanager
async def received_form(request: Request) -> AsyncIterator[FormData]:
    """The form of a request; its files are on the disk until the block ends.

    Raises Refused where the request has no form.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused(415, "Expected a multipart form (multipart/form-data).")
    async with request.form(max_files=2, max_fields=50) as form:
        yield form


def file_of(form: FormData, field: str) -> UploadFile | None:
    """The file in a field of a form; None where there is none. Raises Refused for several."""
    files = [value for value in form.getlist(field) if isinstance(value, UploadFile)]
    if len(files) > 1:
        raise Refused(400, "Send one file; a series of DICOM files as one zip.")
    return files[0] if files else None


async def store(upload: UploadFile, path: Path, limits: Limits) -> None:
    """Copy the file of a form to `path`. Raises Refused where it is too large."""
    if (upload.size or 0) > limits.upload_bytes:
        raise limits.too_large()
    with path.open("xb") as file:
        await run_in_threadpool(shutil.copyfileobj, upload.file, file)
