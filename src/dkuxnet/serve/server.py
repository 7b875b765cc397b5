"""The server from start to end: port, model and private folder, of which nothing is left behind."""

import contextlib
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from dkuxnet.core.errors import UserError
from dkuxnet.prediction.segment import Segmenter
from dkuxnet.serve.app import create_app
from dkuxnet.serve.keep import check_keep
from dkuxnet.serve.limits import Limits
from dkuxnet.serve.model import Model

GRACE_SECONDS = 2  # for answers on their way when the server is stopped


def serve_run(
    run: Path,
    host: str,
    port: int,
    device: str,
    limits: Limits,
    keep: Path | None,
    announce: Callable[[str], None],
) -> None:
    """Serve the model of `run` until Ctrl-C or SIGTERM.

    announce: called with the URL once it can be opened. Raises UserError where `run` is not a run
    folder or the address cannot be listened on.
    """
    if keep:
        check_keep(keep)
    with listening(host, port) as sock:
        model = Model.of(run, Segmenter(run, device=device))
        with private_folder() as folder, stopped_by_signals():
            app = create_app(model, folder, host, limits, keep)
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    log_level="error",
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=GRACE_SECONDS,
                )
            )
            announce(address(host, sock))
            try:
                with contextlib.suppress(KeyboardInterrupt):
                    server.run(sockets=[sock])
            finally:
                app.state.queue.stop()


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that already takes connections. Raises UserError where there cannot be one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.create_server((host, port), family=family, backlog=128)
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
