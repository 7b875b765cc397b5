# mypy: untyped-calls-exclude=nibabel
"""NIfTI-1 and NIfTI-2 in one file, plain or compressed with gzip; pairs (.hdr, .img) are read."""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import (
    CHUNK_BYTES,
    MAX_DEFLATE_RATIO,
    MAX_REST_BYTES,
    PAIR,
    UNPACKED_BYTES,
    UNPROVEN_BYTES,
    Header,
    beside,
    check_axes,
    check_exact,
    check_numbers,
    check_size,
    content,
    finish,
    reading,
    require,
)
from dkuxnet.data.formats._gzip import open_gzip
from dkuxnet.machine.memory import check_memory

NIFTI_2_BYTES = 540
# What a header says of where voxels are. Of pixdim the spatial part alone.
PLACE = (
    *("xyzt_units", "pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
FORMS = {  # by (whether it is a pair, whether it is NIfTI-2)
    (False, False): nibabel.Nifti1Header,
    (False, True): nibabel.Nifti2Header,
    (True, False): nibabel.nifti1.Nifti1PairHeader,
    (True, True): nibabel.nifti2.Nifti2PairHeader,
}
# What nibabel says of a header names no file: `_Corrections` tells what matters of it.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
CORRECTED = 30  # nibabel's level of faults that move voxels; those below it do not matter
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # codes for metre and micrometre; all others mean mm
# How far sform and qform may differ without a warning: rounding, and 5 degrees of shear.
FORMS_MM, FORMS_DIRECTION = 1.0, 0.1
SHEAR_TOLERANCE = math.sin(math.radians(0.1))  # cosine of the angle between two axes


@dataclass(frozen=True)
class NiftiHeader(Header):
    """A header as nibabel reads it, and the voxels, which are read when asked for.

    voxel_data: where the voxels lie in the file, and how they are scaled. place: `Volume.nifti`.
    corrected: what nibabel had to correct, in its words.
    """

    fields: nibabel.Nifti1Header
    voxel_data: ArrayProxy
    place: bytes
    corrected: tuple[str, ...]

    @property
    def unit_mm(self) -> float:
        """The header's unit of length in mm."""
        return _unit_mm(self.fields)

    @property
    def scaled(self) -> bool:
        """Whether the stored numbers are to be scaled."""
        return (self.voxel_data.slope, self.voxel_data.inter) != (1, 0)


class _Corrections(list[str]):
    """Takes what nibabel would log, which names no file: faults that move voxels, corrected."""

    def log(self, level: int, message: str) -> None:
        if level >= CORRECTED and "setting" in message:  # others are harmless, or raised
            self.append(message)


@dataclass(frozen=True)
class Nifti:
    """Channels are on the last axis in the file and on the first in the volume."""

    def peek(self, path: Path, kind: str = "image") -> Header:
        """Read the header. Raises UserError where it is none or no 3D scan."""
        with _opened(path) as (header, _):
            return header

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read the volume.

        Scaled voxels (scl_slope) become float32, all others keep their type. nibabel chooses
        between sform and qform.
        """
        with _opened(path) as (header, file):
            packed, size = path.name.lower().endswith(".gz"), os.fstat(file.fileno()).st_size
            start = header.voxel_data.offset
            check_size(
                path, header.nbytes, size * MAX_DEFLATE_RATIO if packed else max(0, size - start)
            )
            check_memory(header.nbytes + 4 * header.voxels * header.scaled, str(path))
            if packed:
                check_unpacked(path, file, start, header.nbytes)
            array = _channels_first(_voxels(header))
            with np.errstate(all="ignore"):  # what is not finite is refused
                affine = _affine(header.fields)
            if packed:
                read_to_end(path, file)
        volume = replace(finish(path, array, affine, kind), nifti=header.place)
        with np.errstate(all="ignore"):
            _compare_forms(path, header)
        if header.corrected:
            warnings.warn(
                f"{path}: its header is wrong and read as others read it: "
                f"{'; '.join(header.corrected)}",
                DataWarning,
                stacklevel=2,
            )
        if header.unit_mm != 1:
            unit = "metres" if header.unit_mm > 1 else "micrometres"
            warnings.warn(
                f"{path}: its header counts in {unit}: its voxels are taken as "
                f"{' x '.join(f'{edge:.3g}' for edge in volume.spacing_mm)} mm",
                DataWarning,
                stacklevel=2,
            )
        return volume

    def write(self, volume: Volume, path: Path) -> None:
        """Write the volume where every program puts the scan that it was made of.

        A scan of another format has no header to copy: then with both sform and qform, since
        programs differ in which they read. A qform cannot hold shear. Where there is some it is
        marked unknown, so that a program that reads nothing else refuses the file rather than shows
        it in a wrong place.
        """
        array = np.moveaxis(volume.array, 0, -1) if volume.array.ndim == 4 else volume.array
        if (place := _place_of(volume, array)) is not None:
            second = place.sizeof_hdr == NIFTI_2_BYTES
            form = nibabel.Nifti2Image if second else nibabel.Nifti1Image
            image = form(array, None, dtype=array.dtype)  # type: ignore[no-untyped-call]  # nibabel's
            _copy_place(place, image.header)
            nibabel.save(image, path)
            return
        image = nibabel.Nifti1Image(array, volume.affine, dtype=array.dtype)
        image.set_sform(volume.affine, code="scanner")
        image.set_qform(volume.affine, code="scanner")
        directions = volume.affine[:3, :3] / volume.spacing_mm
        if np.abs(directions.T @ directions - np.eye(3)).max() > SHEAR_TOLERANCE:
            image.set_qform(volume.affine, code="unknown")
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[NiftiHeader, IO[bytes]]]:
    """The header of a file, and the unpacked file that the voxels can be read from in the block."""
    packed, pair = path.name.lower().endswith(".gz"), path.name.lower().endswith(".hdr")
    expected = PAIR if pair else "NIfTI"
    require(path, "gzip" if packed else expected)
    with ExitStack() as stack:
        stack.enter_context(reading(path, "NIfTI"))
        file = stack.enter_context(opened(path, packed))
        block = file.read(NIFTI_2_BYTES)
        if content(block) != expected:
            raise UserError(
                f"{path}: expected NIfTI by its name, but it holds {content(block)}; rename or "
                "convert it"
            )
        form = FORMS[pair, block[4:7] in (b"n+2", b"ni2")]
        # Of the header alone: nibabel would read extensions of whatever size they state.
        fields: nibabel.Nifti1Header = form(block[: form.sizeof_hdr], check=False)  # type: ignore[no-untyped-call]  # nibabel's
        place, corrected = _blank(form.sizeof_hdr), _Corrections()
        _copy_place(fields, place)  # as it is in the file
        fields.check_fix(corrected)
        shape = fields.get_data_shape()
        vector = len(shape) == 5 and shape[3] == 1
        check_axes(path, (*shape[:3], shape[4]) if vector else shape)
        check_numbers(path, fields.get_data_dtype())
        if packed and fields.get_data_offset() > MAX_REST_BYTES:
            raise UserError(
                f"{path}: expected voxels near the beginning, but its header puts them behind "
                f"{fields.get_data_offset()} bytes; export it again"
            )
        if pair:
            voxels_in = beside(path, path.stem + (".IMG" if path.suffix.isupper() else ".img"))
            file = stack.enter_context(opened(voxels_in, packed=False))
        voxels = ArrayProxy(cast(Any, file), fields, mmap=False)  # any open file will do
        header = NiftiHeader(
            shape, fields.get_data_dtype(), fields, voxels, place.binaryblock, tuple(corrected)
        )
        if pair:
            check_exact(path, voxels_in, fields.get_data_offset() + header.nbytes)
        yield header, file


def _affine(fields: nibabel.Nifti1Header) -> NDArray[np.float64]:
    """Voxel -> RAS+ mm. nibabel chooses between sform, qform and what neither says."""
    return np.asarray(np.diag([_unit_mm(fields)] * 3 + [1.0]) @ fields.get_best_affine())


def _unit_mm(fields: nibabel.Nifti1Header) -> float:
    return MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)


def _blank(size: int) -> nibabel.Nifti1Header:
    return nibabel.Nifti2Header() if size == NIFTI_2_BYTES else nibabel.Nifti1Header()


def _copy_place(header: nibabel.Nifti1Header, to: nibabel.Nifti1Header) -> None:
    for name in PLACE:
        part = slice(4) if name == "pixdim" else ...
        to[name][part] = header[name][part]


def _place_of(volume: Volume, array: NDArray[Any]) -> nibabel.Nifti1Header | None:
    """The header of the scan that a volume was made of, where the volume still lies there."""
    form = type(_blank(len(volume.nifti)))
    if len(volume.nifti) != form.sizeof_hdr:
        return None
    try:
        checked = form(volume.nifti)
        checked.set_data_shape(array.shape)
        same = np.array_equal(_affine(checked), volume.affine)
    except (ValueError, HeaderDataError):  # from a stranger's prepared set
        return None
    return form(volume.nifti, check=False) if same else None


def opened(path: Path, packed: bool) -> IO[bytes]:
    """The bytes of a file, unpacked."""
    return open_gzip(path) if packed else open_regular(path)


def read_to_end(path: Path, file: IO[bytes]) -> None:
    """Read what follows the voxels, since the checksum of gzip is at its end.

    Raises UserError where far more comes than the header promised.
    """
    for _ in range(MAX_REST_BYTES // CHUNK_BYTES):
        if not file.read(CHUNK_BYTES):
            return
    raise UserError(
        f"{path}: expected the file to end behind its voxels, but it goes on for more than "
        f"{MAX_REST_BYTES // 2**20} MiB; export it again"
    )


def check_unpacked(path: Path, file: IO[bytes], start: int, needed: int) -> None:
    """Unpack all voxels once and keep none, where they are so many that memory is a matter."""
    if needed <= UNPROVEN_BYTES:
        return
    file.seek(start)
    left = needed
    while left and (part := file.read(min(left, UNPACKED_BYTES))):
        left -= len(part)
    check_size(path, needed, needed - left)


def _voxels(header: NiftiHeader) -> NDArray[Any]:
    """The stored numbers or, scaled as nibabel does, float32; slice by slice, to save memory."""
    data = header.voxel_data
    stored = np.asarray(data.get_unscaled())
    if not header.scaled:
        return stored
    array = np.empty(stored.shape, np.float32, order="F")
    slope, inter = np.float64(data.slope), np.float64(data.inter)
    with np.errstate(all="ignore"):  # `prepare` judges voxels that are not finite
        for index in range(stored.shape[-1]):
            array[..., index] = apply_read_scaling(stored[..., index], slope, inter)
    return array


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 5 and array.shape[3] == 1:  # ITK's vector images: (X, Y, Z, time, C)
        array = array[:, :, :, 0]
    return np.moveaxis(array, -1, 0) if array.ndim == 4 else array


def _compare_forms(path: Path, header: NiftiHeader) -> None:
    """Warn where sform and qform put the scan in different places.

    A little shear, which a qform cannot hold, is not a different place.
    """
    try:
        sform, sform_code = header.fields.get_sform(coded=True)
        qform, qform_code = header.fields.get_qform(coded=True)
    except (ValueError, HeaderDataError):  # no rotation: no program can take that qform
        return
    if not sform_code or not qform_code:
        return
    apart = np.abs(sform - qform)
    origin_mm = apart[:3, 3].max() * header.unit_mm
    direction = (apart[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)).max()
    if origin_mm > FORMS_MM or direction > FORMS_DIRECTION:
        warnings.warn(
            f"{path}: its sform and its qform differ by {origin_mm:.3g} mm in the origin and "
            f"{direction:.2g} in a direction; the sform is used, other programs may take the qform",
            DataWarning,
            stacklevel=2,
        )


NIFTI = Nifti()
