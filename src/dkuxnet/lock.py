"""One program at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dkuxnet.errors import UserError, disk_reason


@contextmanager
def locked(folder: Path, worker: str) -> Iterator[None]:
    """Keep a second `worker` ("training", "benchmark") out of a folder that exists. The system drops the lock when the
    process ends, however it ends. Raises UserError where another holds it or the folder cannot be written."""
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {disk_reason(error)}") from error
    with file:
        try:
            import fcntl  # not on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another {worker} is at work in it; wait for it, or choose another folder") from error
        except (ImportError, OSError):  # a disk without locks
            pass
        yield
