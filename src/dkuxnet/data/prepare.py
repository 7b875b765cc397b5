"""Raw scans -> prepared cases: checked, measured, planned, resampled, normalised, stored.

Two passes over the source. The first verifies every case and takes the fingerprint; the plan
follows from the fingerprint of the images alone, never from a label, nor from a case that is named
as a test case; the second resamples and stores. The folder appears under its name only when all of
it is there.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import DataWarning, Faults, UserError, data_warnings
from dkuxnet.core.schemas import LEAST_MM, MAX_EDGE, MAX_VOXELS, MOST_MM, Fingerprint, Prepared
from dkuxnet.core.types import CaseProgress, Source
from dkuxnet.data.fingerprint import CaseFigures, take_fingerprint
from dkuxnet.data.labels import MAX_CLASSES, MAX_FOUND_LABELS, with_classes
from dkuxnet.data.layouts import find_source
from dkuxnet.data.layouts.files import MAX_LABEL, short_list
from dkuxnet.data.outlined import check_cases, check_outlined
from dkuxnet.data.parts import CHECKED, parts_of, stored_in
from dkuxnet.data.plan import make_plan, plan_coarse
from dkuxnet.data.prepared_set import COARSE, VERSION, PreparedSet
from dkuxnet.data.raters import with_raters
from dkuxnet.data.splits import make_split
from dkuxnet.data.storing import check_noting, each_case, store_noting, told
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
    shard: tuple[int, int] | None = None,
    rater: str | None = None,
) -> Prepared:
    """Prepare the scans of `source` in a new folder `prepared`; returns its description.

    spacing_mm: edge of the target voxel, or its three edges in RAS order; None for the plan's own.
    coarse_mm: likewise, of a coarse stage that comes first: "auto" for what `plan.plan_coarse`
    says, None for no such stage.
    rater: whose labels are taken where several labelled a scan, see `data.raters`.
    test_cases, split: as in `data.splits.make_split`; the test list stays out of fingerprint and
    plan, and no training takes it for anything else. Raises UserError for anything wrong with the
    source, naming the case; nothing is left behind then. What is a little wrong is a DataWarning,
    and one of `notes`.

    Stopped or killed, it goes on where it was when it is asked for the same again. shard: (2, 8)
    does the second eighth of the cases, waits for the others while they get on, and what they did
    together appears as one folder, see `data.parts`.
    """
    chosen = None if spacing_mm is None else _edges(spacing_mm)
    source, prepared, split = Path(source), Path(prepared), Path(split) if split else None
    if prepared.exists():
        todo = "choose another folder, or delete it first"
        if shard:
            todo = f"the shards may have finished it, or it is another set: then {todo}"
        raise UserError(f"{prepared} exists already; {todo}")
    with data_warnings() as notes:
        found = with_classes(with_raters(find_source(source, layout), rater))
    check_cases(found)
    held_back = kept_for_testing(found, test_cases, split) if test_cases or split else ()
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    asked = _asked(found, rater, [chosen, coarse_mm], held_back)
    with parts_of(prepared, shard, asked) as parts, workers(processes) as map_:
        each = partial(each_case, map_, progress or (lambda *told: None))
        checked = parts.each("check", each, partial(check_noting, found), found.cases, CHECKED)
        checks = [figures for figures, _, _ in checked if figures is not None]
        notes += told(checked, unknown_values(checks, found.named_values))
        labels = found.labels or _found_labels(checks)
        _check_values(checks, labels, found.ignore)
        check_outlined(checks, found, labels)
        notes += _odd(checks, labels, held_back)
        fingerprint = take_fingerprint([each for each in checks if each.name not in held_back])
        spacing = chosen or fingerprint.spacing_mm_median
        check_size(checks, spacing)
        grids = {parts.folder: spacing}
        if coarse := _coarse_edges(coarse_mm, fingerprint, spacing):
            grids[parts.folder / COARSE] = coarse
        plans = {at: make_plan(fingerprint, found.channels, mm) for at, mm in grids.items()}
        for at in plans:
            (at / "cases").mkdir(parents=True, exist_ok=True)
        store, form = partial(store_noting, found, labels, plans), stored_in(parts.folder)
        key = [labels, *(plan.model_dump(mode="json") for plan in plans.values())]
        stored = parts.each("store", each, store, found.cases, form, key)
        notes += told([(case, lost, None) for case, lost in stored])
        about = _about(found, labels, rater) | {"held_back": held_back, "notes": notes}
        cases = {at: [cases[at] for cases, _ in stored] for at in plans}
        parts.finish(
            {
                at: Prepared(cases=cases[at], fingerprint=fingerprint, plan=plan, **about)
                for at, plan in plans.items()
            }
        )
    return PreparedSet(prepared).meta


def _asked(
    source: Source, rater: str | None, spacing: Sequence[object], held_back: Sequence[str]
) -> dict[str, Any]:
    """What all processes of a preparation must agree on, see `data.parts`."""
    return {
        "source": str(source.folder.resolve()),
        "version of dkuxnet": metadata.version("dkuxnet"),
        "layout": source.layout,
        "channels": source.channels,
        "labels": source.named_values,
        "meaning of labels": [{**source.regions}, {**source.same}, {**source.not_labelled}, rater],
        "spacing": spacing,
        "test list": held_back,
        "list of cases": [case.name for case in source.cases],
    }


def _about(source: Source, labels: dict[str, int], rater: str | None) -> dict[str, Any]:
    """What a description says of source and labels; of these only what there is to say."""
    more = {"ignore": source.ignore, "regions": dict(source.regions) or None, "rater": rater}
    return {
        "version": VERSION,
        "source": str(source.folder.resolve()),
        "layout": source.layout,
        "channels": list(source.channels),
        "labels": labels,
        **{key: value for key, value in more.items() if value is not None},
    }


def kept_for_testing(source: Source, test_cases: int, split: Path | None) -> tuple[str, ...]:
    """Names of the cases that are kept for testing.

    Raises UserError where the source does not have them.
    """
    labelled = [case.name for case in source.cases if case.label is not None]
    return make_split(
        [case.name for case in source.cases], labelled, test_cases=test_cases, file=split
    ).test


def _found_labels(checks: Sequence[CaseFigures]) -> dict[str, int]:
    values = {0} | {value for check in checks for value in check.label_counts or ()}
    if len(values) > MAX_FOUND_LABELS:
        most = max(checks, key=lambda check: len(check.label_counts or ()))
        raise UserError(
            f"{len(values)} different label values, {len(most.label_counts or ())} of them in case "
            f"'{most.name}': these are not label maps; check the labels folder"
        )
    return {"background": 0} | {f"class_{value}": value for value in sorted(values - {0})}


def unknown_values(checks: Sequence[CaseFigures], labels: Mapping[str, int] | None) -> list[str]:
    """A sentence for each value of a case that `labels` does not name; None names all."""
    return [
        f"case '{check.name}': {count} voxels have the label value {value}, which is not in the "
        f"label map {labels}; correct the label or the map"
        for check in checks
        for value, count in (check.label_counts or {}).items()
        if labels is not None and value not in labels.values()
    ]


def _check_values(
    checks: Sequence[CaseFigures], labels: dict[str, int], ignore: int | None = None
) -> None:
    known = {*labels.values()} | ({ignore} if ignore is not None else set())
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


def check_size(checks: Sequence[CaseFigures], spacing_mm: Sequence[float]) -> None:
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
