"""MetaImage: header and voxels in one file (.mha), or voxels in a file beside the header (.mhd)."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import beside
from dkuxnet.data.formats import _inline

LAST = re.compile(r"\s*ElementDataFile\b", re.IGNORECASE)
LOCAL = ("LOCAL", "Local", "local")
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # as MetaIO has it
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@dataclass(frozen=True)
class MetaImage:
    """Vector images are volumes with channels first.

    pair: whether the voxels may lie in another file of the same folder.
    """

    pair: bool = False

    def peek(self, path: Path, kind: str = "image") -> _inline.InlineHeader:
        """Read the header. Raises UserError where it is none or its voxels lie in another file."""
        lines, start = _inline.header_lines(path, "MetaImage", lambda line: bool(LAST.match(line)))
        fields = _Fields(path, lines)
        voxels_in = self._voxels_in(path, fields)
        fields.expect("objecttype", ("Image",))
        fields.expect("headersize", ("0",))
        axes = _inline.sizes(path, "NDims", fields.get("3", "ndims"), 1)[0]
        if axes not in (2, 3, 4):  # MetaIO has room for 10 and writes past its own memory beyond
            raise _inline.wrong(path, "NDims", "3", str(axes))
        shape = _inline.sizes(path, "DimSize", fields.get("", "dimsize"), axes)
        channels = _inline.sizes(
            path, "ElementNumberOfChannels", fields.get("1", "elementnumberofchannels"), 1
        )
        if axes == 2 or (axes == 4 and channels != (1,)):
            raise UserError(
                f"{path}: expected a 3D scan, but its shape is {shape}; give one volume per file"
            )
        packed_bytes = None
        if packed := fields.true(False, "compresseddata"):
            # MetaIO leaves voxels unset where it is wrong.
            stated = re.fullmatch(r"[0-9]{1,18}", fields.get("", "compresseddatasize"))
            packed_bytes = int(stated[0]) if stated else 0
        elif not fields.true(True, "binarydata"):
            raise _inline.wrong(path, "BinaryData", "True", "False")
        spacing = fields.get(fields.get(" ".join("1" * axes), "elementsize"), "elementspacing")
        directions = " ".join("1" if i % (axes + 1) == 0 else "0" for i in range(axes * axes))
        matrix = fields.get(directions, "transformmatrix", "rotation", "orientation")
        origin = fields.get(" ".join("0" * axes), "offset", "position", "origin")
        steps = _inline.numbers(path, "TransformMatrix", matrix, axes * axes).reshape(axes, axes).T
        return _inline.InlineHeader(
            shape=shape if channels == (1,) else channels + shape,
            dtype=fields.dtype(),
            affine=_inline.LPS_RAS
            @ _inline.affine_of(
                steps * _inline.numbers(path, "ElementSpacing", spacing, axes),
                _inline.numbers(path, "Offset", origin, axes),
            ),
            channel_axis=None if channels == (1,) else 0,
            start=start if voxels_in is None else 0,
            voxels_in=voxels_in,
            packing="deflate" if packed else "raw",
            packed_bytes=packed_bytes,
        )

    def _voxels_in(self, path: Path, fields: "_Fields") -> Path | None:
        """The file beside the header that holds the voxels; None where they follow the header."""
        name = fields.get("", "elementdatafile")
        if name in LOCAL:
            return None
        if not self.pair:
            raise UserError(
                f"{path}: expected header and voxels in one file, but they are in two; save it as "
                "one"
            )
        return beside(path, os.fsdecode(name.encode("latin-1")))

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read the volume."""
        return _inline.read_voxels(path, "MetaImage", self.peek(path), kind)

    def write(self, volume: Volume, path: Path) -> None:
        """Write the volume."""
        _inline.write_image(volume, path)


class _Fields:
    """The fields of a header, each there once. Keys in lower case; others than ours are ignored."""

    def __init__(self, path: Path, lines: list[str]):
        self._path = path
        self._values: dict[str, str] = {}
        for line in filter(str.strip, lines):
            name, mark, value = line.partition("=")
            name = name.strip()
            if not name or not mark:
                raise _inline.wrong(path, "each line", "'key = value'", line)
            if name.lower() in self._values:
                raise UserError(
                    f"{path}: expected {name[:80]} once in the header, but it is there again; "
                    "save the scan again"
                )
            self._values[name.lower()] = value.strip()

    def get(self, default: str, *names: str) -> str:
        """The value under one of several names of the same thing."""
        found = [self._values[name] for name in names if name in self._values]
        if any(value.split() != found[0].split() for value in found):
            raise _inline.wrong(self._path, names[0], "said once", " and ".join(found))
        return found[0] if found else default

    def expect(self, name: str, allowed: tuple[str, ...]) -> None:
        """Raise UserError where a field is there and is not one of `allowed`."""
        value = self.get(allowed[0], name)
        if value not in allowed:
            raise _inline.wrong(self._path, name, allowed[0], value)

    def true(self, default: bool, *names: str) -> bool:
        """Whether a field says True, as MetaIO itself decides."""
        return self.get(str(default), *names).startswith(("T", "t", "1"))

    def dtype(self) -> "np.dtype[np.generic]":
        """The type of the voxels."""
        name = self.get("", "elementtype")
        if name not in TYPES:
            raise _inline.wrong(self._path, "ElementType", f"one of {', '.join(TYPES)}", name)
        big = self.true(False, "elementbyteordermsb", "binarydatabyteordermsb")
        return np.dtype((">" if big else "<") + TYPES[name])


MHA = MetaImage()
MHD = MetaImage(pair=True)
