"""The cases in the inputs of a prediction: scans, folders in any layout, DICOM."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dkuxnet.core.errors import DataWarning, Faults, UserError, data_warnings
from dkuxnet.core.types import Case
from dkuxnet.data import formats
from dkuxnet.data.dicom.series import find_scans
from dkuxnet.data.layouts import detect, find_source
from dkuxnet.data.layouts.atrial import la_h5, test_names
from dkuxnet.data.layouts.channels import group_channels
from dkuxnet.data.layouts.files import case_list, images_in, short_list, warn_left_out

# File names that every patient's folder has: there the case is named after the folder.
COMMON_NAMES = ("mri_norm2", "lgemri")


def find_cases(
    inputs: Sequence[Path],
    series_uid: str | None = None,
    channels: int = 0,
    listed: Path | None = None,
) -> list[Case]:
    """The cases of the inputs.

    series_uid: the series to take of a DICOM input. channels: how many the model takes, see
    `layouts.channels.group_channels`. listed: a file of names of cases, one a line; these alone are
    taken. Raises UserError, with all that is wrong, for a missing input, two cases of one name, a
    name that no input has, and a DICOM input in which a series must be chosen.
    """
    check_inputs(inputs)
    cases: dict[str, Case] = {}
    faults = Faults()
    wanted = None if listed is None else case_list(listed)
    for path in map(Path, inputs):
        found: list[Case] = []
        with faults.noting():
            found = _at(path, series_uid, channels, wanted)
        for case in found:
            first = cases.setdefault(case.name, case)
            # The same case again is fine: it was given twice, or by another of its channels.
            if (first.images, first.series_uid) != (case.images, case.series_uid):
                faults.add(
                    f"two inputs give the case name '{case.name}': {first.images[0]} and "
                    f"{case.images[0]}; rename one or predict them into different folders"
                )
    if wanted is not None and (missing := set(wanted) - cases.keys()) and not faults.messages:
        faults.add(f"{listed}: no input holds the cases {short_list(missing)}; correct the list")
    faults.tell()
    return [case for case in cases.values() if wanted is None or case.name in wanted]


def check_inputs(inputs: Sequence[Path]) -> None:
    """Raise UserError for inputs that are missing or in no known format; nothing is opened."""
    faults = Faults()
    for path in map(Path, inputs):
        with faults.noting():
            if not path.exists():
                raise UserError(f"{path} does not exist; give a scan or a folder of scans")
            formats.stem(path)
    faults.tell()


def _at(
    path: Path, series_uid: str | None, channels: int, wanted: Sequence[str] | None
) -> list[Case]:
    if series_uid is not None or (formats.is_dicom(path) and path.is_file()):
        return _series(path, series_uid)
    return _in_folder(path, channels, wanted) if path.is_dir() else [_single(path, channels)]


def _series(path: Path, series_uid: str | None = None) -> list[Case]:
    found = find_scans(path, series_uid)
    return [Case(name, (each.home,), series_uid=each.uid) for name, each in found.items()]


def _in_folder(folder: Path, channels: int, wanted: Sequence[str] | None) -> list[Case]:
    """The cases of a folder: those for testing, where it has such, since the others have labels."""
    scans = folder / "imagesTs"
    if wanted is None and (files := images_in(scans)):
        warn_left_out(scans, files)
        cases = group_channels(files, channels)
        _tell_choice(folder, "imagesTs", f"give {folder / 'imagesTr'} for those of imagesTr")
        return [Case(*each) for each in cases.items()]
    layout = detect(folder)
    if layout == "dicom":  # without its labels, of which `prepare` has much to say
        return _series(folder)
    if layout == "la-h5":
        names = test_names(folder) if wanted is None else list(wanted)
        if names and wanted is None:
            _tell_choice(folder, "test.list", "choose others with --cases train.list")
        return list(la_h5(folder, names or None).cases)
    return list(map(_named, find_source(folder, layout, channels).cases))


def _tell_choice(folder: Path, what: str, others: str) -> None:
    warnings.warn(
        f"{folder}: the cases of {what} are taken, no others; {others}", DataWarning, stacklevel=2
    )


def _single(path: Path, channels: int) -> Case:
    """The case of a file; NAME_0000 takes the files of its other channels with it."""
    ending = formats.suffix(path)
    name, ending = path.name[: -len(ending)], path.name[-len(ending) :]
    match = re.fullmatch(r"(.+)_\d{4}", name)
    if not match:
        return _named(Case(formats.stem(path), (path,)))
    sibling = re.compile(rf"{re.escape(match[1])}_\d{{4}}{re.escape(ending)}")
    files = [p for p in sorted(path.parent.iterdir()) if sibling.fullmatch(p.name) and p.is_file()]
    with data_warnings():  # this file was meant, whatever lies beside it
        cases = group_channels(files, channels)
    return next(Case(each, paths) for each, paths in cases.items() if path in paths)


def _named(case: Case) -> Case:
    common = case.name in COMMON_NAMES and not formats.is_dicom(case.images[0])
    return replace(case, name=case.images[0].absolute().parent.name) if common else case
