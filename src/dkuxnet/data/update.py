"""New scans and labels into a prepared set: what is there already stays as it is.

The plan stays too, so that runs trained on the set can be begun with and gone on with. What was
stored stands in dataset.json last; stopped before that, the set is as it was, but for cases whose
label is new, which the next update stores again.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import DataWarning, UserError, data_warnings
from dkuxnet.core.schemas import PreparedCase
from dkuxnet.core.types import Case, CaseProgress, Source
from dkuxnet.data.images import read_image
from dkuxnet.data.labels import read_label, with_classes
from dkuxnet.data.layouts import find_source
from dkuxnet.data.layouts.files import short_list
from dkuxnet.data.prepare import check_size, unknown_values
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.storing import check_noting, each_case, store_noting, told
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
        found = with_classes(find_source(Path(source), data.meta.layout or "auto"))
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    found = _described_alike(found, data)
    new = [case for case in found.cases if _is_new(case, found, data)]
    with workers(processes) as map_:
        each = partial(each_case, map_, progress or (lambda what, done, total: None))
        checked = list(each(partial(check_noting, found), new, "check"))
        checks = [figures for figures, _, _ in checked if figures is not None]
        told(checked, unknown_values(checks, data.meta.labels))
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
    if found.labels is not None and found.labels != meta.labels:
        raise UserError(
            f"{found.folder} has the labels {found.labels}, but {data.folder} was prepared with "
            f"{meta.labels}; prepare a new folder"
        )
    if gone := set(data.names) - {case.name for case in found.cases}:
        warnings.warn(
            f"{found.folder} has no case {short_list(map(repr, gone))} any more; what was prepared "
            "of it stays",
            DataWarning,
            stacklevel=3,
        )
    return Source(found.layout, found.folder, found.cases, found.channels, meta.labels)


def _is_new(case: Case, found: Source, data: PreparedSet) -> bool:
    """Whether a case, or what its label says, is not in the set."""
    if case.name not in data.names:
        return True
    if case.label is None:
        return False
    if case.name not in data.names_with_label:
        return True
    changed = max(case.label.stat().st_mtime, case.label.stat().st_ctime)
    if changed <= (data.folder / "dataset.json").stat().st_mtime:
        return False
    scan = f"the image {case.images[0].name}", read_image(case, len(found.channels))
    label = read_label(case.name, case.label, scan, data.meta.labels).array
    truth = np.array(list(data.meta.labels.values()))[data.array(case.name, "truth")]
    return not np.array_equal(label, truth)


def _describe(data: PreparedSet, stored: list[PreparedCase]) -> None:
    """Write dataset.json: cases that were there, new ones, those that are kept for testing.

    The last labelled ones are thus still those for testing (`data.test_cases`).
    """
    cases = {case.name: case for case in (*data.meta.cases, *stored)}
    ordered = sorted(cases.values(), key=lambda case: case.name in data.meta.held_back)
    described = data.meta.model_copy(update={"cases": ordered})
    write_json(data.folder / "dataset.json", described.to_json())
