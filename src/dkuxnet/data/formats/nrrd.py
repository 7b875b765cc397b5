"""NRRD in one file, the format of 3D Slicer and of the Atrial Segmentation Challenge."""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import check_deflated, require
from dkuxnet.data.formats import _itk

DATA_FILE = re.compile(rb"(?im)^[ \t]*data ?file[ \t]*:")
GZIP, SKIP = re.compile(rb"(?im)^encoding: *gz"), re.compile(rb"(?im)^(line|byte) ?skip:")


@dataclass(frozen=True)
class Nrrd:
    """Vector images are volumes with channels first."""

    def peek(self, path: Path, kind: str = "image") -> _itk.ItkHeader:
        """Read the header. Raises UserError where it is none or its voxels lie in another file."""
        header, start = _split(require(path, "NRRD"))
        if DATA_FILE.search(header):
            raise UserError(
                f"{path}: expected header and voxels in one file, but they are in two; save it as "
                "one"
            )
        deflated = GZIP.search(header) and not SKIP.search(header)
        return _itk.read_header(path, "NRRD", "NrrdImageIO", start, "deflate" if deflated else "")

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read the volume."""
        return _itk.read_voxels(path, "NRRD", self.peek(path), kind)

    def write(self, volume: Volume, path: Path) -> None:
        """Write the volume, and read it back: ITK keeps silent about a full disk."""
        _itk.write_image(volume, path)
        try:
            check_deflated(path, _split(require(path, "NRRD"))[1], volume.array.nbytes)
        except (UserError, zlib.error) as error:
            raise OSError("the disk did not take all of it") from error


def _split(head: bytes) -> tuple[bytes, int]:
    """From the first bytes of a file: its header, up to an empty line, and where voxels begin."""
    end = re.search(rb"\n\r?\n", head)
    return (head[: end.start() + 1], end.end()) if end else (head, len(head))


NRRD = Nrrd()
