"""The label map of a case on the grid of its scan, whichever way its file holds it.

A label map holds values alone. 3D Slicer's .seg.nrrd, DICOM SEG and RT Structure Sets hold named
segments, which may overlap and whose numbers differ from case to case: their names are the classes.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Source, Volume
from dkuxnet.data import formats
from dkuxnet.data.affines import on_grid, part_on_grid

MAX_CLASSES = 256  # class indices are stored in a byte
MAX_MASKS = 1024  # each is as large as the scan
MAX_FOUND_LABELS = 64  # a label file with more values than this is a scan in the wrong folder
BACKGROUND = "background"
Mask = Callable[[], NDArray[np.bool_]]


def segment_names(path: Path) -> list[str] | None:
    """The names of the segments in a file of labels; None where it holds values alone.

    Raises UserError for a file that is damaged.
    """
    if formats.is_dicom(path):
        from dkuxnet.data.dicom.labels import names_in  # importing pydicom is slow

        names = names_in(path)
    elif formats.suffix(path).endswith(".nrrd"):
        from dkuxnet.data.formats.nrrd import NRRD

        names = [segment.name for segment in NRRD.segments(path)]
        if not names:
            return None
    else:
        return None
    return _foreground(names)


def _foreground(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.lower() != BACKGROUND]


def with_classes(source: Source) -> Source:
    """The source with the names of all segments as classes, where it names no classes itself.

    They are counted in the order of the cases, and of the file in each. Raises UserError where only
    some labels name theirs, and where no case has a segment of a class that the source names.
    """
    labelled = [(case.name, case.label) for case in source.cases if case.label]
    named = {path: segment_names(path) for path in {path for _, path in labelled}}
    found = {name: named[path] for name, path in labelled}
    names = list(dict.fromkeys(name for each in found.values() for name in each or ()))
    unnamed = next((name for name, each in found.items() if each is None), None)
    if not names:
        return source
    if source.labels is not None:
        missing = [name for name in source.labels if name not in names and source.labels[name]]
        if unnamed is None and missing and len(missing) < len(source.labels) - 1:
            raise UserError(
                f"{source.folder}: no case has a segment named '{missing[0]}', but {_some(names)}; "
                "correct 'labels' in dataset.json"
            )
        return source
    if unnamed is not None:
        raise UserError(
            f"case '{unnamed}': its label map holds values without names, those of other cases "
            'name their segments; give "labels" in dataset.json, by these names'
        )
    if len(names) >= MAX_CLASSES:
        raise UserError(
            f"{source.folder}: its segments have {len(names)} different names, such as "
            f"{_some(names)}; choose {MAX_CLASSES - 1} at most by 'labels' in dataset.json"
        )
    _warn_alike(source, names)
    return replace(source, labels=classes_of(names))


def _warn_alike(source: Source, names: Sequence[str]) -> None:
    """Warn of names that may be meant as one: "Tumor" and "tumor", "GTV-1" and "GTV_1"."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"[\W_]", "", name).casefold() or name, []).append(name)
    for each in alike.values():
        if len(each) > 1:
            warnings.warn(
                f"{source.folder}: segments named {' and '.join(map(repr, each))} are taken for "
                "different classes; give them one name if they are the same",
                DataWarning,
                stacklevel=3,
            )


def classes_of(names: Sequence[str]) -> dict[str, int]:
    """Class name -> value of segments: 1, 2, ... in their order, 0 being the background."""
    return {BACKGROUND: 0} | {name: value for value, name in enumerate(dict.fromkeys(names), 1)}


def read_label(
    name: str, path: Path, scan: tuple[str, Volume], labels: Mapping[str, int] | None
) -> Volume:
    """The label map of case `name` on the grid of its scan: (X, Y, Z) of integers.

    scan: what it is called in messages, and its volume, of which only the grid counts. labels:
    class name -> value; segments of other names are left out. Overlaps are given to the last class
    and told. Raises UserError where the file is damaged, lies on another grid, or has segments of
    which none is a class.
    """
    what = f"the label map {path.name}"
    case = f"case '{name}'"
    try:
        if formats.is_dicom(path):
            from dkuxnet.data.dicom.labels import masks_in

            masks = masks_in(path, scan[1])
            names = _foreground([name for name, _ in masks])
            labels = labels or classes_of(names)
            _check_named(path, names, labels)
            return Volume(_merged(path, masks, labels, scan[1].shape), scan[1].affine)
        found = segment_names(path)
        if found is None:
            return on_grid(case, *scan, what, formats.read(path, kind="label"))
        return part_on_grid(case, *scan, what, _slicer_segments(path, labels or classes_of(found)))
    except UserError as error:
        raise error if str(error).startswith(case) else UserError(f"{case}: {error}") from error


def _slicer_segments(path: Path, labels: Mapping[str, int]) -> Volume:
    """The label map of a .seg.nrrd on its own grid, which may be a part of the scan's.

    Where no segment has the name of a class, its own values count, as for other programs.
    """
    from dkuxnet.data.formats.nrrd import NRRD, Segment

    segments, volume = NRRD.segments(path), NRRD.read(path)
    layers = volume.array if volume.array.ndim == 4 else volume.array[None]
    if not any(segment.name in labels for segment in segments) and len(layers) == 1:
        return formats.read(path, kind="label")
    _check_named(path, [segment.name for segment in segments], labels)
    if wrong := next((each for each in segments if each.layer >= len(layers)), None):
        raise UserError(
            f"{path}: segment '{wrong.name}' is in layer {wrong.layer}, but there are "
            f"{len(layers)}; save it again"
        )

    def mask(segment: Segment) -> Mask:
        return lambda: np.asarray(layers[segment.layer] == segment.value)

    masks = [(segment.name, mask(segment)) for segment in segments]
    return Volume(_merged(path, masks, labels, volume.shape), volume.affine)


def _check_named(path: Path, names: Sequence[str], labels: Mapping[str, int]) -> None:
    if not any(name in labels for name in names):
        raise UserError(
            f"{path}: expected segments named {_some(list(labels))}, but found {_some(names)}; "
            "correct 'labels' in dataset.json"
        )


def _merged(
    path: Path,
    masks: Sequence[tuple[str, Mask]],
    labels: Mapping[str, int],
    shape: tuple[int, int, int],
) -> NDArray[Any]:
    """One map of all segments that are classes, the last class above the others."""
    array = np.zeros(shape, np.min_scalar_type(max(labels.values())))
    by_value = {value: name for name, value in labels.items()}
    told = []
    chosen = [(labels[name], mask) for name, mask in masks if name in labels]
    if len(chosen) > MAX_MASKS:
        raise UserError(
            f"{path}: has {len(chosen)} segments of the classes, at most {MAX_MASKS} can be used; "
            "join those of one name"
        )
    for value, mask in sorted(chosen, key=lambda each: each[0]):
        voxels = mask()
        below = array[voxels]
        for other in np.unique(below[(below != 0) & (below != value)]).tolist():
            count = np.count_nonzero(below == other)
            told.append(f"'{by_value[value]}' and '{by_value[other]}' in {count} voxels")
        array[voxels] = value
    if told:
        warnings.warn(
            f"{path}: segments overlap: {_some(told)}; the first of two wins, the later class",
            DataWarning,
            stacklevel=2,
        )
    return array


def _some(names: Sequence[str], most: int = 6) -> str:
    return (", ".join(names[:most]) or "none") + (", ..." if len(names) > most else "")
