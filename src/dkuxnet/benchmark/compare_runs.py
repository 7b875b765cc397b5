"""Several runs, from any folders: what differs between them, and figures paired by test case."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dkuxnet.benchmark.figures import Finished, Row, is_finished, make_row, read_run
from dkuxnet.benchmark.significance import against_reference, gain
from dkuxnet.core.config import flatten, how_settings
from dkuxnet.core.errors import UserError
from dkuxnet.runs.folder import RunFolder

IDENTITY = ("cases", "labels", "channels", "plan")  # of a prepared set, as the manifests have it
# Runs that differ in nothing else are one arm, trained more than once. Of a split the lists
# themselves are compared, not their file.
IGNORED = {"train.seed", "data.split", *how_settings()}


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    row: its metrics' deviations are over the test cases; its gain and test are against the first
    arm, over the seeds that both have. better: in how many cases; None of the first arm.
    """

    row: Row
    runs: list[Finished]
    better: int | None


@dataclass(frozen=True)
class RunsCompared:
    """arms: in the order given; the first is what the others are held against.

    differences: setting -> its value in each arm. same_seeds: whether arms are paired by seed as
    well as by case; else the means over seeds are.
    """

    arms: list[Arm]
    cases: tuple[str, ...]
    classes: list[str]
    differences: dict[str, list[Any]]
    same_seeds: bool


def compare_runs(folders: Sequence[Path]) -> RunsCompared:
    """Hold the first run against each other one.

    Raises UserError where a folder is no run or given twice, a run has no evaluation, or the runs
    were not trained on one prepared set and tested on the same cases.
    """
    folders = [Path(folder) for folder in folders]
    for i, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:i]]:
            raise UserError(f"{folder} is given twice; a run cannot be compared with itself")
    first, *others = (_finished(folder) for folder in folders)
    for other in others:
        _check_comparable(first, other)
    runs = [_in_order(each, first.cases) for each in (first, *others)]
    settings = {run.folder: _settings(run.folder) for run in runs}
    arms, same_seeds = _held_against_first(_grouped(runs, settings))
    differences = _differences([arm.runs[0] for arm in arms], settings)
    classes = [*first.manifest.scored]
    return RunsCompared(arms, first.cases, classes, differences, same_seeds)


def _finished(folder: Path) -> Finished:
    RunFolder.open(folder)
    if not is_finished(folder):
        raise UserError(
            f"{folder} has no evaluation of test cases, so there is nothing to compare; finish its "
            "training (dkuxnet train ... --resume) with a test list (data.test_cases or --split)"
        )
    return read_run(folder, "train or evaluate the run again")


def _check_comparable(first: Finished, other: Finished) -> None:
    ours, theirs = first.manifest, other.manifest
    for key in IDENTITY:
        if getattr(ours, key) != getattr(theirs, key):
            raise UserError(
                f"{other.folder} was trained on another prepared set than {first.folder} (their "
                f"{key} differ: {theirs.prepared} and {ours.prepared}); compare runs of one set"
            )
    if apart := sorted(set(first.cases) ^ set(other.cases)):
        raise UserError(
            f"{other.folder} was tested on other cases than {first.folder} ({len(apart)} of them "
            f"in one list only, such as '{apart[0]}'); compare runs with the same test list"
        )


def _in_order(run: Finished, cases: tuple[str, ...]) -> Finished:
    places = {case: place for place, case in enumerate(run.cases)}
    order = [places[case] for case in cases]
    figures = {key: values[order] for key, values in run.figures.items()}
    by_class = {
        name: {key: values[order] for key, values in each.items()}
        for name, each in run.by_class.items()
    }
    return replace(run, cases=cases, figures=figures, by_class=by_class)


def _settings(folder: Path) -> dict[str, Any]:
    return dict(
        flatten(RunFolder.open(folder).settings.model_dump(mode="json", exclude_unset=True))
    )


def _grouped(
    runs: Sequence[Finished], settings: dict[Path, dict[str, Any]]
) -> list[dict[int, Finished]]:
    """Runs that differ in their seed alone, together by seed.

    A second run of the same seed stands for itself.
    """
    groups: dict[str, dict[int, Finished]] = {}
    for run in runs:
        seed = int(settings[run.folder].get("train.seed", 0))
        what = {key: each for key, each in settings[run.folder].items() if key not in IGNORED}
        split = {name: sorted(cases) for name, cases in run.manifest.split.lists().items()}
        key = json.dumps([what, split, run.manifest.network], sort_keys=True)
        while seed in groups.get(key, {}):
            key += "+"
        groups.setdefault(key, {})[seed] = run
    return list(groups.values())


def _held_against_first(groups: list[dict[int, Finished]]) -> tuple[list[Arm], bool]:
    names = _names(groups)
    dice = {
        name: {seed: run.figures["dice"] for seed, run in group.items()}
        for name, group in zip(names, groups, strict=True)
    }
    reference = names[0]
    same_seeds = all(by_seed.keys() & dice[reference].keys() for by_seed in dice.values())
    if not same_seeds:
        dice = {name: {0: np.mean([*by_seed.values()], axis=0)} for name, by_seed in dice.items()}
    tests, arms = against_reference(dice, reference), []
    for name, group in zip(names, groups, strict=True):
        some = next(iter(group.values())).manifest
        row = make_row(name, some.method, len(some.split.labelled), group, over_cases=True)
        better = None
        if name != reference:
            ours, theirs = dice[name], dice[reference]
            apart = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            better = int((np.mean(apart, axis=0) > 0).sum()) if apart else 0
            found, test = gain(ours, theirs), tests.get(name)
            if found and test:
                found = replace(found, p=test.p_holm)
            row = replace(row, gain=found, test=test)
        arms.append(Arm(row, [*group.values()], better))
    return arms, same_seeds


def _names(groups: list[dict[int, Finished]]) -> list[str]:
    """Of each arm as much of its first run's path as tells it apart, and how many seeds it has."""
    paths = [next(iter(group.values())).folder.resolve().parts for group in groups]
    kept = next(
        n
        for n in range(1, max(map(len, paths)) + 1)
        if len({path[-n:] for path in paths}) == len(paths)
    )
    more = [f" ({len(group)} seeds)" if len(group) > 1 else "" for group in groups]
    return ["/".join(path[-kept:]) + text for path, text in zip(paths, more, strict=True)]


def _differences(
    runs: list[Finished], settings: dict[Path, dict[str, Any]]
) -> dict[str, list[Any]]:
    splits = [run.manifest.split for run in runs]
    found: dict[str, list[Any]] = {
        "labelled cases": [len(split.labelled) for split in splits],
        "unlabelled cases": [len(split.unlabelled) for split in splits],
    }
    flat = [settings[run.folder] for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each if key not in IGNORED)
    found |= {key: [each.get(key, "–") for each in flat] for key in keys}
    return {
        key: values for key, values in found.items() if any(value != values[0] for value in values)
    }
