"""Raw scans -> prepared cases: checked, measured, planned, resampled, normalised, stored.

Two passes over the source. The first verifies every case and takes the fingerprint; the plan
follows from the fingerprint of the images alone, never from a label, nor from a case that is named
as a test case; the second resamples and stores. The folder appears under its name only when all of
it is there.
"""

import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dkuxnet.core.errors import DataWarning, UserError, disk_reason
from dkuxnet.core.types import Case, Source, Volume
from dkuxnet.data import formats
from dkuxnet.data.fingerprint import check_case, take_fingerprint
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.data.images import read_image
from dkuxnet.data.layouts import find_source
from dkuxnet.data.network_grid import to_network_grid
from dkuxnet.data.plan import make_plan
from dkuxnet.data.prepared_set import VERSION, write_array, write_bytes
from dkuxnet.data.splits import make_split
from dkuxnet.machine.processes import stopping_on_sigterm, workers

Progress = Callable[[str, int, int], None]  # what, done, of how many
MAX_VOXELS = 2**31  # of a prepared case: 8 GiB
MAX_CLASSES = 256  # class indices are stored in a byte
MAX_FOUND_LABELS = 64  # a label file with more values than this is a scan in the wrong folder


@stopping_on_sigterm()
def prepare_scans(
    source: Path,
    prepared: Path,
    spacing_mm: float | None = None,
    layout: str = "auto",
    processes: int = 2,
    progress: Progress | None = None,
    test_cases: int = 0,
    split: Path | None = None,
) -> dict[str, Any]:
    """Prepare the scans of `source` in a new folder `prepared`; returns what its dataset.json
    holds.

    spacing_mm: edge of the isotropic target voxel; None for the plan's own. test_cases, split: as
    in `data.splits.make_split`; the test list stays out of fingerprint and plan, and no training
    takes it for anything else. Raises UserError for anything wrong with the source, naming the
    case; nothing is left behind then. What is a little wrong is a DataWarning, and one of `notes`.
    """
    if spacing_mm is not None and not 0 < spacing_mm < math.inf:
        raise UserError(f"--spacing-mm must be a number above 0, got {spacing_mm}")
    prepared = Path(prepared)
    if prepared.exists():
        raise UserError(f"{prepared} exists already; choose another folder, or delete it first")
    found = find_source(Path(source), layout)
    held_back = kept_for_testing(found, test_cases, split) if test_cases or split else ()
    progress = progress or (lambda what, done, total: None)
    new_parents = [folder for folder in prepared.absolute().parents if not folder.exists()]
    partial_folder = _make_folder(prepared)
    try:
        with workers(processes) as map_:
            each = partial(_each, map_, progress)
            checks = each(partial(_check_noting, found), found.cases, "check")
            notes = [note for check in checks for note in check.pop("notes")]
            for note in notes:
                warnings.warn(note, DataWarning, stacklevel=2)
            labels = found.labels or _found_labels(checks)
            _check_values(checks, labels)
            fingerprint = take_fingerprint(
                [check for check in checks if check["name"] not in held_back]
            )
            _check_size(
                checks, [spacing_mm] * 3 if spacing_mm else fingerprint["spacing_mm_median"]
            )
            plan = make_plan(fingerprint, found.channels, spacing_mm)
            stored = each(
                partial(_store_quietly, found, labels, plan, partial_folder / "cases"),
                found.cases,
                "store",
            )
        meta = {
            "version": VERSION,
            "source": str(Path(source).resolve()),
            "layout": found.layout,
            "channels": list(found.channels),
            "labels": labels,
            "cases": [
                {
                    "name": case.name,
                    "labelled": case.label is not None,
                    "shape": list(shape),
                    "sha256": sha256,
                }
                for case, (shape, sha256) in zip(found.cases, stored, strict=True)
            ],
            "fingerprint": fingerprint,
            "plan": plan,
            "held_back": list(held_back),
            "notes": notes,
        }
        (partial_folder / "dataset.json").write_text(json.dumps(meta, indent=1), "utf-8")
        os.replace(partial_folder, prepared)
    except OSError as error:
        raise UserError(f"{prepared}: cannot write: {disk_reason(error)}") from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
        with suppress(OSError):  # the first one that is not empty stays, with all above it
            for folder in new_parents:
                folder.rmdir()
    return meta


def kept_for_testing(source: Source, test_cases: int, split: Path | None) -> tuple[str, ...]:
    """Names of the cases that are kept for testing.

    Raises UserError where the source does not have them.
    """
    labelled = [case.name for case in source.cases if case.label is not None]
    return make_split(
        [case.name for case in source.cases], labelled, test_cases=test_cases, file=split
    ).test


def store_case(
    source: Source, labels: dict[str, int], plan: dict[str, Any], folder: Path, case: Case
) -> tuple[tuple[int, ...], dict[str, str]]:
    """Resample, normalise and write one case into `folder`; its shape on the prepared grid, and
    for each of its files, by what follows NAME., the SHA-256.
    """
    image = read_image(case, len(source.channels))
    grid = to_network_grid(image, plan)
    sha256 = {"image.b2nd": write_array(folder / f"{case.name}.image.b2nd", grid.array)}
    if case.label is not None:
        truth = formats.read(case.label, kind="label")
        indices = np.zeros(truth.array.shape, np.uint8)
        for index, value in enumerate(labels.values()):
            indices[truth.array == value] = index
        sha256["truth.b2nd"] = write_array(folder / f"{case.name}.truth.b2nd", indices)
        ras = to_ras(Volume(indices, image.affine))
        label = resample_label(ras.array, grid.shape, len(labels))
        sha256["label.b2nd"] = write_array(folder / f"{case.name}.label.b2nd", label)
    info = {
        "name": case.name,
        "images": [str(path) for path in case.images],
        "oriented": all(map(formats.has_geometry, case.images)),
        "shape": list(image.shape),
        "affine": image.affine.tolist(),
        "spacing_mm": list(image.spacing_mm),
        "prepared_affine": grid.affine.tolist(),
    }
    sha256["json"] = write_bytes(folder / f"{case.name}.json", json.dumps(info, indent=1).encode())
    return grid.shape, sha256


def _make_folder(prepared: Path) -> Path:
    try:
        prepared.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{prepared.name}.", dir=prepared.parent))
        (folder / "cases").mkdir()
    except OSError as error:
        raise UserError(f"{prepared}: cannot write there: {disk_reason(error)}") from error
    folder.chmod(0o755)  # mkdtemp makes it private; the folder becomes the user's
    return folder


def _check_noting(source: Source, case: Case) -> dict[str, Any]:
    """`check_case`, and what it warned of as `notes`: a process of its own has nobody to tell it
    to.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        facts = check_case(source, case)
    return facts | {
        "notes": [str(each.message) for each in told if issubclass(each.category, DataWarning)]
    }


def _store_quietly(*job: Any) -> tuple[tuple[int, ...], dict[str, str]]:
    """`store_case`, without the warnings that the check gave already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return store_case(*job)


def _each(
    map_: Callable, progress: Progress, job: Callable, cases: Iterable[Case], what: str
) -> list:
    cases = list(cases)
    results = []
    try:
        for result in map_(job, cases):
            results.append(result)
            progress(what, len(results), len(cases))
    except (BrokenProcessPool, MemoryError) as error:
        killed = "a process was killed, as happens where memory runs out"
        why = "too little memory" if isinstance(error, MemoryError) else killed
        name = cases[len(results)].name
        raise UserError(
            f"case '{name}' or one after it: {why}; use --processes 1 or a coarser --spacing-mm"
        ) from error
    return results


def _found_labels(checks: list[dict[str, Any]]) -> dict[str, int]:
    values = {0} | {v for c in checks for v in c.get("label_counts", {})}
    if len(values) > MAX_FOUND_LABELS:
        raise UserError(
            f"{len(values)} different label values: these are not label maps; check the labels "
            "folder"
        )
    return {
        "background" if v == 0 else f"class_{v}": v
        for v in sorted(values, key=lambda v: (v != 0, v))
    }


def _check_values(checks: list[dict[str, Any]], labels: dict[str, int]) -> None:
    known = set(labels.values())
    if min(known) < 0 or len(known) > MAX_CLASSES:
        raise UserError(
            f"the label values {sorted(known)} are not those of a label map: 0 is background, the "
            "others are "
            f"above it, {MAX_CLASSES} at most"
        )
    for check in checks:
        for value, count in check.get("label_counts", {}).items():
            if value not in known:
                raise UserError(
                    f"case '{check['name']}': {count} voxels have the label value {value}, which "
                    "is not in the "
                    f"label map {labels}; correct the label or the map"
                )
    if len(labels) < 2 or not any("label_counts" in check for check in checks):
        raise UserError(
            "no label but the background: nothing to learn; at least one labelled case is needed"
        )


def _check_size(checks: list[dict[str, Any]], spacing_mm: list[float]) -> None:
    for check in checks:
        voxels = math.prod(
            n * s / t
            for n, s, t in zip(check["shape"], check["spacing_mm"], spacing_mm, strict=True)
        )
        if voxels > MAX_VOXELS:
            raise UserError(
                f"case '{check['name']}': {voxels:.2g} voxels at {spacing_mm} mm, more than "
                f"{MAX_VOXELS:.2g}; "
                "choose a coarser --spacing-mm"
            )
