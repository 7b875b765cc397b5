"""New scans and labels into a prepared set: what is there already stays as it is.

The plan stays too, so that runs trained on the set can be begun with and gone on with. What was
stored stands in dataset.json last; stopped before that, the set is as it was, but for cases whose
label is new, which the next update stores again.
"""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import DataWarning, UserError, data_warnings
from dkuxnet.core.schemas import PreparedCase
from dkuxnet.core.types import IGNORE, Case, CaseProgress, Source
from dkuxnet.data.images import read_image
from dkuxnet.data.labels import with_classes
from dkuxnet.data.layouts import find_source
from dkuxnet.data.layouts.files import short_list
from dkuxnet.data.outlined import check_cases, check_outlined
from dkuxnet.data.prepare import check_size, unknown_values
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.raters import with_raters
from dkuxnet.data.storing import check_noting, each_case, labels_of_case, store_noting, told
from dkuxnet.machine.files import write_json
from dkuxnet.machine.processes import stopping_on_sigterm, workers


@dataclass(frozen=True)
class Update:
    """Names of the cases that were added, and of those that were there and got another label."""

    added: tuple[str, ...]
    labelled: tuple[str, ...]


@stopping_on_sigterm()
def update_prepared(
    source: StrPath, prepared: StrPath, processes: int = 2, progress: CaseProgress | None = None
) -> Update:
    """Bring a prepared set up to date with its source.

    A scan that was there is not read again unless a label of it is newer than the set and says
    something else. Raises UserError for anything wrong with what is new, and where channels or
    labels are others; nothing is changed then. Cases that the source has no more stay, with a
    DataWarning.
    """
    data = PreparedSet(Path(prepared))
    stages = [PreparedSet(data.coarse)] if data.coarse else []
    with data_warnings() as notes:
        found = find_source(Path(source), data.meta.layout or "auto")
        found = with_classes(with_raters(found, data.meta.rater))
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    found = _described_alike(found, data)
    check_cases(found)
    new = [case for case in found.cases if _is_new(case, found, data)]
    with workers(processes) as map_:
        each = partial(each_case, map_, progress or (lambda what, done, total: None))
        checked = list(each(partial(check_noting, found), new, "check"))
        checks = [figures for figures, _, _ in checked if figures is not None]
        told(checked, unknown_values(checks, found.named_values))
        check_outlined(checks, found, data.meta.labels)
        check_size(checks, data.meta.plan.spacing_mm)
        plans = {each.folder: each.meta.plan for each in (*stages, data)}
        stored = list(each(partial(store_noting, found, data.meta.labels, plans), new, "store"))
    told([(case, lost, None) for case, lost in stored])
    for stage in (*stages, data):
        _describe(stage, [cases[stage.folder] for cases, _ in stored])
    before = set(data.names)
    return Update(
        tuple(case.name for case in new if case.name not in before),
        tuple(case.name for case in new if case.name in before),
    )


def _described_alike(found: Source, data: PreparedSet) -> Source:
    """The source with the labels of the set. Raises UserError where it is of another kind."""
    meta = data.meta
    if list(found.channels) != meta.channels:
        raise UserError(
            f"{found.folder} has the channels {list(found.channels)}, but {data.folder} was "
            f"prepared with {meta.channels}; prepare a new folder"
        )
    more = "" if meta.ignore is None else f" and '{IGNORE}' {meta.ignore}"
    theirs = found.labels, found.ignore, {**found.regions}
    if found.labels is not None and theirs != (meta.labels, meta.ignore, meta.regions):
        raise UserError(
            f"{found.folder} has the labels {found.named_values}, but {data.folder} was prepared "
            f"with {meta.labels}{more}; prepare a new folder"
        )
    if gone := set(data.names) - {case.name for case in found.cases}:
        warnings.warn(
            f"{found.folder} has no case {short_list(map(repr, gone))} any more; what was prepared "
            "of it stays",
            DataWarning,
            stacklevel=3,
        )
    return replace(found, labels=meta.labels)


def _is_new(case: Case, found: Source, data: PreparedSet) -> bool:
    """Whether a case, or what its label says, is not in the set."""
    if case.name not in data.names:
        return True
    if case.label is None:
        return False
    if case.name not in data.names_with_label:
        return True
    if found.not_labelled.get(case.name, ()) != data.not_labelled(case.name):
        return True
    files = [path.stat() for path in {case.label, *case.raters}]
    changed = max(max(file.st_mtime, file.st_ctime) for file in files)
    if changed <= (data.folder / "dataset.json").stat().st_mtime:
        return False
    image = read_image(case, len(found.channels))
    labels = labels_of_case(case, image, data.meta.labels, found)
    same = (len(labels.raters), labels.agreement) == data.raters(case.name)
    stored = data.array(case.name, "truth")
    return not same or labels.truth is None or not np.array_equal(labels.truth, stored)


def _describe(data: PreparedSet, stored: list[PreparedCase]) -> None:
    """Write dataset.json: cases that were there, new ones, those that are kept for testing.

    The last labelled ones are thus still those for testing (`data.test_cases`).
    """
    cases = {case.name: case for case in (*data.meta.cases, *stored)}
    ordered = sorted(cases.values(), key=lambda case: case.name in data.meta.held_back)
    described = data.meta.model_copy(update={"cases": ordered})
    write_json(data.folder / "dataset.json", described.to_json())
