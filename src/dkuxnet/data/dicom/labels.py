"""RT Structure Sets and DICOM SEG as labels: which series they were drawn on, and their masks."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import reading, require
from dkuxnet.data.dicom.headers import Reads, quiet, read_dataset, text
from dkuxnet.data.dicom.segments import SEGMENTATIONS, Segmentation, read_segments
from dkuxnet.data.dicom.series import Series
from dkuxnet.data.dicom.structures import RT_STRUCTURE_SET, read_structures
from dkuxnet.data.dicom.tree import head, opened, place

Mask = Callable[[], NDArray[np.bool_]]
REFERENCES = (
    *("SOPClassUID", "FrameOfReferenceUID", "ManufacturerModelName"),
    *("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"),
)
MARKS = tuple(uid.encode() for uid in (*SEGMENTATIONS, RT_STRUCTURE_SET))


@dataclass(frozen=True)
class _Drawing:
    """A file of labels. series: UIDs of the series that it was drawn on; frame: of reference."""

    path: Path
    kind: str
    series: frozenset[str]
    frames: frozenset[str]


def names_in(path: Path) -> list[str]:
    """The names of the segments or structures of a file, in its order.

    Raises UserError where it is neither DICOM SEG nor RT Structure Set, or damaged.
    """
    if _kind_of(path) == RT_STRUCTURE_SET:
        return [structure.name for structure in read_structures(path)]
    return [segment.name for segment in read_segments(path)]


def masks_in(path: Path, scan: Volume) -> list[tuple[str, Mask]]:
    """Name, and a function that gives the voxels (X, Y, Z) of `scan`, of every segment."""
    if _kind_of(path) == RT_STRUCTURE_SET:
        return [(each.name, partial(each.mask, path, scan)) for each in read_structures(path)]
    segmentation = Segmentation(path, scan)
    return [(each.name, partial(segmentation.mask, each.number)) for each in segmentation.segments]


def find_labels(root: Path, scans: Mapping[str, Series]) -> dict[str, Path]:
    """The file of labels of each scan in the folder `root` that has one.

    It names the series that it was drawn on. Where none of those is here, the frame of reference
    decides; then and where a file belongs to no scan there is a DataWarning. A SEG goes before an
    RT Structure Set of the same series. Files in root/labels are not looked at.

    Raises UserError where several files of one kind belong to a scan.
    """
    found: dict[str, list[_Drawing]] = {}
    for drawing in _drawings(root):
        for name in _scans_of(drawing, scans):
            found.setdefault(name, []).append(drawing)
    return {name: _chosen(name, drawings) for name, drawings in found.items()}


def _drawings(root: Path) -> list[_Drawing]:
    drawings, reads = [], Reads()
    with opened(root) as entries:
        for entry in entries:
            where = place(root, entry.name)
            try:
                with reading(where, "DICOM"):
                    first = head(entry)
            except UserError:  # the search for series has told it
                continue
            if entry.name.startswith("labels/") or not any(mark in first for mark in MARKS):
                continue
            try:
                with reading(where, "DICOM"), quiet(), entry.open() as stream:
                    header = read_dataset(stream, tags=REFERENCES, reads=reads.of(entry))
                    drawing = _drawing(where, header)
            except UserError as error:
                _tell(f"{error}; its labels are not used")
                continue
            if header.get("ManufacturerModelName") == "dkuxnet":
                _tell(f"{where}: dkuxnet predicted it, so that it is not taken for a label")
            elif drawing.kind in (*SEGMENTATIONS, RT_STRUCTURE_SET):
                drawings.append(drawing)
    return drawings


def _drawing(path: Path, header: Dataset) -> _Drawing:
    named = header.get("ReferencedSeriesSequence") or ()
    series = [text(each, "SeriesInstanceUID") for each in named]
    frames = [text(header, "FrameOfReferenceUID")]
    for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
        frames.append(text(frame, "FrameOfReferenceUID"))
        for study in frame.get("RTReferencedStudySequence") or ():
            for each in study.get("RTReferencedSeriesSequence") or ():
                series.append(text(each, "SeriesInstanceUID"))
    return _Drawing(
        path, text(header, "SOPClassUID"), frozenset(series) - {""}, frozenset(frames) - {""}
    )


def _scans_of(drawing: _Drawing, scans: Mapping[str, Series]) -> list[str]:
    named = [name for name, series in scans.items() if series.uid in drawing.series]
    if named:
        return named
    near = [
        name
        for name, series in scans.items()
        if series.images[0].frame_of_reference_uid in drawing.frames
    ]
    if len(near) == 1:
        _tell(
            f"{drawing.path}: names no series that is here; by its frame of reference it is taken "
            f"for the label of case '{near[0]}'"
        )
        return near
    _tell(f"{drawing.path}: was drawn on a series that is not here; its labels are not used")
    return []


def _chosen(name: str, drawings: list[_Drawing]) -> Path:
    segmentations = [each for each in drawings if each.kind in SEGMENTATIONS]
    first = segmentations or drawings
    if len(first) > 1:
        listed = ", ".join(sorted(each.path.name for each in first)[:4])
        raise UserError(
            f"case '{name}': expected one label, got {len(first)} files ({listed}); copy the one "
            f"to use to labels/{name}.dcm, and remove the others"
        )
    if len(drawings) > 1:
        _tell(
            f"case '{name}': has a DICOM SEG and an RT Structure Set; {first[0].path.name}, the "
            "DICOM SEG, is its label"
        )
    return first[0].path


def _kind_of(path: Path) -> str:
    require(path, "DICOM")
    with reading(path, "DICOM"), quiet(), open_regular(path) as stream:
        kind = text(read_dataset(stream, tags=["SOPClassUID"]), "SOPClassUID")
    if kind not in (*SEGMENTATIONS, RT_STRUCTURE_SET):
        raise UserError(
            f"{path}: expected labels as DICOM SEG or RT Structure Set, but it is neither; export "
            "it as one of these"
        )
    return kind


def _tell(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=3)
