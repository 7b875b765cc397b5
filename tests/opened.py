"""Which files are opened, as the kernel tells it: by any thread, from Python or from a library in
C.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

import pytest

OPEN, MOVED_TO = 0x20, 0x80  # of inotify(7)
EVENT = struct.Struct("iIII")  # watch, what happened, cookie, length of the name


class Watch:
    """What happens in folders, in the order in which it happens.

    Skips the test where there is no inotify.
    """

    def __init__(self, *folders: Path):
        if sys.platform != "linux":
            pytest.skip("which files are opened is asked of Linux")
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        for folder in folders:
            if (
                self._descriptor < 0
                or libc.inotify_add_watch(self._descriptor, os.fsencode(folder), OPEN | MOVED_TO)
                < 0
            ):
                pytest.skip(f"no inotify here: {os.strerror(ctypes.get_errno())}")

    def names(self) -> list[str]:
        """The files opened, or put in their place by a rename, since the last call; a file as
        often as it was.
        """
        found = []
        while True:
            try:
                told = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return [name for name in found if name]
            place = 0
            while place < len(told):
                *_, length = EVENT.unpack_from(told, place)
                place += EVENT.size
                found.append(told[place : place + length].rstrip(b"\0").decode())
                place += length

    def close(self) -> None:
        os.close(self._descriptor)
