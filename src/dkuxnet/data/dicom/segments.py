"""The segments of a DICOM SEG, laid voxel by voxel on the grid of the scan that was segmented."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID

from dkuxnet.core.errors import UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.data.affines import OFF_VOXEL
from dkuxnet.data.checks import MAX_DEFLATE_RATIO, check_size, reading
from dkuxnet.data.dicom.headers import attribute, quiet, read_dataset, text
from dkuxnet.data.dicom.read import FREE_BYTES, TAGS, check_fragments, read_frame
from dkuxnet.data.dicom.stack import LPS_RAS
from dkuxnet.data.dicom.tree import printable

# Segmentation Storage and Label Map Segmentation Storage
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
SIZES = ("Rows", "Columns", "BitsAllocated", "NumberOfFrames")
SEG_TAGS = ("SegmentationType", "MaximumFractionalValue", "SegmentSequence")
PLACE = {
    "PlanePosition": "ImagePositionPatient",
    "PlaneOrientation": "ImageOrientationPatient",
    "PixelMeasures": "PixelSpacing",
}


@dataclass(frozen=True)
class Segment:
    """A segment: its number in the file, and its name."""

    number: int
    name: str


def read_segments(path: Path) -> list[Segment]:
    """The segments in the order of the file; a background is none. Raises UserError."""
    with reading(path, "DICOM"), quiet(), open_regular(path) as stream:
        return _segments(read_dataset(stream, tags=["SpecificCharacterSet", "SegmentSequence"]))


def _segments(dataset: Dataset) -> list[Segment]:
    found = []
    for each in dataset.get("SegmentSequence") or ():
        number = int(each.SegmentNumber)
        name = printable(text(each, "SegmentLabel").strip()) or f"segment {number}"
        if number:  # 0 is the background of a label map
            found.append(Segment(number, name))
    if len({segment.number for segment in found}) < len(found):
        raise ValueError("two of its segments have one number")
    return found


def _needed(dataset: Dataset) -> int:
    """Bytes of all unpacked voxels."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) * frames
    if bits < 0:
        raise ValueError("its size is negative")
    return -(-bits // 8)


class Segmentation:
    """The voxels of a DICOM SEG on the grid of `scan`.

    Raises UserError where it is damaged or fractional, or does not lie on the scan's voxels.
    """

    def __init__(self, path: Path, scan: Volume):
        self._path, self._scan = path, scan
        self._to_voxels = np.linalg.inv(scan.affine) @ LPS_RAS
        with reading(path, "DICOM"), quiet(), open_regular(path) as stream:
            needed = _needed(read_dataset(stream, tags=SIZES))
            stream.seek(0)
            self._dataset = read_dataset(stream, 2 * needed, [*TAGS, *SEG_TAGS])
            self._frames = int(self._dataset.get("NumberOfFrames") or 1)
            self.segments = _segments(self._dataset)
            self._check(needed)
            check_fragments(self._dataset)
            if not self._is_label_map:
                self._numbers = [self._number(frame) for frame in range(self._frames)]

    def mask(self, number: int) -> NDArray[np.bool_]:
        """The voxels (X, Y, Z) of one segment."""
        if self._is_label_map:
            return np.asarray(self._values == number)
        mask = np.zeros(self._scan.shape, bool)
        with reading(self._path, "DICOM"), quiet():
            for frame, of in enumerate(self._numbers):
                if of == number:
                    self._paste(mask, frame, self._voxels(frame))
        return mask

    @cached_property
    def _values(self) -> NDArray[np.uint16]:
        """The numbers of all segments of a label map (X, Y, Z)."""
        values = np.zeros(self._scan.shape, np.uint16)
        with reading(self._path, "DICOM"), quiet():
            for frame in range(self._frames):
                self._paste(values, frame, read_frame(self._dataset, frame).T)
        return values

    def _check(self, needed: int) -> None:
        """Check that the file can hold what its header promises, before anything is unpacked."""
        dataset = self._dataset
        bits = int(dataset.BitsAllocated)
        described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
        if self._frames != described or bits not in (1, 8, 16):
            raise ValueError(
                f"it has {self._frames} frames of {bits} bits and describes {described}"
            )
        if UID(dataset.file_meta.TransferSyntaxUID).is_compressed:
            packed = self._path.stat().st_size
            check_size(self._path, needed, max(FREE_BYTES, MAX_DEFLATE_RATIO * packed))
        else:
            check_size(self._path, needed, len(dataset.get("PixelData") or b""))

    @property
    def _is_label_map(self) -> bool:
        return bool(self._dataset.get("SegmentationType") == "LABELMAP")

    def _number(self, frame: int) -> int:
        """The segment of a frame."""
        place = "SegmentIdentificationSequence", "ReferencedSegmentNumber"
        return int(attribute(self._dataset, frame, *place))

    def _voxels(self, frame: int) -> NDArray[np.bool_]:
        """(columns, rows) of a frame of one segment."""
        dataset = self._dataset
        if dataset.BitsAllocated == 1 and not dataset.file_meta.TransferSyntaxUID.is_compressed:
            size = dataset.Rows * dataset.Columns
            start = frame * size
            packed = np.frombuffer(
                dataset.PixelData[start // 8 : (start + size + 7) // 8], np.uint8
            )
            bits = np.unpackbits(packed, bitorder="little")[start % 8 :][:size]
            return bits.reshape(dataset.Rows, dataset.Columns).T.astype(bool)
        stored = read_frame(dataset, frame).T
        top = int(dataset.get("MaximumFractionalValue") or 1)
        if not np.isin(stored, (0, top)).all():
            raise UserError(
                f"{self._path}: expected a segmentation, but it holds fractions (SegmentationType "
                "FRACTIONAL); export it as BINARY"
            )
        return np.asarray(stored == top)

    def _paste(self, array: NDArray[Any], frame: int, voxels: NDArray[Any]) -> None:
        """Lay what is not 0 of a frame's voxels (columns, rows) into `array` (X, Y, Z)."""
        axes, signs, start = self._place(frame)
        voxels = voxels[:: signs[0], :: signs[1]]
        target = np.moveaxis(array, axes, (0, 1, 2))
        index = int(start[axes[2]])
        # Where the turned frame begins in the scan, and the part of it that lies inside
        low = [
            int(start[axis]) - (size - 1 if sign < 0 else 0)
            for axis, size, sign in zip(axes[:2], voxels.shape, signs, strict=True)
        ]
        (a, b), (columns, rows, slices) = low, target.shape
        part = voxels[max(0, -a) : max(0, columns - a), max(0, -b) : max(0, rows - b)]
        if not 0 <= index < slices:
            part = part[:0]
        if lost := np.count_nonzero(voxels) - np.count_nonzero(part):
            raise UserError(
                f"{self._path}: {lost} voxels of frame {frame + 1} lie outside the scan; give the "
                "series that was segmented, whole"
            )
        if part.any():
            a, b = max(0, a), max(0, b)
            place = target[a : a + part.shape[0], b : b + part.shape[1], index]
            np.copyto(place, part, casting="unsafe", where=part != 0)

    def _place(self, frame: int) -> tuple[list[int], list[int], NDArray[np.int64]]:
        """Axes of the scan along columns, rows and across; signs of the first two; first voxel."""
        position, orientation, spacing = (
            attribute(self._dataset, frame, f"{group}Sequence", name)
            for group, name in PLACE.items()
        )
        if [len(value or ()) for value in (position, orientation, spacing)] != [3, 6, 2]:
            raise ValueError(f"frame {frame + 1} does not say where it lies")
        plane = np.zeros((4, 3))
        plane[:3, 0], plane[:3, 1] = orientation[:3], orientation[3:]
        plane[:3, :2] *= [float(step) for step in spacing][::-1]
        plane[:, 2] = [*map(float, position), 1]
        found = (self._to_voxels @ plane)[:3]
        whole = np.round(found.clip(-(2**31), 2**31))
        extent = [self._dataset.Columns, self._dataset.Rows, 1]
        steps = np.abs(whole[:, :2])
        if (
            not np.isfinite(found).all()
            or (np.abs(found - whole) * extent > OFF_VOXEL).any()
            or steps.sum() != 2
            or not (steps.sum(axis=0) == 1).all()
            or steps.sum(axis=1).max() != 1
        ):
            raise UserError(
                f"{self._path}: the voxels of frame {frame + 1} are not those of the scan: another "
                "voxel size, direction or place; give the series that was segmented"
            )
        along, down = (int(axis) for axis in steps.argmax(axis=0))
        signs = [int(whole[along, 0]), int(whole[down, 1])]
        return [along, down, 3 - along - down], signs, whole[:, 2].astype(np.int64)
