"""MetaImage with the header in the file of its data (.mha)."""

from dataclasses import dataclass
from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import check_deflated, check_size, reading, require
from dkuxnet.data.formats import _itk


@dataclass(frozen=True)
class MetaImage:
    """Vector images are volumes with channels first."""

    def read(self, path: Path, kind: str = "image") -> Volume:
        head = require(path, "MetaImage")
        fields, start = _header(head)
        _check_header(path, fields)
        for key in (
            "NDims",
            "ElementDataFile",
        ):  # MetaIO goes by the first, and reads "NDims: 300" too
            if head[:start].lower().count(key.lower().encode()) > 1:
                raise UserError(
                    f"{path}: expected {key} once in the header, but it stands there again; save "
                    "it again"
                )
        with reading(path, "MetaImage"):
            reader = _itk.open_header(path, "MetaImageIO")
            # Checked here because MetaIO prints lines of its own about short data and then blames a
            # missing file.
            if _true(fields.get("compresseddata", "False")):
                check_deflated(path, start, _itk.voxel_bytes(reader))
            elif _true(fields.get("binarydata", "True")):
                check_size(path, _itk.voxel_bytes(reader), path.stat().st_size - start)
        return _itk.read_voxels(path, reader, "MetaImage", kind)

    def write(self, volume: Volume, path: Path) -> None:
        _itk.write_image(volume, path)


def _header(head: bytes) -> tuple[dict[str, str], int]:
    """The fields 'key = value' (keys in lower case) and the position of the first voxel, from a
    file's first bytes.
    """
    fields, start = {}, 0
    for line in head.splitlines(keepends=True):
        start += len(line)
        key, _, value = line.decode("latin-1").partition("=")
        fields[key.strip().lower()] = value.strip()
        if "elementdatafile" in fields:  # by definition the last field
            break
    return fields, start


def _check_header(path: Path, fields: dict[str, str]) -> None:
    if "elementdatafile" not in fields:
        raise UserError(
            f"{path}: expected a header up to ElementDataFile, but it is cut short; copy it again"
        )
    if fields["elementdatafile"].upper() != "LOCAL":
        raise UserError(
            f"{path}: expected header and voxels in one file, but they are in two; save it as one"
        )
    if fields.get("ndims") not in (
        "2",
        "3",
        "4",
    ):  # MetaIO has room for 10 and overruns its memory beyond
        raise UserError(
            f"{path}: expected NDims = 3 in the header, got {fields.get('ndims')!r}; give a 3D scan"
        )


def _true(value: str) -> bool:
    """As MetaIO itself decides."""
    return value.startswith(("T", "t", "1"))


MHA = MetaImage()
