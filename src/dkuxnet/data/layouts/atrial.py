"""The 2018 Atrial Segmentation Challenge: the field's h5 benchmark, and the challenge's files."""

import os
from pathlib import Path

from dkuxnet.core.documents import MAX_BYTES, names_a_file, read_text
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Case, Source
from dkuxnet.data.formats import has_own_label

BENCHMARK_FOLDER = "2018LA_Seg_Training Set"
CHANNELS = ("MRI",)


def la_h5(folder: Path) -> Source:
    """`2018LA_Seg_Training Set/NAME/mri_norm2.h5` in the order of train.list.

    `folder` holds that folder or is it. Cases of test.list, the benchmark's test set, are left out.
    Without train.list all others are taken, sorted.
    """
    inside = (folder / BENCHMARK_FOLDER).is_dir()
    scans = folder / BENCHMARK_FOLDER if inside else folder
    lists = folder.resolve().parent if folder.resolve().name == BENCHMARK_FOLDER else folder
    names = _listed(lists / "train.list")
    if names is None:
        test = set(_listed(lists / "test.list") or ())
        names = sorted(
            path.parent.name
            for path in scans.glob("*/mri_norm2.h5")
            if path.parent.name not in test
        )
    cases = tuple(_h5_case(scans, name) for name in names)
    return Source("la-h5", folder, cases, CHANNELS, {"background": 0, "LA": 1})


def la_challenge(folder: Path) -> Source:
    """A folder for each patient with lgemri.nrrd and, if labelled, laendo.nrrd (0 and 255).

    Cases are sorted by patient.
    """
    files = [*folder.glob("*/lgemri.nrrd"), *folder.glob("*/laendo.nrrd")]
    cases = tuple(_challenge_case(patient) for patient in sorted({path.parent for path in files}))
    return Source("la-challenge", folder, cases, CHANNELS, {"background": 0, "LA": 255})


def _listed(path: Path) -> list[str] | None:
    """The names in a list file, one a line; None where there is no such file."""
    if not os.path.isfile(path):
        return None
    try:
        lines = [line.strip() for line in read_text(path, MAX_BYTES).splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a list of case names, but it cannot be read ({error}); repair it"
        ) from error
    if wrong := next((line for line in lines if line and not names_a_file(line)), None):
        raise UserError(f"{path}: expected names of folders, one a line, got {wrong!r}; correct it")
    return [line for line in lines if line]


def _h5_case(scans: Path, name: str) -> Case:
    path = scans / name / "mri_norm2.h5"
    if not os.path.isfile(path):
        raise UserError(
            f"{scans}: expected '{name}/mri_norm2.h5' by train.list, but there is none; add it or "
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
    return Case(patient.name, (image,), label if label.is_file() else None)
