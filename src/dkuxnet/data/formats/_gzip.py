"""gzip, unpacked as it is read.

Python's own reader takes a header byte by byte and makes objects of each part of a file: a gigabyte
of either keeps it busy for minutes. Here zlib reads the headers, and parts are counted.
"""

import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from dkuxnet.core.regular import open_regular

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 1 << 16
# Files that can be read from anywhere have a part for each 64 KiB, which pack to 1 KiB and more.
FREE_PARTS, PART_BYTES = 1000, 1 << 10


def open_gzip(path: Path) -> io.BufferedReader:
    """The unpacked bytes of a gzip file of one or more parts, whose checksums are compared."""
    return io.BufferedReader(_Unpacked(path))


class _Unpacked(io.RawIOBase):
    def __init__(self, path: Path):
        self._file = open_regular(path)
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._inflater, self._place, self._parts = zlib.decompressobj(zlib.MAX_WBITS + 16), 0, 1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: "WriteableBuffer") -> int:
        room = memoryview(buffer).cast("B")
        rest = b""
        while True:
            if self._inflater.eof and not (rest := self._next_part()):
                return 0
            packed = rest or self._inflater.unconsumed_tail or self._file.read(CHUNK_BYTES)
            part, rest = self._inflater.decompress(packed, len(room)), b""
            if part:
                room[: len(part)] = part
                self._place += len(part)
                return len(part)
            if not packed:
                raise EOFError("the file is cut short")

    def _next_part(self) -> bytes:
        """Begin the part that follows; its first packed bytes, or none at the end."""
        rest = self._inflater.unused_data
        while not (rest := rest.lstrip(b"\0")):  # padding
            rest = self._file.read(CHUNK_BYTES)
            if not rest:
                return b""
        self._parts += 1
        if self._parts > FREE_PARTS + self._file.tell() // PART_BYTES:
            raise ValueError(f"it is packed in {self._parts} parts or more")
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS + 16)
        return rest

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Only from the start or from here; all that lies before is unpacked."""
        wanted = offset + (self._place if whence == io.SEEK_CUR else 0)
        if wanted < self._place:
            self._begin()
        buffer = bytearray(CHUNK_BYTES)
        while self._place < wanted:
            if not self.readinto(memoryview(buffer)[: wanted - self._place]):
                break
        return self._place

    def tell(self) -> int:
        return self._place
