"""NRRD with the header in the file of its data, the format of the Atrial Segmentation Challenge and of 3D Slicer."""

import re
from dataclasses import dataclass
from pathlib import Path

from dkuxnet.errors import UserError
from dkuxnet.formats import _itk
from dkuxnet.formats._checks import reading, require
from dkuxnet.types import Volume


@dataclass(frozen=True)
class Nrrd:
    """Vector images are volumes with channels first."""

    def read(self, path: Path, kind: str = "image") -> Volume:
        head = require(path, "NRRD")
        if re.search(rb"(?im)^data ?file:", re.split(rb"\r?\n\r?\n", head)[0]):
            raise UserError(f"{path}: expected header and voxels in one file, but they are in two; save it as one")
        with reading(path, "NRRD"):
            reader = _itk.open_header(path, "NrrdImageIO")
        return _itk.read_voxels(path, reader, "NRRD", kind)

    def write(self, volume: Volume, path: Path) -> None:
        _itk.write_image(volume, path)


NRRD = Nrrd()
