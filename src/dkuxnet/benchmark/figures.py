"""What the runs of a benchmark say: means and spreads over seeds, gains, shares of the gap.

A run's figure is the mean over its test cases of the mean over the foreground classes. Every
comparison is between runs of one network, over the seeds that both sides have finished and the same
test cases.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dkuxnet.benchmark.grid import BOUND, Grid, WantedRun
from dkuxnet.benchmark.significance import (
    Estimate,
    Share,
    Tested,
    against_reference,
    gain,
    share_of_gap,
    spread,
)
from dkuxnet.core.documents import MAX_BYTES, read_text
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest
from dkuxnet.evaluation.evaluate import foreground
from dkuxnet.evaluation.metrics import METRICS, Array
from dkuxnet.runs.folder import RunFolder

KEYS = tuple(metric.key for metric in METRICS)


@dataclass(frozen=True)
class Finished:
    """A finished run.

    cases: of the test list, in its order. figures: key of a metric -> (cases,), mean over classes.
    """

    folder: Path
    manifest: Manifest
    train_seconds: float
    cases: tuple[str, ...]
    figures: dict[str, Array]


@dataclass(frozen=True)
class Row:
    """An arm in a table: runs that differ in their seed alone.

    metrics: key -> (mean, standard deviation or None) over seeds, empty where no run is finished.
    failed: seed -> what went wrong. cases: name -> Dice, mean over seeds. gain: in Dice over the
    bound with as many labels; gain_corrected: its interval holds for the best of all arms of the
    table that have one.
    """

    arm: str
    method: str
    labelled: int | None
    metrics: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    dice_by_seed: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    minutes_by_seed: dict[int, float] = field(default_factory=dict)
    parameters: int | None = None
    cases: dict[str, float] = field(default_factory=dict)
    gain: Estimate | None = None
    gain_corrected: Estimate | None = None
    share: Share | None = None
    test: Tested | None = None

    @property
    def mean_dice(self) -> float:
        """Over seeds and cases, where a run is finished."""
        return self.metrics["dice"][0]


@dataclass(frozen=True)
class Table:
    """The arms with one network and one labelled count, in the grid's order.

    bound: `supervised` with all labels of the pool.
    """

    network: str
    labelled: int
    rows: list[Row]
    bound: Row

    @property
    def all_rows(self) -> list[Row]:
        """The arms, then the bound with all labels."""
        return [*self.rows, self.bound]


@dataclass(frozen=True)
class Facts:
    """What holds for the finished runs.

    pool, test: how many cases. machines, versions: each that occurs.
    """

    pool: int
    test: int
    classes: list[str]
    patch: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    machines: list[str]
    versions: list[str]
    train_hours: float
    evaluate_hours: float


@dataclass(frozen=True)
class Comparison:
    """A benchmark so far.

    recipe: dotted settings over the preset. wanted, done: numbers of runs. failed: run -> what went
    wrong. facts: None before the first run is finished.
    """

    prepared: str
    output: str
    preset: str
    recipe: dict[str, Any]
    steps: int
    seeds: list[int]
    labelled: list[int]
    reference: str
    wanted: int
    done: int
    tables: list[Table]
    failed: dict[str, str]
    facts: Facts | None


def compare(
    grid: Grid, runs: Sequence[WantedRun], done: dict[str, Finished], failed: dict[str, str]
) -> Comparison:
    """The comparison of those of `runs` that are in `done`. done, failed: by the run's name."""
    by_network: dict[str, list[WantedRun]] = {}
    for run in runs:
        by_network.setdefault(run.network, []).append(run)
    return Comparison(
        prepared=str(grid.prepared.resolve()),
        output=str(grid.output.resolve()),
        preset=grid.preset,
        recipe=grid.settings,
        steps=runs[0].settings.train.steps,
        seeds=grid.seeds,
        labelled=grid.labelled,
        reference=grid.reference,
        wanted=len(runs),
        done=len(done),
        failed=failed,
        facts=_facts(
            [done[run.name] for run in runs if run.name in done],
            runs[0].settings.data.validation_cases,
        ),
        tables=[
            _table(group, labelled, done, failed, grid.reference)
            for group in by_network.values()
            for labelled in grid.labelled
        ],
    )


def cases_csv(runs: Sequence[WantedRun], done: dict[str, Finished]) -> str:
    """A line for each test case of those of `runs` that are in `done`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["arm", "network", "labelled", "seed", "case", *KEYS])
    for run in runs:
        if finished := done.get(run.name):
            names = [run.arm, run.network, run.labelled or "all", run.seed]
            columns = [finished.figures[key].tolist() for key in KEYS]
            table.writerows([*names, *row] for row in zip(finished.cases, *columns, strict=True))
    return text.getvalue()


def is_finished(folder: Path) -> bool:
    """Whether the run has been trained and its test cases evaluated."""
    return (folder / "manifest.json").is_file() and RunFolder(folder).manifest.test is not None


def read_finished(folder: Path, runs: Iterable[WantedRun]) -> dict[str, Finished]:
    """Those of `runs` in `folder` that are finished, by name; errors as of `read_run`."""
    remedy = "delete the run {name}, and it is made again"
    return {
        run.name: read_run(folder / run.name, remedy)
        for run in runs
        if is_finished(folder / run.name)
    }


def read_run(folder: Path, remedy: str) -> Finished:
    """The figures of a finished run.

    Raises UserError with the `remedy`, which may name the run, where they are damaged.
    """
    manifest, path = RunFolder(folder).manifest, folder / "evaluation" / "cases.csv"
    cases, by_case = manifest.split.test, dict[str, list[list[float]]]()
    try:
        for row in csv.DictReader(io.StringIO(read_text(path, MAX_BYTES), newline="")):
            by_case.setdefault(row["case"], []).append([float(row[key]) for key in KEYS])
        classes = len(foreground(manifest.labels))
        if by_case.keys() != set(cases) or {len(rows) for rows in by_case.values()} != {classes}:
            raise ValueError("it does not hold every test case and class")
        figures = np.array([by_case[case] for case in cases]).transpose(2, 0, 1)
        if not np.isfinite(figures).all():
            raise ValueError("a figure is not finite")
        if manifest.train_seconds is None:
            raise ValueError("the manifest has no train_seconds")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: damaged, or not what dkuxnet writes ({type(error).__name__}: {error}); "
            f"{remedy.format(name=folder.name)}"
        ) from error
    means = np.ascontiguousarray(figures).mean(axis=2)
    by_key = dict(zip(KEYS, means, strict=True))
    return Finished(folder, manifest, manifest.train_seconds, cases, by_key)


def make_row(
    arm: str, method: str, labelled: int | None, runs: dict[int, Finished], over_cases: bool = False
) -> Row:
    """The arm's own figures. runs: the finished ones, by seed.

    over_cases: the metrics' deviations are over the test cases, of means over seeds; else over
    seeds, of means over cases.
    """
    if not runs:
        return Row(arm, method, labelled)
    some = next(iter(runs.values()))
    figures = {key: np.array([run.figures[key] for run in runs.values()]) for key in KEYS}
    return Row(
        arm,
        method,
        labelled,
        metrics={
            key: spread(each.mean(axis=0 if over_cases else 1)) for key, each in figures.items()
        },
        dice_by_seed={seed: float(run.figures["dice"].mean()) for seed, run in runs.items()},
        minutes_by_seed={seed: run.train_seconds / 60 for seed, run in runs.items()},
        parameters=some.manifest.parameters,
        cases=dict(zip(some.cases, figures["dice"].mean(axis=0).tolist(), strict=True)),
    )


def _table(
    runs: Sequence[WantedRun],
    labelled: int,
    done: dict[str, Finished],
    failed: dict[str, str],
    reference: str,
) -> Table:
    """runs: those of one network, with any labels."""
    by_arm: dict[tuple[str, int | None], list[WantedRun]] = {}
    for run in runs:
        if run.labelled in (labelled, None):
            by_arm.setdefault((run.arm, run.labelled), []).append(run)
    here = [arm for arm, count in by_arm if count == labelled]
    rows, dice = {}, {}  # by arm and labelled
    for (arm, count), group in by_arm.items():
        finished = {run.seed: done[run.name] for run in group if run.name in done}
        dice[arm, count] = {seed: run.figures["dice"] for seed, run in finished.items()}
        row = make_row(arm, group[0].settings.method.name, count, finished)
        lines = {run.seed: failed[run.name] for run in group if run.name in failed}
        rows[arm, count] = replace(row, failed=lines)
    tests = against_reference({arm: dice[arm, labelled] for arm in here}, reference)
    low, high = dice[BOUND, labelled], dice[BOUND, None]
    gains = {arm: gain(dice[arm, labelled], low) for arm in here if arm != BOUND}
    picked_from = sum(found is not None for found in gains.values())
    for arm in here:
        ours = dice[arm, labelled]
        row = replace(rows[arm, labelled], test=tests.get(arm))
        if arm != BOUND:
            row = replace(
                row,
                gain=gains[arm],
                gain_corrected=gain(ours, low, picked_from),
                share=share_of_gap(ours, low, high),
            )
        rows[arm, labelled] = row
    shown = [rows[arm, labelled] for arm in here]
    return Table(runs[0].network, labelled, shown, rows[BOUND, None])


def _facts(done: Sequence[Finished], validation_cases: int) -> Facts | None:
    """validation_cases: of the pool; a validation list of a split's own file is no part of it."""
    if not done:
        return None
    manifest = done[0].manifest
    split, machines = manifest.split, [run.manifest.machine for run in done]
    return Facts(
        pool=len(split.labelled) + len(split.unlabelled) + validation_cases,
        test=len(done[0].cases),
        classes=[*foreground(manifest.labels)],
        patch=manifest.patch,
        spacing_mm=manifest.plan.spacing_mm,
        machines=_each(
            f"{m.gpu or 'no GPU'}, CPU threads: {m.cpu_threads or '?'}, {m.platform}"
            for m in machines
        ),
        versions=_each(
            f"dkuxnet {m.dkuxnet}, torch {m.torch}, Python {m.python}" for m in machines
        ),
        train_hours=sum(run.train_seconds for run in done) / 3600,
        evaluate_hours=sum(run.manifest.evaluate_seconds or 0 for run in done) / 3600,
    )


def _each(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
