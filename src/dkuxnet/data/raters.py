"""Several labels of one scan, each by another rater: one is taken, or all teach.

The labels of rater NAME are in `labels_NAME` beside `labels`, in nnU-Net's layouts in
`labelsTr_NAME` beside `labelsTr`; a folder without a name is one more rater.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.lookup import unknown
from dkuxnet.core.types import IGNORED, Case, Source
from dkuxnet.data.layouts.files import labels_of, short_list

MEAN = "mean"
FOLDERS = ("labels", "labelsTr")


def with_raters(source: Source, rater: str | None = None) -> Source:
    """The source with all labels of each case, and that of `rater` as the one that is taken.

    rater: None for the folder without a name; MEAN for all of them. Raises UserError where there is
    no such rater, or one must be chosen; warns of cases that the rater has not labelled.
    """
    folders = _folders(source.folder)
    if not folders:
        if rater is not None:
            raise UserError(
                f"--rater {rater}: expected folders such as {source.folder / 'labels_A'} beside "
                "'labels', one a rater, but there are none; leave the option out"
            )
        return source
    cases = {case.name: case for case in source.cases}
    plain = {name: case.label for name, case in cases.items() if case.label}
    given = {name: labels_of(cases, folder) for name, folder in folders.items()}
    found = ({FOLDERS[0]: plain} if plain else {}) | given
    names = list(found)
    if rater is None and not plain:
        raise UserError(
            f"{source.folder}: has labels of {short_list(names)}; choose whose are taken with "
            f"--rater {names[0]}, or all with --rater {MEAN}"
        )
    if MEAN in found or rater not in (None, MEAN, *names):
        raise unknown("rater", str(rater), [*names, MEAN])
    taken = names[0] if rater is None else rater

    def rated(case: Case) -> Case:
        theirs = {name: labels[case.name] for name, labels in found.items() if case.name in labels}
        first = next(iter(theirs.values()), None)
        label = first if taken == MEAN else theirs.get(taken)
        several = tuple(theirs.values()) if label is not None and len(theirs) > 1 else ()
        return replace(case, label=label, raters=several)

    all_rated = tuple(map(rated, source.cases))
    labelled = {name for labels in found.values() for name in labels}
    lacking = labelled - {case.name for case in all_rated if case.label}
    if lacking:
        warnings.warn(
            f"{source.folder}: {len(lacking)} cases that others labelled have no label of "
            f"'{taken}' and count as unlabelled: {short_list(lacking)}",
            DataWarning,
            stacklevel=2,
        )
    return replace(source, cases=all_rated, mean_of_raters=taken == MEAN)


def _folders(folder: Path) -> dict[str, Path]:
    """Rater -> folder of the labels."""
    found = {}
    for path in sorted(folder.iterdir()):
        base, _, name = path.name.partition("_")
        if base in FOLDERS and name and path.is_dir():
            found[name] = path
    return found


def majority(labels: Sequence[np.ndarray]) -> np.ndarray:
    """The class of most raters, (X, Y, Z) uint8; the first rater's where none has more votes."""
    chosen = labels[0].copy()
    best = sum((label == chosen).astype(np.uint8) for label in labels)
    for value in sorted({int(value) for label in labels for value in np.unique(label)}):
        votes = sum((label == value).astype(np.uint8) for label in labels)
        chosen[votes > best] = value
        best = np.maximum(best, votes)
    return chosen


def agreement(
    labels: Sequence[np.ndarray], structures: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Name -> the mean Dice of all pairs of labels; without what no rater has.

    Voxels that one of a pair left out do not count.
    """
    found: dict[str, float] = {}
    for name, classes in structures.items():
        dice = []
        for one, other in combinations(labels, 2):
            known = (one != IGNORED) & (other != IGNORED)
            ours, theirs = (np.isin(label, classes) & known for label in (one, other))
            if size := np.count_nonzero(ours) + np.count_nonzero(theirs):
                dice.append(2 * np.count_nonzero(ours & theirs) / size)
        if dice:
            found[name] = float(np.mean(dice))
    return found
