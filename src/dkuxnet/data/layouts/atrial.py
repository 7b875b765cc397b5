"""The 2018 Atrial Segmentation Challenge: the field's h5 benchmark, and the challenge's files."""

import os
import warnings
from collections.abc import Collection
from pathlib import Path

from dkuxnet.core.errors import DataWarning, Faults, UserError
from dkuxnet.core.types import Case, Source
from dkuxnet.data.checks import same_name
from dkuxnet.data.formats import has_own_label
from dkuxnet.data.layouts.files import case_list, short_list

BENCHMARK_FOLDER = "2018LA_Seg_Training Set"
CHANNELS = ("MRI",)


def la_h5(folder: Path, names: list[str] | None = None) -> Source:
    """`2018LA_Seg_Training Set/NAME/mri_norm2.h5` in the order of train.list.

    `folder` holds that folder or is it. Cases of test.list, the benchmark's test set, are left out.
    Without train.list all others are taken, sorted. names: take these instead.
    """
    scans, lists = _places(folder)
    chosen = names is not None
    names = _listed(lists / "train.list") if names is None else names
    test = test_names(folder)
    if names is None:
        names = sorted(
            path.parent.name
            for path in scans.glob("*/mri_norm2.h5")
            if path.parent.name not in test
        )
    faults = Faults()
    cases = []
    for name in names:
        with faults.noting():
            cases.append(_h5_case(scans, name))
    faults.tell()
    if not chosen:
        _warn_unlisted(scans, {*names, *test})
    return Source("la-h5", folder, tuple(cases), CHANNELS, {"background": 0, "LA": 1})


def la_challenge(folder: Path) -> Source:
    """A folder for each patient with lgemri.nrrd and, if labelled, laendo.nrrd (0 and 255).

    Cases are sorted by patient.
    """
    files = [*folder.glob("*/lgemri.nrrd"), *folder.glob("*/laendo.nrrd")]
    faults = Faults()
    cases = []
    for patient in sorted({path.parent for path in files}):
        with faults.noting():
            cases.append(_challenge_case(patient))
    faults.tell()
    patients = {case.name for case in cases}
    if others := [
        p.name for p in sorted(folder.iterdir()) if p.is_dir() and _is_other(p, patients)
    ]:
        warnings.warn(
            f"{folder}: left out, since they hold no lgemri.nrrd: {short_list(others, 20)}",
            DataWarning,
            stacklevel=2,
        )
    return Source("la-challenge", folder, tuple(cases), CHANNELS, {"background": 0, "LA": 255})


def test_names(folder: Path) -> list[str]:
    """The cases of test.list; empty where there is none."""
    return _listed(_places(folder)[1] / "test.list") or []


def _places(folder: Path) -> tuple[Path, Path]:
    """Where the scans lie, and where the lists do."""
    inside = (folder / BENCHMARK_FOLDER).is_dir()
    scans = folder / BENCHMARK_FOLDER if inside else folder
    return scans, folder.resolve().parent if folder.resolve().name == BENCHMARK_FOLDER else folder


def _listed(path: Path) -> list[str] | None:
    """The names in a list file; None where there is no such file."""
    return case_list(path) if os.path.isfile(path) else None


def _h5_case(scans: Path, name: str) -> Case:
    path = same_name(scans / name) / "mri_norm2.h5"
    if not os.path.isfile(path):
        raise UserError(
            f"{scans}: expected '{name}/mri_norm2.h5' by its list, but there is none; add it or "
            "remove the name"
        )
    return Case(name, (path,), path if has_own_label(path) else None)


def _challenge_case(patient: Path) -> Case:
    image, label = patient / "lgemri.nrrd", patient / "laendo.nrrd"
    if not image.is_file():
        raise UserError(
            f"{image}: expected the scan of {label.name}, but there is none; add it or remove the "
            "label"
        )
    other = next((p for p in sorted(patient.glob("laendo.*")) if p != label), None)
    if other and not label.is_file():
        raise UserError(f"{other}: expected this label map as {label.name}; convert or rename it")
    return Case(patient.name, (image,), label if label.is_file() else None)


def _is_other(folder: Path, patients: Collection[str]) -> bool:
    return not folder.name.startswith(".") and folder.name not in patients


def _warn_unlisted(scans: Path, listed: Collection[str]) -> None:
    found = [path.parent.name for path in scans.glob("*/mri_norm2.h5")]
    if others := [name for name in found if name not in listed]:
        warnings.warn(
            f"{scans}: left out, since neither train.list nor test.list names them: "
            f"{short_list(others, 20)}",
            DataWarning,
            stacklevel=2,
        )
