"""FreeSurfer's volumes: MGH, and MGZ, which is MGH packed with gzip. They are read, not written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import (
    MAX_DEFLATE_RATIO,
    Header,
    check_axes,
    check_size,
    finish,
    reading,
    require,
)
from dkuxnet.data.formats.nifti import check_unpacked, opened, read_to_end
from dkuxnet.machine.memory import check_memory

FIELDS = np.dtype(
    [
        ("version", ">i4"),
        ("shape", ">i4", 4),  # X, Y, Z, channels
        ("type", ">i4"),
        ("dof", ">i4"),
        ("placed", ">i2"),
        ("spacing_mm", ">f4", 3),
        ("axes", ">f4", (3, 3)),  # a row for each
        ("centre_mm", ">f4", 3),
    ]
)
VOXELS_START = 284
TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


@dataclass(frozen=True)
class MghHeader(Header):
    """A header and its affine to RAS+ mm."""

    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Mgh:
    """Channels are on the last axis in the file and on the first in the volume."""

    def peek(self, path: Path, kind: str = "image") -> Header:
        """Read the header. Raises UserError where it is none or no 3D scan."""
        with _opened(path) as (header, _, _):
            return header

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read the volume."""
        with _opened(path) as (header, file, packed):
            size = os.fstat(file.fileno()).st_size
            most = size * MAX_DEFLATE_RATIO if packed else max(0, size - VOXELS_START)
            check_size(path, header.nbytes, most)
            check_memory(2 * header.nbytes, str(path))
            if packed:
                check_unpacked(path, file, VOXELS_START, header.nbytes)
            file.seek(VOXELS_START)
            stored = file.read(header.nbytes)
            check_size(path, header.nbytes, len(stored))
            if packed:
                read_to_end(path, file)
        array = np.frombuffer(stored, header.dtype).reshape(header.shape, order="F")
        array = array.astype(header.dtype.newbyteorder("="), order="F")
        return finish(
            path, np.moveaxis(array, 3, 0) if array.ndim == 4 else array, header.affine, kind
        )

    def write(self, volume: Volume, path: Path) -> None:
        """Raise UserError: every program that reads this format reads NIfTI too."""
        raise UserError(f"{path}: cannot write this format; choose .nii.gz")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[MghHeader, IO[bytes], bool]]:
    """The header of a file, the unpacked file, and whether it is packed."""
    packed = path.name.lower().endswith("z")
    require(path, "gzip" if packed else "MGH")
    with reading(path, "MGH"), opened(path, packed) as file:
        block = file.read(VOXELS_START)
        if len(block) < VOXELS_START:
            raise UserError(
                f"{path}: expected an MGH header, but it is cut short; copy or export it again"
            )
        fields = np.frombuffer(block, FIELDS, 1)[0]
        if fields["version"] != 1 or int(fields["type"]) not in TYPES:
            raise UserError(
                f"{path}: expected MGH by its name, of one real number a voxel, but version "
                f"{fields['version']} and type {fields['type']} are not; rename or convert it"
            )
        if not fields["placed"]:  # programs differ in what they then take
            raise UserError(
                f"{path}: expected a header that says how the patient lies, but this one does not "
                "(goodRASFlag is 0); convert it with mri_convert and say it there"
            )
        shape = tuple(fields["shape"].tolist())
        shape = shape[:3] if shape[3] == 1 else shape
        check_axes(path, shape)
        dtype = np.dtype(TYPES[int(fields["type"])])
        yield MghHeader(shape, dtype, _affine(fields)), file, packed


def _affine(fields: Any) -> NDArray[np.float64]:
    """The point that the header places lies at half the shape."""
    affine = np.eye(4)
    with np.errstate(invalid="ignore"):  # what is not finite is refused
        affine[:3, :3] = fields["axes"].T.astype(np.float64) * fields["spacing_mm"]
        affine[:3, 3] = fields["centre_mm"] - affine[:3, :3] @ (fields["shape"][:3] / 2)
    return affine


MGH = Mgh()
