"""MetaImage with header and voxels in one file (.mha)."""

import re
from dataclasses import dataclass
from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import require
from dkuxnet.data.formats import _itk

DIMENSIONS = ("2", "3", "4")  # MetaIO has room for 10 and writes past its own memory beyond
# MetaIO takes the first, and reads "NDims: 300" too
ONCE = ("NDims", "ElementDataFile", "CompressedDataSize")


@dataclass(frozen=True)
class MetaImage:
    """Vector images are volumes with channels first."""

    def peek(self, path: Path, kind: str = "image") -> _itk.ItkHeader:
        """Read the header. Raises UserError where it is none or its voxels lie in another file."""
        head = require(path, "MetaImage")
        fields, start = _fields(head)
        _check(path, fields, head[:start])
        packing: _itk.Packing = ""
        packed_bytes = None
        if _true(fields.get("compresseddata", "False")):
            # Where it is wrong, MetaIO leaves voxels unset and says nothing.
            stated = re.fullmatch(r"[0-9]{1,18}", fields.get("compresseddatasize", ""))
            packing, packed_bytes = "deflate", int(stated[0]) if stated else 0
        elif _true(fields.get("binarydata", "True")):
            packing = "raw"
        return _itk.read_header(path, "MetaImage", "MetaImageIO", start, packing, packed_bytes)

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read the volume."""
        return _itk.read_voxels(path, "MetaImage", self.peek(path), kind)

    def write(self, volume: Volume, path: Path) -> None:
        """Write the volume."""
        _itk.write_image(volume, path)


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """From the first bytes of a file: its fields, keys in lower case, and where voxels begin."""
    fields, start = {}, 0
    for line in head.splitlines(keepends=True):
        start += len(line)
        key, _, value = line.decode("latin-1").partition("=")
        fields[key.strip().lower()] = value.strip()
        if "elementdatafile" in fields:  # by definition the last field
            break
    return fields, start


def _check(path: Path, fields: dict[str, str], header: bytes) -> None:
    if "elementdatafile" not in fields:
        raise UserError(
            f"{path}: expected a header up to ElementDataFile, but it is cut short; copy it again"
        )
    if fields["elementdatafile"].upper() != "LOCAL":
        raise UserError(
            f"{path}: expected header and voxels in one file, but they are in two; save it as one"
        )
    if fields.get("ndims") not in DIMENSIONS:
        raise UserError(
            f"{path}: expected NDims = 3 in the header, got {fields.get('ndims')!r}; give a 3D scan"
        )
    for key in ONCE:
        if header.lower().count(key.lower().encode()) > 1:
            raise UserError(
                f"{path}: expected {key} once in the header, but it is there again; save the scan "
                "again"
            )


def _true(value: str) -> bool:
    """As MetaIO itself decides."""
    return value.startswith(("T", "t", "1"))


MHA = MetaImage()
