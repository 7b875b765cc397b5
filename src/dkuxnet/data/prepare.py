"""Raw scans -> prepared cases: checked, measured, planned, resampled, normalised, stored.

Two passes over the source. The first verifies every case and takes the fingerprint; the plan
follows from the fingerprint of the images alone, never from a label, nor from a case that is named
as a test case; the second resamples and stores. The folder appears under its name only when all of
it is there.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import DataWarning, Faults, UserError, data_warnings
from dkuxnet.core.schemas import (
    LEAST_MM,
    MAX_EDGE,
    MAX_VOXELS,
    MOST_MM,
    Fingerprint,
    Plan,
    Prepared,
    PreparedCase,
    PreparedInfo,
)
from dkuxnet.core.types import Case, CaseProgress, Source, Volume
from dkuxnet.data import formats
from dkuxnet.data.fingerprint import CaseFigures, check_case, take_fingerprint
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.data.images import read_image
from dkuxnet.data.labels import MAX_CLASSES, MAX_FOUND_LABELS, read_label, with_classes
from dkuxnet.data.layouts import find_source
from dkuxnet.data.layouts.files import MAX_LABEL, short_list
from dkuxnet.data.network_grid import to_network_grid
from dkuxnet.data.plan import make_plan, plan_coarse
from dkuxnet.data.prepared_set import COARSE, VERSION, PreparedSet, write_array, write_bytes
from dkuxnet.data.splits import make_split
from dkuxnet.machine.files import whole_folder, write_json
from dkuxnet.machine.processes import stopping_on_sigterm, workers

Result = TypeVar("Result")
USUAL_MM = 5.0, 5000.0  # longest edge of a scan, from a mouse's heart to a tall patient


@stopping_on_sigterm()
def prepare_scans(
    source: StrPath,
    prepared: StrPath,
    spacing_mm: float | Sequence[float] | None = None,
    layout: str = "auto",
    processes: int = 2,
    progress: CaseProgress | None = None,
    test_cases: int = 0,
    split: StrPath | None = None,
    coarse_mm: float | Sequence[float] | Literal["auto"] | None = "auto",
) -> Prepared:
    """Prepare the scans of `source` in a new folder `prepared`; returns its description.

    spacing_mm: edge of the target voxel, or its three edges in RAS order; None for the plan's own.
    coarse_mm: likewise, of a coarse stage that comes first: "auto" for what `plan.plan_coarse`
    says, None for no such stage.
    test_cases, split: as in `data.splits.make_split`; the test list stays out of fingerprint and
    plan, and no training takes it for anything else. Raises UserError for anything wrong with the
    source, naming the case; nothing is left behind then. What is a little wrong is a DataWarning,
    and one of `notes`.
    """
    chosen = None if spacing_mm is None else _edges(spacing_mm)
    source, prepared, split = Path(source), Path(prepared), Path(split) if split else None
    if prepared.exists():
        raise UserError(f"{prepared} exists already; choose another folder, or delete it first")
    with data_warnings() as notes:
        found = with_classes(find_source(source, layout))
    held_back = kept_for_testing(found, test_cases, split) if test_cases or split else ()
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    with whole_folder(prepared) as folder, workers(processes) as map_:
        each = partial(_each, map_, progress or (lambda what, done, total: None))
        checked = each(partial(_check_noting, found), found.cases, "check")
        checks = [figures for figures, _, _ in checked if figures is not None]
        notes += _told(checked, _unknown_values(checks, found.labels))
        labels = found.labels or _found_labels(checks)
        _check_values(checks, labels)
        notes += _odd(checks, labels, held_back)
        fingerprint = take_fingerprint([each for each in checks if each.name not in held_back])
        spacing = chosen or fingerprint.spacing_mm_median
        _check_size(checks, spacing)
        grids = {folder: spacing}
        if coarse := _coarse_edges(coarse_mm, fingerprint, spacing):
            grids[folder / COARSE] = coarse
        plans = {at: make_plan(fingerprint, found.channels, mm) for at, mm in grids.items()}
        for at in plans:
            (at / "cases").mkdir(parents=True)
        stored = each(partial(_store_noting, found, labels, plans), found.cases, "store")
        notes += _told([(case, lost, None) for case, lost in stored])
        for at, plan in plans.items():
            described = Prepared(
                version=VERSION,
                source=str(source.resolve()),
                layout=found.layout,
                channels=list(found.channels),
                labels=labels,
                cases=[cases[at] for cases, _ in stored],
                fingerprint=fingerprint,
                plan=plan,
                held_back=held_back,
                notes=notes,
            )
            write_json(at / "dataset.json", described.to_json())
    return PreparedSet(prepared).meta


def kept_for_testing(source: Source, test_cases: int, split: Path | None) -> tuple[str, ...]:
    """Names of the cases that are kept for testing.

    Raises UserError where the source does not have them.
    """
    labelled = [case.name for case in source.cases if case.label is not None]
    return make_split(
        [case.name for case in source.cases], labelled, test_cases=test_cases, file=split
    ).test


def store_case(
    source: Source, labels: dict[str, int], plans: Mapping[Path, Plan], case: Case
) -> dict[Path, PreparedCase]:
    """Resample, normalise and write one case into each folder, as its plan says.

    Gives a DataWarning where a class of the label map is not there any more at a plan's spacing.
    """
    image, truth = read_image(case, len(source.channels)), None
    if case.label is not None:
        scan = f"the image {case.images[0].name}", image
        values = read_label(case.name, case.label, scan, source.labels).array
        truth = np.zeros(values.shape, np.uint8)
        for index, value in enumerate(labels.values()):
            truth[values == value] = index
    return {
        folder: _store_at(case, image, truth, list(labels), plan, folder / "cases")
        for folder, plan in plans.items()
    }


def _store_at(
    case: Case,
    image: Volume,
    truth: np.ndarray | None,
    classes: Sequence[str],
    plan: Plan,
    folder: Path,
) -> PreparedCase:
    """Store a case on the grid of one plan. truth: class indices (X, Y, Z) on the scan's grid."""
    grid = to_network_grid(image, plan)
    arrays = {"image": grid.array}
    if truth is not None:
        ras = to_ras(Volume(truth, image.affine))
        arrays["truth"] = truth
        arrays["label"] = resample_label(ras.array, grid.shape, len(classes))
        _warn_lost(case, truth, arrays["label"], classes, plan)
    info = PreparedInfo(
        name=case.name,
        images=[str(path.absolute()) for path in case.images],
        oriented=all(map(formats.has_geometry, case.images)),
        shape=image.shape,
        affine=image.affine.tolist(),
        spacing_mm=image.spacing_mm,
        prepared_affine=grid.affine.tolist(),
        nifti=image.nifti.hex(),
    )
    sha256 = {
        f"{kind}.b2nd": write_array(folder / f"{case.name}.{kind}.b2nd", array)
        for kind, array in arrays.items()
    }
    described = json.dumps(info.to_json(), indent=1).encode()
    sha256["json"] = write_bytes(folder / f"{case.name}.json", described)
    labelled = case.label is not None
    return PreparedCase(name=case.name, labelled=labelled, shape=grid.shape, sha256=sha256)


def _warn_lost(
    case: Case, truth: np.ndarray, label: np.ndarray, classes: Sequence[str], plan: Plan
) -> None:
    before, after = (np.bincount(part.ravel(), minlength=len(classes)) for part in (truth, label))
    edges = " x ".join(f"{edge:g}" for edge in plan.spacing_mm)
    for name, count, left in zip(classes, before, after, strict=True):
        if count and not left:
            warnings.warn(
                f"case '{case.name}': all {count} voxels of '{name}' are lost at {edges} mm: "
                "nothing can be learnt from them; choose a finer --spacing-mm",
                LostWarning,
                stacklevel=2,
            )


class LostWarning(DataWarning):
    """A class of a case is too small for the spacing."""


def _check_noting(source: Source, case: Case) -> tuple[CaseFigures | None, list[str], str | None]:
    """`check_case`, its warnings and its fault: a process of its own has nobody to tell them to."""
    figures, fault = None, None
    with data_warnings() as notes:
        try:
            figures = check_case(source, case)
        except UserError as error:
            fault = str(error)
    return figures, notes, fault


def _store_noting(
    source: Source, labels: dict[str, int], plans: Mapping[Path, Plan], case: Case
) -> tuple[dict[Path, PreparedCase], list[str]]:
    """`store_case`, and its warnings but for those that the check gave already."""
    with data_warnings(LostWarning) as notes:
        return store_case(source, labels, plans, case), notes


def _told(
    done: Sequence[tuple[object, list[str], str | None]], more: Sequence[str] = ()
) -> list[str]:
    """Warn of all notes, which are returned. Raises UserError for all faults and for `more`."""
    notes, faults = [note for _, told, _ in done for note in told], Faults()
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=3)
    for fault in [*(fault for _, _, fault in done if fault is not None), *more]:
        faults.add(fault)
    faults.tell()
    return notes


def _each(
    map_: Callable[..., Iterator[Result]],
    progress: CaseProgress,
    job: Callable[[Case], Result],
    cases: Sequence[Case],
    what: str,
) -> list[Result]:
    results: list[Result] = []
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


def _found_labels(checks: Sequence[CaseFigures]) -> dict[str, int]:
    values = {0} | {value for check in checks for value in check.label_counts or ()}
    if len(values) > MAX_FOUND_LABELS:
        most = max(checks, key=lambda check: len(check.label_counts or ()))
        raise UserError(
            f"{len(values)} different label values, {len(most.label_counts or ())} of them in case "
            f"'{most.name}': these are not label maps; check the labels folder"
        )
    return {"background": 0} | {f"class_{value}": value for value in sorted(values - {0})}


def _unknown_values(checks: Sequence[CaseFigures], labels: Mapping[str, int] | None) -> list[str]:
    """A sentence for each value of a case that `labels` does not name; None names all."""
    return [
        f"case '{check.name}': {count} voxels have the label value {value}, which is not in the "
        f"label map {labels}; correct the label or the map"
        for check in checks
        for value, count in (check.label_counts or {}).items()
        if labels is not None and value not in labels.values()
    ]


def _check_values(checks: Sequence[CaseFigures], labels: dict[str, int]) -> None:
    known = set(labels.values())
    if min(known) < 0 or len(known) > MAX_CLASSES:
        having = [c.name for c in checks if min(c.label_counts or {0: 0}) < 0]
        where = f" (below 0 in case {short_list(map(repr, having))})" if having else ""
        raise UserError(
            f"the label values {sorted(known)} are not those of a label map{where}: 0 is "
            f"background, the others are above it, {MAX_CLASSES} at most"
        )
    if max(known) > MAX_LABEL:
        having = [c.name for c in checks if max(c.label_counts or {0: 0}) > MAX_LABEL]
        raise UserError(
            f"case {short_list(map(repr, having))}: the label values {sorted(known)} are too large "
            f"for a label map: {MAX_LABEL} at most; correct the label"
        )
    if not any(check.label_counts is not None for check in checks):
        raise UserError(
            "no case has a label map, but at least one labelled case is needed; put one under the "
            "name of its scan into a folder 'labels', or as the layout of the data set has it"
        )
    if len(labels) < 2:
        raise UserError(
            "no label but the background: nothing to learn; at least one labelled case is needed"
        )


def _edges(
    spacing_mm: float | Sequence[float], option: str = "--spacing-mm"
) -> tuple[float, float, float]:
    """The three edges of a voxel. Raises UserError where there are none."""
    edges = [spacing_mm] if isinstance(spacing_mm, int | float) else list(spacing_mm)
    edges = edges * 3 if len(edges) == 1 else edges
    if len(edges) != 3 or not all(0 < edge < math.inf for edge in edges):
        raise UserError(
            f"{option} must be a number above 0, or three with commas between them, got "
            f"{','.join(map(str, edges))}"
        )
    x, y, z = edges
    return x, y, z


def _coarse_edges(
    asked: float | Sequence[float] | Literal["auto"] | None,
    fingerprint: Fingerprint,
    spacing_mm: tuple[float, float, float],
) -> tuple[float, float, float] | None:
    """The spacing of the coarse stage, None for none. Raises UserError for one that is finer."""
    if asked is None:
        return None
    if asked == "auto":
        return plan_coarse(fingerprint, spacing_mm)
    coarse = _edges(asked, "--coarse-mm")
    finer = any(c < s for c, s in zip(coarse, spacing_mm, strict=True))
    if finer or coarse == spacing_mm:
        raise UserError(
            f"--coarse-mm: {list(coarse)} mm is not coarser than the {list(spacing_mm)} mm of the "
            "fine stage"
        )
    if max(coarse) > MOST_MM:
        raise UserError(f"--coarse-mm: {MOST_MM:g} mm at most, got {list(coarse)}")
    return coarse


def _odd(
    checks: Sequence[CaseFigures], labels: dict[str, int], held_back: Sequence[str]
) -> list[str]:
    """Sentences about what is odd in the set as a whole; each is a DataWarning too."""
    told = (_classes_nobody_labelled(checks, labels, held_back), _odd_sizes(checks))
    for sentence in filter(None, told):
        warnings.warn(sentence, DataWarning, stacklevel=3)
    return list(filter(None, told))


def _classes_nobody_labelled(
    checks: Sequence[CaseFigures], labels: dict[str, int], held_back: Sequence[str]
) -> str:
    """The sentence about classes that no labelled case for training has; "" without any."""
    cases = [c for c in checks if c.label_counts is not None and c.name not in held_back]
    seen = {value for case in cases for value in case.label_counts or ()}
    absent = [name for name, value in labels.items() if value not in seen | {0}]
    if not absent or not cases:
        return ""
    names = ", ".join(f"'{name}'" for name in absent)
    what = "any foreground" if len(absent) == len(labels) - 1 else names
    return (
        f"none of the {len(cases)} label maps for training has {what}; a network cannot learn to "
        "find what it is never shown"
    )


def _odd_sizes(checks: Sequence[CaseFigures]) -> str:
    """The sentence about scans whose unit is hardly mm; "" without any."""
    longest = {c.name: float(np.multiply(c.shape, c.spacing_mm).max()) for c in checks}
    odd = [name for name, mm in longest.items() if not USUAL_MM[0] <= mm <= USUAL_MM[1]]
    if not odd:
        return ""
    return (
        f"{len(odd)} of {len(checks)} scans are far from a patient's size, such as '{odd[0]}' of "
        f"{longest[odd[0]]:.3g} mm; look at the unit of their headers"
    )


def _check_size(checks: Sequence[CaseFigures], spacing_mm: Sequence[float]) -> None:
    if not all(LEAST_MM <= edge <= MOST_MM for edge in spacing_mm):
        other = "coarser" if min(spacing_mm) < LEAST_MM else "finer"
        raise UserError(
            f"voxels of {list(spacing_mm)} mm: {LEAST_MM} to {MOST_MM:g} mm are possible; look at "
            f"the unit of the scans' headers, or choose a {other} --spacing-mm"
        )
    faults = Faults()
    for check in checks:
        extent = np.multiply(check.shape, check.spacing_mm)
        shape = (extent / spacing_mm).tolist()
        if math.prod(shape) > MAX_VOXELS or max(*shape, *check.shape) > MAX_EDGE:
            faults.add(
                f"case '{check.name}': {math.prod(shape):.2g} voxels at {list(spacing_mm)} mm, at "
                f"most {MAX_VOXELS:.2g}, and {MAX_EDGE} along an edge, are possible; choose a "
                "coarser --spacing-mm"
            )
    faults.tell()
