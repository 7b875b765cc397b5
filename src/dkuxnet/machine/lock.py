"""One program at a time in a folder."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.regular import check_regular
from dkuxnet.machine.files import inside

WAIT_S = 60.0


def locked(folder: Path, worker: str) -> AbstractContextManager[None]:
    """Keep a second `worker` ("training", "benchmark") out of a folder that exists.

    The system drops the lock when the process ends, however it ends. Raises UserError where another
    holds it or the folder cannot be written.
    """
    return _held(folder, ".lock", 0.0, f"{folder}: another {worker} is at work in it")


def waited_for(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from the same few lines of work in a folder, for a moment.

    Raises UserError where another one takes longer than a minute.
    """
    return _held(folder, ".busy", WAIT_S, f"{folder}: another process has kept it for a minute")


@contextmanager
def _held(folder: Path, name: str, seconds: float, taken: str) -> Iterator[None]:
    """taken: what is said where another process has held the lock for so many seconds."""
    path = inside(folder, name)
    lock = FileLock(path, timeout=seconds)
    try:
        if path.exists():
            check_regular(path)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{taken}; wait for it, or choose another folder") from error
    except NotImplementedError:  # a disk without locks
        pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {disk_reason(error)}") from error
    try:
        yield
    finally:
        lock.release()
