"""The cases in the inputs of a prediction: scans, folders in any layout, DICOM."""

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
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
Key = tuple[str, str]  # the name of a file before the number of its channel, and its ending


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
    faults, named_alike = Faults(), cache(_named_alike)
    scans = cache(lambda folder, key: _scans_of(named_alike(folder)[key], channels))
    wanted = None if listed is None else dict.fromkeys(case_list(listed))
    for path in map(Path, inputs):
        found: list[Case] = []
        with faults.noting():
            if series_uid is not None or (formats.is_dicom(path) and path.is_file()):
                found = _series(path, series_uid)
            elif path.is_dir():
                found = _in_folder(path, channels, wanted)
            else:
                found = [_single(path, scans)]
        for case in found:
            first = cases.setdefault(case.name, case)
            # The same case again is fine: it was given twice, or by another of its channels.
            if (first.images, first.series_uid) != (case.images, case.series_uid):
                faults.add(
                    f"two inputs give the case name '{case.name}': {first.images[0]} and "
                    f"{case.images[0]}; rename one or predict them into different folders"
                )
    if wanted is not None and (missing := wanted.keys() - cases.keys()) and not faults.messages:
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


def _series(path: Path, series_uid: str | None = None) -> list[Case]:
    found = find_scans(path, series_uid)
    return [Case(name, (each.home,), series_uid=each.uid) for name, each in found.items()]


def _in_folder(folder: Path, channels: int, wanted: Collection[str] | None) -> list[Case]:
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


def _single(path: Path, scans: Callable[[Path, Key], dict[Path, Case]]) -> Case:
    """The case of a file; NAME_0000 takes the files of its other channels with it."""
    key = _channel_of(path)
    found = scans(path.parent, key).get(path) if key else None  # a pipe is in none
    return found or _named(Case(formats.stem(path), (path,)))


def _scans_of(files: Sequence[Path], channels: int) -> dict[Path, Case]:
    """File -> its case, of files of one name that end with numbers."""
    with data_warnings():  # one of them was meant, whatever lies beside it
        cases = group_channels([path for path in files if path.is_file()], channels)
    return {path: Case(name, paths) for name, paths in cases.items() for path in paths}


def _named_alike(folder: Path) -> dict[Key, list[Path]]:
    """The files of a folder whose names end with numbers of channels, sorted."""
    found: dict[Key, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if key := _channel_of(path):
            found.setdefault(key, []).append(path)
    return found


def _channel_of(path: Path) -> Key | None:
    """NAME_0000.nii.gz -> NAME and .nii.gz as written; None for other names."""
    known = formats.longest_suffix(path.name, formats.READABLE)
    match = re.fullmatch(r"(.+)_\d{4}", path.name[: -len(known)]) if known else None
    return (match[1], path.name[-len(known) :]) if known and match else None


def _named(case: Case) -> Case:
    common = case.name in COMMON_NAMES and not formats.is_dicom(case.images[0])
    return replace(case, name=case.images[0].absolute().parent.name) if common else case
