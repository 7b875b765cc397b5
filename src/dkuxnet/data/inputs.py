"""The cases in the inputs of a prediction: scans, folders in any layout, DICOM."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from dkuxnet.core.errors import UserError, data_warnings
from dkuxnet.core.types import Case
from dkuxnet.data import formats
from dkuxnet.data.dicom.series import find_scans
from dkuxnet.data.layouts import find_source

# File names that every patient's folder has: there the case is named after the folder.
COMMON_NAMES = ("mri_norm2", "lgemri")


def find_cases(inputs: Sequence[Path], series_uid: str | None = None) -> list[Case]:
    """The cases of the inputs.

    series_uid: the series to take of a DICOM input. Raises UserError for a missing input, two cases
    of one name, and a DICOM input in which a series must be chosen.
    """
    cases: dict[str, Case] = {}
    for path in map(Path, inputs):
        if not path.exists():
            raise UserError(f"{path} does not exist; give a scan or a folder of scans")
        for case in _at(path, series_uid):
            first = cases.setdefault(case.name, case)
            # The same case again is fine: it was given twice, or by another of its channels.
            if (first.images, first.series_uid) != (case.images, case.series_uid):
                raise UserError(
                    f"two inputs give the case name '{case.name}': {first.images[0]} and "
                    f"{case.images[0]}; rename one or predict them into different folders"
                )
    return list(cases.values())


def _at(path: Path, series_uid: str | None) -> list[Case]:
    if series_uid is not None or (formats.is_dicom(path) and path.is_file()):
        return [
            Case(name, (series.home,), series_uid=series.uid)
            for name, series in find_scans(path, series_uid).items()
        ]
    return _in_folder(path) if path.is_dir() else [_single(path)]


def _in_folder(folder: Path) -> list[Case]:
    """The cases of a folder.

    nnU-Net's imagesTs has no dataset.json: its channels are matched by name.
    """
    with data_warnings():  # of labels, which no prediction looks at
        source = find_source(folder)
    if source.layout != "folder":
        return list(source.cases)
    singles = [_single(case.images[0]) for case in source.cases]
    return list({case.name: case for case in singles}.values())


def _single(path: Path) -> Case:
    """The case of a file; nnU-Net's NAME_0000 takes the files of its other channels with it."""
    stem = formats.stem(path)
    ending = path.name[len(stem) :]
    if match := re.fullmatch(r"(.+)_\d{4}", stem):
        numbered = (path.with_name(f"{match[1]}_{i:04d}{ending}") for i in itertools.count())
        channels = tuple(itertools.takewhile(Path.is_file, numbered))
        if path in channels:
            return Case(match[1], channels)
    return Case(path.absolute().parent.name if stem in COMMON_NAMES else stem, (path,))
