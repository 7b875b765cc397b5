"""NRRD with the header in the file of its data, the format of the Atrial Segmentation Challenge
and of 3D Slicer.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import check_deflated, reading, require
from dkuxnet.data.formats import _itk


@dataclass(frozen=True)
class Nrrd:
    """Vector images are volumes with channels first."""

    def read(self, path: Path, kind: str = "image") -> Volume:
        header, start = _header(require(path, "NRRD"))
        if re.search(rb"(?im)^[ \t]*data ?file[ \t]*:", header):
            raise UserError(
                f"{path}: expected header and voxels in one file, but they are in two; save it as "
                "one"
            )
        with reading(path, "NRRD"):
            reader = _itk.open_header(path, "NrrdImageIO")
            if re.search(rb"(?im)^encoding: *gz", header) and not re.search(
                rb"(?im)^(line|byte) ?skip:", header
            ):
                check_deflated(path, start, _itk.voxel_bytes(reader))
        return _itk.read_voxels(path, reader, "NRRD", kind)

    def write(self, volume: Volume, path: Path) -> None:
        _itk.write_image(volume, path)
        try:  # ITK says nothing where the disk did not take the last block
            check_deflated(path, _header(require(path, "NRRD"))[1], volume.array.nbytes)
        except (UserError, zlib.error) as error:
            raise OSError("the disk did not take all of it") from error


def _header(head: bytes) -> tuple[bytes, int]:
    """The header, which an empty line ends, and the position of the first voxel, from a file's
    first bytes.
    """
    end = re.search(rb"\n\r?\n", head)
    return (head[: end.start() + 1], end.end()) if end else (head, len(head))


NRRD = Nrrd()
