"""NIfTI-1 and NIfTI-2 in one file, plain or gzip-compressed."""

import gzip
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import (
    CHUNK_BYTES,
    MAX_DEFLATE_RATIO,
    MAX_REST_BYTES,
    check_size,
    finish,
    reading,
    require,
)

MM_PER_UNIT = {
    1: 1000.0,
    3: 0.001,
}  # the header's codes for metre and micrometre; all others mean mm
FORMS_MM, FORMS_DIRECTION = (
    1.0,
    0.1,
)  # how far sform and qform may differ without a word: rounding, and 5 degrees of shear
SHEAR_TOLERANCE = np.sin(np.radians(0.1))  # cosine of the angle between two axes


@dataclass(frozen=True)
class Nifti:
    """Arrays as stored: (X, Y, Z), or channels on the last axis in the file and on the first in
    the volume.
    """

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Data with a scale (scl_slope) as float32, all other in their own type; sform or qform as
        nibabel chooses.
        """
        packed = path.name.lower().endswith(".gz")
        require(path, "gzip" if packed else "NIfTI")
        with reading(path, "NIfTI"), gzip.open(path) if packed else path.open("rb") as file:
            image = _open(file)
            _check_bytes(path, image, packed)
            array = _channels_first(_voxels(image))
            affine = np.diag([_unit_mm(image)] * 3 + [1.0]) @ image.affine
            if packed:
                _read_to_end(path, file)
        volume = finish(path, array, affine, kind)
        _compare_forms(path, image)
        return volume

    def write(self, volume: Volume, path: Path) -> None:
        """Both sform and qform, since programs differ in which they read.

        A qform cannot hold shear: where there is some it is marked unknown, so that a program that
        reads nothing else refuses the file rather than shows it in a wrong place.
        """
        array = np.moveaxis(volume.array, 0, -1) if volume.array.ndim == 4 else volume.array
        image = nibabel.Nifti1Image(array, volume.affine, dtype=array.dtype)
        image.set_sform(volume.affine, code="scanner")
        image.set_qform(volume.affine, code="scanner")
        directions = volume.affine[:3, :3] / volume.spacing_mm
        if np.abs(directions.T @ directions - np.eye(3)).max() > SHEAR_TOLERANCE:
            image.set_qform(volume.affine, code="unknown")
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)


def _open(file: BinaryIO) -> nibabel.Nifti1Image:
    """The header of an open file; the voxels are read when asked for, into memory of their own."""
    (header_bytes,) = np.frombuffer(file.read(4), "<i4").tolist()
    file.seek(0)
    second = header_bytes in (540, int(np.int32(540).byteswap()))
    form = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    return form.from_file_map(form.make_file_map({"image": file}), mmap=False)


def _check_bytes(path: Path, image: nibabel.Nifti1Image, packed: bool) -> None:
    """Before memory is taken for it: can the file hold what its header promises?"""
    shape = image.header.get_data_shape()
    if any(n <= 0 for n in shape):
        raise UserError(f"{path}: expected a 3D scan, but its shape is {shape}; export it again")
    needed = int(np.prod(shape, dtype=object)) * image.header.get_data_dtype().itemsize
    available = path.stat().st_size
    if packed:
        available *= MAX_DEFLATE_RATIO
    else:
        available = max(0, available - image.dataobj.offset)
    check_size(path, needed, available)


def _read_to_end(path: Path, file: BinaryIO) -> None:
    """gzip's checksum stands at its end, behind the voxels.

    Raises UserError where far more comes than a header promised.
    """
    for _ in range(MAX_REST_BYTES // CHUNK_BYTES):
        if not file.read(CHUNK_BYTES):
            return
    raise UserError(
        f"{path}: expected the file to end behind its voxels, but it goes on for more than "
        f"{MAX_REST_BYTES // 2**20} MiB; export it again"
    )


def _voxels(image: nibabel.Nifti1Image) -> np.ndarray:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) == (1, 0):
        return np.asarray(image.dataobj.get_unscaled())
    return image.get_fdata(dtype=np.float32, caching="unchanged")


def _channels_first(array: np.ndarray) -> np.ndarray:
    if array.ndim == 5 and array.shape[3] == 1:  # ITK's vector images: (X, Y, Z, time, C)
        array = array[:, :, :, 0]
    return np.moveaxis(array, -1, 0) if array.ndim == 4 else array


def _compare_forms(path: Path, image: nibabel.Nifti1Image) -> None:
    """Warn where sform and qform put the scan in two places; a little shear, which a qform cannot
    hold, is no second place.
    """
    try:
        (sform, sform_code), (qform, qform_code) = (
            image.get_sform(coded=True),
            image.get_qform(coded=True),
        )
    except (ValueError, HeaderDataError):  # no rotation: no program can take that qform
        return
    if not sform_code or not qform_code:
        return
    apart = np.abs(sform - qform)
    origin, direction = (
        apart[:3, 3].max(),
        (apart[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)).max(),
    )
    if origin * _unit_mm(image) > FORMS_MM or direction > FORMS_DIRECTION:
        warnings.warn(
            f"{path}: its sform and its qform differ by {origin * _unit_mm(image):.3g} mm in the "
            "origin and "
            f"{direction:.2g} in a direction; the sform is used, other programs may take the qform",
            DataWarning,
            stacklevel=2,
        )


def _unit_mm(image: nibabel.Nifti1Image) -> float:
    return MM_PER_UNIT.get(int(image.header["xyzt_units"]) & 7, 1.0)


NIFTI = Nifti()
