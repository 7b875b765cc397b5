"""What the runs of a benchmark say: means and spreads over seeds, gains, shares of the gap.

A run's figure is the mean over its test cases of the mean over the foreground classes that label or
prediction of the case have; a case without any has NaN, and counts nowhere. Every comparison is
between runs of one network, over the seeds that both sides have finished and the same test cases.
"""

import csv
import io
import math
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
from dkuxnet.core.schemas import Found, Manifest
from dkuxnet.evaluation.evaluate import csv_cell
from dkuxnet.evaluation.found import count_found, together
from dkuxnet.evaluation.metrics import METRICS, Array
from dkuxnet.evaluation.statistics import known_mean
from dkuxnet.runs.folder import RunFolder

KEYS = tuple(metric.key for metric in METRICS)
COUNTED = ("n_pred", "n_ref", "pred_ml", "ref_ml")  # of each class, beside KEYS


@dataclass(frozen=True)
class Finished:
    """A finished run.

    cases: of the test list, in its order. figures: key of a metric -> (cases,), mean over classes.
    by_class: class -> KEYS and COUNTED -> (cases,), NaN where a figure does not apply.
    """

    folder: Path
    manifest: Manifest
    train_seconds: float
    cases: tuple[str, ...]
    figures: dict[str, Array]
    by_class: dict[str, dict[str, Array]]


@dataclass(frozen=True)
class OfClass:
    """An arm's figures of one class. metrics: as of `Row`. found: counted over all seeds."""

    metrics: dict[str, tuple[float, float | None]]
    found: Found


@dataclass(frozen=True)
class Row:
    """An arm in a table: runs that differ in their seed alone.

    metrics: key -> (mean, standard deviation or None) over seeds, empty where no run is finished.
    failed: seed -> what went wrong. cases: name -> Dice, mean over seeds.
    classes: name -> the figures of that class. gain: in Dice over the
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
    classes: dict[str, OfClass] = field(default_factory=dict)
    gain: Estimate | None = None
    gain_corrected: Estimate | None = None
    share: Share | None = None
    test: Tested | None = None

    @property
    def mean_dice(self) -> float:
        """Over seeds and cases, where a run is finished; NaN where it applies to no case."""
        return self.metrics["dice"][0]

    @property
    def ranked(self) -> bool:
        """Whether there is a Dice to rank it by."""
        return bool(self.metrics) and not math.isnan(self.mean_dice)

    @property
    def found(self) -> Found:
        """The counts of all classes together."""
        return together([each.found for each in self.classes.values()])


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
    """A line for each test case and class of those of `runs` that are in `done`.

    The cell of a figure that does not apply is empty.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["arm", "network", "labelled", "seed", "case", "class", *KEYS, *COUNTED])
    for run in runs:
        if finished := done.get(run.name):
            names = [run.arm, run.network, run.labelled or "all", run.seed]
            for place, case in enumerate(finished.cases):
                for name, figures in finished.by_class.items():
                    cells = [csv_cell(float(figures[key][place])) for key in (*KEYS, *COUNTED)]
                    table.writerow([*names, case, name, *cells])
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
    cases = manifest.split.test
    by_case: dict[str, dict[str, list[float]]] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(path, MAX_BYTES), newline="")):
            by_case.setdefault(row["case"], {})[row["class"]] = _figures(row)
        classes = list(next(iter(by_case.values()), {}))
        every = {name: set(classes) for name in cases}
        found = {name: set(figures) for name, figures in by_case.items()}
        if found != every or len(classes) != len(manifest.scored):
            raise ValueError("it does not hold every test case and class")
        # (keys, cases, classes)
        figures = np.array([[by_case[c][k] for k in classes] for c in cases]).transpose(2, 0, 1)
        if manifest.train_seconds is None:
            raise ValueError("the manifest has no train_seconds")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: damaged, or not what dkuxnet writes ({type(error).__name__}: {error}); "
            f"{remedy.format(name=folder.name)}"
        ) from error
    means = known_mean(figures[: len(KEYS)], axis=2)  # (KEYS, cases)
    by_class = {
        name: dict(zip((*KEYS, *COUNTED), figures[:, :, k], strict=True))
        for k, name in enumerate(classes)
    }
    by_key = dict(zip(KEYS, means, strict=True))
    return Finished(folder, manifest, manifest.train_seconds, cases, by_key, by_class)


def _figures(row: dict[str, str]) -> list[float]:
    """KEYS, then COUNTED, of a line of cases.csv; raises KeyError, ValueError where it is damaged.

    Files of earlier versions have no volumes, and figures where none applies.
    """
    counts = {key: float(row[key] or "nan") for key in ("n_pred", "n_ref")}
    if all(map(math.isnan, counts.values())):  # nobody labelled it
        return [math.nan] * (len(KEYS) + len(COUNTED))
    partly = not any(row[metric.key] for metric in METRICS if metric.whole)
    known = {
        metric.key: float(row[metric.key])
        for metric in METRICS
        if metric.applies(counts) and not (partly and metric.whole)
    }
    if not np.isfinite([*known.values(), *counts.values()]).all():
        raise ValueError("a figure is not finite")
    volumes = [float(row.get(key) or "nan") for key in ("pred_ml", "ref_ml")]
    return [*(known.get(key, math.nan) for key in KEYS), *counts.values(), *volumes]


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
            key: spread(known_mean(each, axis=0 if over_cases else 1))
            for key, each in figures.items()
        },
        dice_by_seed={seed: spread(run.figures["dice"])[0] for seed, run in runs.items()},
        minutes_by_seed={seed: run.train_seconds / 60 for seed, run in runs.items()},
        parameters=some.manifest.parameters,
        cases=dict(zip(some.cases, known_mean(figures["dice"], axis=0).tolist(), strict=True)),
        classes={
            name: _of_class([run.by_class[name] for run in runs.values()], name, over_cases)
            for name in some.by_class
        },
    )


def _of_class(seeds: Sequence[dict[str, Array]], name: str, over_cases: bool) -> OfClass:
    """seeds: KEYS and COUNTED -> (cases,) of each."""
    found, columns = [], []
    for each in seeds:
        n_pred, n_ref, ml = (each[key][:, np.newaxis] for key in ("n_pred", "n_ref", "pred_ml"))
        found.append(count_found([name], n_pred, n_ref, ml)[name])
        columns.append(np.stack([each[key] for key in KEYS], axis=1))
    means = known_mean(np.array(columns), axis=0 if over_cases else 1)  # (cases or seeds, KEYS)
    spreads = {key: spread(means[:, k]) for k, key in enumerate(KEYS)}
    return OfClass(spreads, together(found))


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
        classes=[*manifest.scored],
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
