"""The segments of a DICOM SEG, laid voxel by voxel on the grid of the scan that was segmented."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID

from dkuxnet.core.errors import UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import MAX_DEFLATE_RATIO, check_size, reading
from dkuxnet.data.dicom.headers import attribute, quiet, read_dataset
from dkuxnet.data.dicom.read import FREE_BYTES, TAGS, check_fragments, read_frame
from dkuxnet.data.dicom.tree import printable

# Segmentation Storage and Label Map Segmentation Storage
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
SEG_TAGS = ("SegmentationType", "MaximumFractionalValue", "SegmentSequence")
PLACE = {
    "PlanePosition": "ImagePositionPatient",
    "PlaneOrientation": "ImageOrientationPatient",
    "PixelMeasures": "PixelSpacing",
}
OFF_VOXEL = 0.1  # of a voxel, which a frame's voxels may lie beside the scan's
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
        name = printable(str(each.get("SegmentLabel") or "").strip()) or f"segment {number}"
        if number:  # 0 is the background of a label map
            found.append(Segment(number, name))
    return found


class Segmentation:
    """The voxels of a DICOM SEG on the grid of `scan`.

    Raises UserError where it is damaged or fractional, or does not lie on the scan's voxels.
    """

    def __init__(self, path: Path, scan: Volume):
        self._path, self._scan = path, scan
        with reading(path, "DICOM"), quiet(), open_regular(path) as stream:
            self._dataset = read_dataset(stream, voxels=True, tags=[*TAGS, *SEG_TAGS])
            self._frames = int(self._dataset.get("NumberOfFrames") or 1)
            self.segments = _segments(self._dataset)
            self._check()
            check_fragments(self._dataset)
            self._numbers = [self._number(frame) for frame in range(self._frames)]

    def mask(self, number: int) -> NDArray[np.bool_]:
        """The voxels (X, Y, Z) of one segment."""
        mask = np.zeros(self._scan.shape, bool)
        with reading(self._path, "DICOM"), quiet():
            for frame, of in enumerate(self._numbers):
                if of in (None, number):
                    self._paste(mask, frame, number)
        return mask

    def _check(self) -> None:
        """Check that the file can hold what its header promises, before anything is unpacked."""
        dataset = self._dataset
        rows, columns, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
        described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
        if self._frames != described or bits not in (1, 8, 16):
            raise ValueError(
                f"it has {self._frames} frames of {bits} bits and describes {described}"
            )
        needed = -(-rows * columns * self._frames * bits // 8)
        if UID(dataset.file_meta.TransferSyntaxUID).is_compressed:
            packed = self._path.stat().st_size
            check_size(self._path, needed, max(FREE_BYTES, MAX_DEFLATE_RATIO * packed))
        else:
            check_size(self._path, needed, len(dataset.get("PixelData") or b""))

    @property
    def _is_label_map(self) -> bool:
        return bool(self._dataset.get("SegmentationType") == "LABELMAP")

    def _number(self, frame: int) -> int | None:
        """The segment of a frame; None where its voxels say it."""
        if self._is_label_map:
            return None
        place = "SegmentIdentificationSequence", "ReferencedSegmentNumber"
        return int(attribute(self._dataset, frame, *place))

    def _voxels(self, frame: int, number: int) -> NDArray[np.bool_]:
        """(columns, rows) of a frame."""
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
        if self._is_label_map:
            return np.asarray(stored == number)
        top = int(dataset.get("MaximumFractionalValue") or 1)
        if not np.isin(stored, (0, top)).all():
            raise UserError(
                f"{self._path}: expected a segmentation, but it holds fractions (SegmentationType "
                "FRACTIONAL); export it as BINARY"
            )
        return np.asarray(stored == top)

    def _paste(self, mask: NDArray[np.bool_], frame: int, number: int) -> None:
        axes, signs, start = self._place(frame)
        voxels = self._voxels(frame, number)[:: signs[0], :: signs[1]]
        target = np.moveaxis(mask, axes, (0, 1, 2))
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
        if lost := int(voxels.sum() - part.sum()):
            raise UserError(
                f"{self._path}: {lost} voxels of frame {frame + 1} lie outside the scan; give the "
                "series that was segmented, whole"
            )
        if part.any():
            a, b = max(0, a), max(0, b)
            target[a : a + part.shape[0], b : b + part.shape[1], index] |= part

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
        found = (np.linalg.inv(self._scan.affine) @ LPS_RAS @ plane)[:3]
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
