"""One program at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dkuxnet.core.errors import UserError, disk_reason


@contextmanager
def locked(folder: Path, worker: str) -> Iterator[None]:
    """Keep a second `worker` ("training", "benchmark") out of a folder that exists.

    The system drops the lock when the process ends, however it ends. Raises UserError where another
    holds it or the folder cannot be written.
    """
    try:
        descriptor = os.open(
            folder / ".lock", os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666
        )
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {disk_reason(error)}") from error
    with os.fdopen(descriptor, "w") as file:
        try:
            import fcntl  # not on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another {worker} is at work in it; wait for it, or choose another "
                "folder"
            ) from error
        except (ImportError, OSError):  # a disk without locks
            pass
        yield
