"""How large a scan is by its header, before memory is taken for it, and that its file brings its
own voxels.
"""

import gzip
import math
import re
import zipfile
from pathlib import Path

import numpy as np

from dkuxnet.core.errors import UserError
from dkuxnet.data.dicom.series import find_series

HEAD_BYTES = 65536
BYTES_A_VOXEL = 8  # the most that a format has
MAX_FILES = 20_000  # in a zip of DICOM
BYTES_AN_ENTRY = 1024  # of a zip's directory


def check_header(path: Path, max_voxels: int) -> None:
    """Raises UserError where the header asks for more voxels than `max_voxels`, or for voxels in
    another file.

    A header that says nothing, or is none, passes: reading it finds out what is wrong.
    """
    name = path.name.lower()
    try:
        if name.endswith(".zip"):
            _check_zip(path, max_voxels)
        if name.endswith((".zip", ".dcm")):
            voxels = _dicom_voxels(path)
        else:
            voxels = _h5_voxels(path) if name.endswith(".h5") else _voxels(name, _head(path))
    except UserError:
        raise
    except Exception:  # whatever a damaged header makes a parser raise
        return
    check_voxels(voxels, max_voxels, "by its header")


def check_voxels(voxels: int, most: int, where: str) -> None:
    """Raises UserError where `voxels` are more than `most`."""
    if voxels > most:
        raise UserError(
            f"this scan has {voxels:,} voxels {where}, and this server takes {most:,} at most "
            "(--max-voxels); "
            "crop the scan or make it coarser"
        )


def _head(path: Path) -> bytes:
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _voxels(name: str, head: bytes) -> int:
    if name.endswith((".nii", ".nii.gz")):
        return _nifti_voxels(head)
    if name.endswith(".nrrd"):
        return max(map(_product, re.findall(rb"(?im)^ *sizes *:([^\n]*)", head)), default=0)
    if name.endswith(".mha"):
        channels = max(
            map(_product, re.findall(rb"(?im)^ *ElementNumberOfChannels *=([^\n]*)", head)),
            default=1,
        )
        return channels * max(
            map(_product, re.findall(rb"(?im)^ *DimSize *=([^\n]*)", head)), default=0
        )
    return 0


def _nifti_voxels(head: bytes) -> int:
    """The product of `dim`: eight int16 at byte 40 of NIfTI-1, eight int64 at byte 16 of NIfTI-2,
    in either byte order.
    """
    second = head[4:7] in (b"n+2", b"ni2")
    for order in "<>":
        dim = (
            np.frombuffer(head, f"{order}i8", 8, 16)
            if second
            else np.frombuffer(head, f"{order}i2", 8, 40)
        )
        count, *sizes = dim.tolist()
        if 1 <= count <= 7:
            return math.prod(max(n, 1) for n in sizes[:count])
    return 0


def _product(numbers: bytes) -> int:
    return math.prod(max(int(n), 1) for n in numbers.split())


def _h5_voxels(path: Path) -> int:
    import h5py

    with h5py.File(path, "r") as file:
        dataset = file.get("image")
        if not isinstance(dataset, h5py.Dataset):
            return 0
        if dataset.file.filename != file.filename or dataset.external or dataset.is_virtual:
            raise UserError(
                f"{path}: its voxels are in another file, which this server does not open; write "
                "them into one"
            )
        return math.prod(dataset.shape)


def _dicom_voxels(path: Path) -> int:
    """Of the largest series: compressed, its files say nothing of what it unpacks to."""
    return max(
        sum(image.rows * image.columns * len(image.planes) for image in series.images)
        for series in find_series(path)
    )


def _check_zip(path: Path, max_voxels: int) -> None:
    """What zipfile unpacks of an entry is never more than the size that the zip's directory states
    for it.
    """
    if (
        _directory_bytes(path) > MAX_FILES * BYTES_AN_ENTRY
    ):  # before zipfile makes an object of every entry
        raise UserError(
            f"{path}: expected {MAX_FILES} files at most, but its directory is far longer; zip one "
            "series alone"
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES or total > BYTES_A_VOXEL * max_voxels:
        raise UserError(
            f"{path}: {len(entries)} files of {total / 2**30:.1f} GiB together, more than this "
            "server unpacks "
            f"({MAX_FILES} files, {BYTES_A_VOXEL * max_voxels / 2**30:.1f} GiB); zip one series "
            "alone"
        )


def _directory_bytes(path: Path) -> int:
    """The size of a zip's directory by the records at its end; 0 where there are none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * HEAD_BYTES))
        tail = file.read()
    sizes = [int.from_bytes(tail[at + 12 : at + 16], "little") for at in _places(tail, b"PK\5\6")]
    if sizes and sizes[-1] == 2**32 - 1:  # zip64 states it in a record of its own
        sizes = [
            int.from_bytes(tail[at + 40 : at + 48], "little") for at in _places(tail, b"PK\6\6")
        ]
    return max(sizes, default=0)


def _places(tail: bytes, mark: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(mark), tail)]
