"""How large a scan the server takes, judged by headers before memory is taken for voxels."""

from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Case
from dkuxnet.data import formats
from dkuxnet.data.dicom.tree import is_zip, opened_zip

BYTES_A_VOXEL = 8  # the most that a format has
MAX_FILES = 20_000  # in a zip of DICOM
MAX_EDGE = 4096  # voxels: more than scanners make


def check_zip(path: Path, max_voxels: int) -> None:
    """Raise UserError where `path` is a zip of too many files, or unpacks to too many bytes."""
    if not is_zip(path):
        return
    with opened_zip(path, MAX_FILES) as archive:
        entries = archive.infolist()
    most, total = BYTES_A_VOXEL * max_voxels, sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES or total > most:
        raise UserError(
            f"{path}: {len(entries)} files of {total / 2**30:.1f} GiB together, more than this "
            f"server unpacks ({MAX_FILES} files, {most / 2**30:.1f} GiB); zip one series alone"
        )


def check_header(case: Case, max_voxels: int) -> int:
    """The voxels that the header of a scan promises.

    Raises UserError where they are more than `max_voxels`.
    """
    promised = 0
    for path in case.images:
        header = formats.peek(path, series_uid=case.series_uid)
        check_voxels(header.voxels, max_voxels, "by its header")
        promised += header.voxels
    return promised


def check_voxels(voxels: int, max_voxels: int, where: str) -> None:
    """Raise UserError where `voxels` are more than `max_voxels`."""
    if voxels > max_voxels:
        raise UserError(
            f"this scan has {voxels:,} voxels {where}, and this server takes {max_voxels:,} at "
            "most (--max-voxels); crop the scan or make it coarser"
        )


def check_edges(shape: tuple[int, ...], where: str) -> None:
    """Raise UserError where an edge of (X, Y, Z) voxels is longer than `MAX_EDGE`."""
    if max(shape) > MAX_EDGE:
        raise UserError(
            f"this scan has {max(shape):,} voxels along an edge {where}, and this server takes "
            f"{MAX_EDGE:,} at most; crop the scan or make it coarser"
        )
