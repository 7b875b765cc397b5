"""The contours of an RT Structure Set, drawn into the grid of a scan.

A voxel belongs to a structure where its centre lies inside an odd number of the structure's
contours on its slice, so that a contour inside another one is a hole, and the two edges of a
keyhole, which lie on each other, cancel out.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import reading
from dkuxnet.data.dicom.headers import Reads, items, quiet, read_dataset, text
from dkuxnet.data.dicom.stack import LPS_RAS
from dkuxnet.data.dicom.tree import printable

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
# Those of a whole body, drawn on every slice, take a fifth of these.
MAX_BYTES = 2**27
MAX_READS = 2**21
MAX_NUMBERS = 2**24
MAX_CROSSINGS = 2**22  # of all edges of a slice with the rows of voxels
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
FAR = 2.0**31  # in voxels
OFF_SLICE = 0.2  # of the distance of two slices, which a contour may lie beside one


@dataclass(frozen=True)
class Structure:
    """A region of interest: points (n, 3) of each closed contour, RAS+ mm."""

    name: str
    contours: tuple[NDArray[np.float64], ...]

    def mask(self, path: Path, scan: Volume) -> NDArray[np.bool_]:
        """The voxels of `scan` (X, Y, Z) whose centres lie inside.

        Raises UserError where a contour lies on none of the scan's slices.
        """
        where = f"{path}: the structure '{self.name}'"
        mask = np.zeros(scan.shape, bool)
        if not self.contours:
            return mask
        to_voxels = np.linalg.inv(scan.affine)
        with np.errstate(all="ignore"):
            contours = [
                # Without rounding, chance would decide about a point at the centre of a voxel.
                np.round(points @ to_voxels[:3, :3].T + to_voxels[:3, 3], 6)
                for points in self.contours
            ]
        if not all((np.abs(points) < FAR).all() for points in contours):  # nor where it is nan
            raise UserError(f"{where} has a point far outside the scan; export it again")
        axis = int(np.argmin(np.mean([np.ptp(points, axis=0) for points in contours], axis=0)))
        slices: dict[int, list[NDArray[np.float64]]] = {}
        for points in contours:
            index = _slice_of(where, points[:, axis], scan.shape[axis])
            slices.setdefault(index, []).append(np.delete(points, axis, axis=1))
        for index, polygons in slices.items():
            plane = np.moveaxis(mask, axis, 0)[index]
            plane[:] = _inside(where, polygons, plane.shape)
        _tell_gaps(where, sorted(slices))
        return mask


def read_structures(path: Path) -> list[Structure]:
    """The structures that have closed contours, in the order of the file; points are left out.

    Raises UserError where the file is damaged.
    """
    with reading(path, "DICOM"), quiet(), open_regular(path) as stream:
        header = read_dataset(stream, tags=("SpecificCharacterSet", "StructureSetROISequence"))
        rois = header.get("StructureSetROISequence") or ()
        names = {int(each.ROINumber): text(each, "ROIName").strip() for each in rois}
        if len(names) < len(rois):
            raise ValueError("two of its structures have one number")
        stream.seek(0)
        contours = _all_contours(stream)
    return [
        Structure(printable(name) or f"ROI {number}", contours[number])
        for number, name in names.items()
        if contours.get(number)
    ]


def _all_contours(stream: IO[bytes]) -> dict[int, tuple[NDArray[np.float64], ...]]:
    """The closed contours of all structures, by their number."""
    reads = Reads(MAX_READS)
    dataset = read_dataset(
        stream, tags=["ROIContourSequence"], sequence_bytes=MAX_BYTES, reads=reads
    )
    found: dict[int, list[bytes]] = {}
    count = 0
    for roi in items(dataset, "ROIContourSequence", reads):
        texts = found.setdefault(int(roi.ReferencedROINumber), [])
        for each in items(roi, "ContourSequence", reads):
            if each.get("ContourGeometricType") in CLOSED:
                texts.append(_numbers(each))
                count += texts[-1].count(b"\\")
    if count > MAX_NUMBERS:
        raise ValueError("its contours are far longer than those of a body")
    return {number: tuple(map(_points, texts)) for number, texts in found.items()}


def _numbers(contour: Dataset) -> bytes:
    """The numbers of a contour as they stand there: pydicom would make an object of each."""
    raw = contour.get_item("ContourData") if "ContourData" in contour else None
    if not isinstance(raw, RawDataElement):
        raise ValueError("a contour has no points")
    return raw.value or b""


def _points(numbers: bytes) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of text that is no number
        values = np.fromstring(numbers.strip(b" \0").replace(b"\\", b" "), np.float64, sep=" ")
    if len(values) % 3 or len(values) != numbers.count(b"\\") + 1 or not np.isfinite(values).all():
        raise ValueError("a contour has points that are not three finite numbers each")
    return np.asarray(values.reshape(-1, 3) * LPS_RAS.diagonal()[:3])


def _slice_of(where: str, heights: NDArray[np.float64], slices: int) -> int:
    """The slice on which a contour lies; heights: of its points, in slices."""
    index = int(np.round(heights.mean()).clip(-1, slices))
    if np.abs(heights - index).max() > OFF_SLICE or not 0 <= index < slices:
        raise UserError(
            f"{where} has a contour from {heights.min():.6g} to {heights.max():.6g} of the "
            f"scan's slices, which are 0 to {slices - 1}: it lies on none of them; give the "
            "series that it was drawn on, whole"
        )
    return index


def _inside(
    where: str, polygons: list[NDArray[np.float64]], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Voxels of a slice of `shape` inside an odd number of polygons (n, 2).

    Each edge turns all voxels behind it over, along the first axis, in the rows that it crosses.
    """
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    # From low to high, so that an edge is crossed at the same place whichever way it was drawn.
    upward = (starts[:, 1] <= ends[:, 1])[:, None]
    (x, y), (x_end, y_end) = np.where(upward, starts, ends).T, np.where(upward, ends, starts).T
    first, stop = (np.ceil(each).clip(0, shape[1]).astype(int) for each in (y, y_end))
    rows = stop - first
    if rows.sum() > MAX_CROSSINGS:
        raise UserError(f"{where} has far more contours than an organ; export it again")
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[edge]
    share = (row - y[edge]) / (y_end - y)[edge]
    column = np.ceil(x[edge] + share * (x_end - x)[edge]).clip(0, shape[0]).astype(int)
    turns = np.zeros((shape[0] + 1, shape[1]), np.int32)
    np.add.at(turns, (column, row), 1)
    return (np.cumsum(turns[:-1], axis=0) & 1).astype(bool)


def _tell_gaps(where: str, slices: list[int]) -> None:
    gaps = np.diff(slices)
    if len(gaps) > 1 and gaps.min() > 1:
        warnings.warn(
            f"{where} is drawn on every {gaps.min()}. slice only; the slices between count as "
            "background",
            DataWarning,
            stacklevel=2,
        )
