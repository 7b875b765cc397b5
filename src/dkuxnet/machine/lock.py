"""One program at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.regular import check_regular
from dkuxnet.machine.files import inside


@contextmanager
def locked(folder: Path, worker: str) -> Iterator[None]:
    """Keep a second `worker` ("training", "benchmark") out of a folder that exists.

    The system drops the lock when the process ends, however it ends. Raises UserError where another
    holds it or the folder cannot be written.
    """
    path = inside(folder, ".lock")
    lock = FileLock(path, timeout=0)
    try:
        if path.exists():
            check_regular(path)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: another {worker} is at work in it; wait for it, or choose another folder"
        ) from error
    except NotImplementedError:  # a disk without locks
        pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {disk_reason(error)}") from error
    try:
        yield
    finally:
        lock.release()
