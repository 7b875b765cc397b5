"""The one way to open what a stranger may have put in the place of a file.

A named pipe would be waited for, and a device may do something when it is opened.
"""

import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file to read its bytes; links to one are followed.

    Raises OSError, at once, where there is anything else.
    """
    check_regular(path)  # first by its name, since opening some devices changes them
    file = open(path, "rb", opener=_waiting_for_nobody)  # noqa: SIM115  # its caller closes it
    try:
        _check(os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def check_regular(path: str | Path) -> None:
    """Raise OSError where `path` is no regular file, before a library opens it by its name."""
    _check(os.stat(path).st_mode)


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")


def _waiting_for_nobody(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
