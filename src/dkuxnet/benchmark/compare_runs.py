"""Several runs, from any folders, side by side: what differs between them, and figures paired over
their test cases.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dkuxnet.benchmark.figures import Finished, read_run
from dkuxnet.benchmark.significance import Estimate, Tested, against_reference, gain, spread
from dkuxnet.core.config import flatten
from dkuxnet.core.errors import UserError
from dkuxnet.runs.folder import RunFolder

METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm")
IDENTITY = ("cases", "labels", "channels", "plan")  # of a prepared set, as the manifests have it
# What says only how a run is made, not what it is: runs that differ in nothing else are one arm,
# trained more than once.
HOW = (
    "train.seed",
    "train.device",
    "train.log_every",
    "train.save_every",
    "data.workers",
    "data.cache_gib",
    "data.split",
)


@dataclass(frozen=True)
class Run:
    """A run with its figures. figures: metric -> (cases,), the mean over classes, in the order of
    `RunsCompared.cases`.
    """

    folder: Path
    settings: dict[str, Any]
    manifest: dict[str, Any]
    figures: dict[str, np.ndarray]

    @property
    def seed(self) -> int:
        return int(self.settings.get("train.seed", 0))


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone. metrics: name -> (mean, standard deviation or None)
    over the test cases, of the mean over seeds. dice: (cases,), mean over seeds. gain: in Dice
    over the first arm, over the seeds that both have; better: in how many cases; None of the
    first itself.
    """

    name: str
    runs: list[Run]
    metrics: dict[str, tuple[float, float | None]]
    dice: np.ndarray
    gain: Estimate | None = None
    better: int | None = None
    test: Tested | None = None


@dataclass(frozen=True)
class RunsCompared:
    """arms: in the order given; the first is what the others are held against. differences:
    setting -> its value in each arm. same_seeds: whether arms are paired by seed as well as by
    case; else the means over seeds are.
    """

    arms: list[Arm]
    cases: tuple[str, ...]
    classes: list[str]
    differences: dict[str, list[Any]]
    same_seeds: bool


def compare_runs(folders: Sequence[Path]) -> RunsCompared:
    """Raises UserError where a folder is no run or given twice, a run has no evaluation, or the
    runs were not trained on one prepared set and tested on the same cases.
    """
    folders = [Path(folder) for folder in folders]
    for i, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:i]]:
            raise UserError(f"{folder} is given twice; a run cannot be compared with itself")
    found = [_finished(folder) for folder in folders]
    cases = found[0].cases
    for folder, finished in zip(folders[1:], found[1:], strict=True):
        _check_comparable(folders[0], found[0], folder, finished)
    runs = []
    for folder, finished in zip(folders, found, strict=True):
        order = [finished.cases.index(case) for case in cases]
        runs.append(
            Run(
                folder,
                dict(flatten(RunFolder.open(folder).settings)),
                finished.manifest,
                {metric: finished.figures[metric][order] for metric in METRICS},
            )
        )
    arms = _held_against_first(_grouped(runs))
    labels = found[0].manifest["labels"]
    return RunsCompared(
        arms[0],
        cases,
        [name for name, value in labels.items() if value != 0],
        _differences([arm.runs[0] for arm in arms[0]]),
        arms[1],
    )


def _finished(folder: Path) -> Finished:
    RunFolder.open(folder)
    finished = read_run(folder, "train or evaluate the run again")
    if finished is None:
        raise UserError(
            f"{folder} has no evaluation of test cases, so there is nothing to compare; finish its "
            "training "
            "(dkuxnet train ... --resume) with a test list (data.test_cases or --split)"
        )
    return finished


def _check_comparable(first: Path, ours: Finished, folder: Path, theirs: Finished) -> None:
    for key in IDENTITY:
        if ours.manifest.get(key) != theirs.manifest.get(key):
            raise UserError(
                f"{folder} was trained on another prepared set than {first} (their {key} differ: "
                f"{theirs.manifest.get('prepared')} and {ours.manifest.get('prepared')}); compare "
                "runs of one set"
            )
    if sorted(ours.cases) != sorted(theirs.cases):
        apart = sorted(set(ours.cases) ^ set(theirs.cases))
        raise UserError(
            f"{folder} was tested on other cases than {first} ({len(apart)} of them in one list "
            "only, such as "
            f"'{apart[0]}'); compare runs with the same test list"
        )


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone, together; a second run of the same seed stands for
    itself.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        what = {key: value for key, value in run.settings.items() if key not in HOW}
        split = {name: sorted(cases) for name, cases in run.manifest["split"].items()}
        key = json.dumps([what, split, run.manifest.get("network")], sort_keys=True, default=str)
        while any(other.seed == run.seed for other in groups.get(key, [])):
            key += "+"
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _held_against_first(groups: list[list[Run]]) -> tuple[list[Arm], bool]:
    names = _names(groups)
    dice = {
        name: {run.seed: run.figures["dice"] for run in group}
        for name, group in zip(names, groups, strict=True)
    }
    reference = names[0]
    same_seeds = all(set(by_seed) & set(dice[reference]) for by_seed in dice.values())
    paired = (
        dice
        if same_seeds
        else {name: {0: np.mean(list(by_seed.values()), axis=0)} for name, by_seed in dice.items()}
    )
    tests, arms = against_reference(paired, reference), []
    for name, group in zip(names, groups, strict=True):
        means = {
            metric: np.mean([run.figures[metric] for run in group], axis=0) for metric in METRICS
        }
        more = {}
        if name != reference:
            seeds = [seed for seed in paired[name] if seed in paired[reference]]
            apart = np.mean(
                [paired[name][seed] - paired[reference][seed] for seed in seeds], axis=0
            )
            more = {
                "gain": gain(paired[name], paired[reference]),
                "better": int((apart > 0).sum()),
                "test": tests[name],
            }
        metrics = {metric: spread(values.tolist()) for metric, values in means.items()}
        arms.append(Arm(name, group, metrics, means["dice"], **more))
    return arms, same_seeds


def _names(groups: list[list[Run]]) -> list[str]:
    """The folder of an arm's first run, with as much of its path as tells the arms apart, and how
    many seeds there are.
    """
    paths = [group[0].folder.resolve().parts for group in groups]
    kept = next(
        n
        for n in range(1, max(map(len, paths)) + 1)
        if len({path[-n:] for path in paths}) == len(paths)
    )
    more = [f" ({len(group)} seeds)" if len(group) > 1 else "" for group in groups]
    return ["/".join(path[-kept:]) + text for path, text in zip(paths, more, strict=True)]


def _differences(runs: list[Run]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in HOW)
    found = {
        "labelled cases": [len(run.manifest["split"].get("labelled", ())) for run in runs],
        "unlabelled cases": [len(run.manifest["split"].get("unlabelled", ())) for run in runs],
    }
    found |= {key: [run.settings.get(key, "–") for run in runs] for key in keys}
    return {
        key: values for key, values in found.items() if any(value != values[0] for value in values)
    }
