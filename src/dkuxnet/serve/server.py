"""The server from start to end: port, model and private folder, of which nothing is left behind."""

import contextlib
import logging
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from dkuxnet.core.errors import UserError
from dkuxnet.prediction.segment import Segmenter
from dkuxnet.serve.app import create_app
from dkuxnet.serve.connections import OnceAMinute, guarded
from dkuxnet.serve.keep import check_keep
from dkuxnet.serve.label_folder import LabelFolder
from dkuxnet.serve.limits import Limits
from dkuxnet.serve.model import Model
from dkuxnet.serve.reading import Reader

GRACE_SECONDS = 2  # for answers on their way when the server is stopped
HEAD_BYTES = 16 * 2**10  # of a request, with its address
ACCEPTED = 16  # connections that are taken before the first of them is looked at
QUEUED = 512  # that the system may keep until then


def serve_run(
    run: Path,
    host: str,
    port: int,
    device: str,
    limits: Limits,
    keep: Path | None,
    label_folder: Path | None,
    announce: Callable[[str], None],
) -> None:
    """Serve the model of `run` until Ctrl-C or SIGTERM.

    label_folder: see `LabelFolder`. announce: called with the URL once it can be opened. Raises
    UserError where `run` is not a run folder, the address cannot be listened on, or a folder cannot
    be used.
    """
    if keep:
        check_keep(keep)
    with listening(host, port) as sock:
        model = Model.of(run, Segmenter(run, device=device))
        with (
            private_folder() as folder,
            stopped_by_signals(),
            few_words(),
            contextlib.ExitStack() as ends,
        ):
            labels = None
            if label_folder:
                reader = Reader(limits, model.segmenter.channels, folder / "label-reading")
                ends.callback(reader.stop)
                labels = LabelFolder(label_folder, run, model, reader, folder)
                labels.check()
            app = create_app(model, folder, host, limits, keep, labels)
            try:
                announce(address(host, sock))
                with contextlib.suppress(KeyboardInterrupt):
                    Server(configured(app, limits)).run(sockets=[sock])
            finally:
                app.state.queue.stop()
                app.state.reader.stop()


class Server(uvicorn.Server):
    """uvicorn's, for which `backlog` is both numbers: how many wait, and how many are taken."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, with a long queue."""
        await super().startup(sockets)
        for sock in sockets or []:
            sock.listen(QUEUED)


def configured(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """uvicorn's settings for `app`."""
    return uvicorn.Config(
        app,
        http=guarded(limits),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        backlog=ACCEPTED,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


@contextlib.contextmanager
def few_words() -> Iterator[None]:
    """What goes wrong again and again is logged once a minute."""
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "dkuxnet.serve")]
    rare = OnceAMinute()
    for logger in loggers:
        logger.addFilter(rare)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(rare)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that already takes connections. Raises UserError where there cannot be one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.create_server((host, port), family=family, backlog=QUEUED)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot listen on {host} port {port}: {reason}; choose another --port or --host"
        ) from error
    with sock:
        yield sock


def address(host: str, sock: socket.socket) -> str:
    """The URL of the page."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{sock.getsockname()[1]}/"


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can open, for all that the process writes; deleted after."""
    folder = Path(tempfile.mkdtemp(prefix="dkuxnet-serve-"))
    before, tempfile.tempdir = tempfile.tempdir, str(folder)  # forms and readers write there too
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal raise KeyboardInterrupt, so that the server tidies up."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
