"""What the runs of a benchmark say: means and spreads over seeds, gains, the share of the gap
closed, and how sure it is.

A run's figure is the mean over its test cases of the mean over the foreground classes. Every
comparison is between runs of one network, over the seeds that both sides have finished and the same
test cases.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from dkuxnet.runs.folder import RunFolder

METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_voxels", "asd_voxels")


@dataclass(frozen=True)
class Finished:
    """A finished run. cases: of the test list, in its order. figures: metric -> (cases,), the mean
    over classes.
    """

    cases: tuple[str, ...]
    figures: dict[str, np.ndarray]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """An arm in a table. metrics: name -> (mean, standard deviation or None) over seeds, empty
    where no run is finished. gain: in Dice over the bound with as many labels; gain_corrected:
    its interval holds for the best of all arms of the table that have one. cases: name -> Dice,
    mean over seeds.
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


@dataclass(frozen=True)
class Table:
    """The arms with one network and one labelled count, in the grid's order. bound: the bound with
    all labels.
    """

    network: str
    labelled: int
    rows: list[Row]
    bound: Row


@dataclass(frozen=True)
class Comparison:
    """A benchmark so far. recipe: dotted settings over the preset. wanted, done: numbers of runs.
    failed: run -> line of what went wrong. facts: see `_facts`; empty before the first run is
    finished.
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
    facts: dict[str, Any]


def read_finished(folder: Path, runs: Sequence[WantedRun]) -> dict[str, Finished]:
    """Those of `runs` in `folder` that are finished, by name.

    Raises UserError where a run's figures are damaged.
    """
    return {
        run.name: finished for run in runs if (finished := read_run(folder / run.name)) is not None
    }


def compare(
    grid: Grid, runs: Sequence[WantedRun], done: dict[str, Finished], failed: dict[str, str]
) -> Comparison:
    """The comparison of those of `runs` that are in `done`. failed: run -> line."""
    networks = list(dict.fromkeys(run.network for run in runs))
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
        facts=_facts(list(done.values()), runs[0].settings.data.validation_cases),
        tables=[
            _table(
                [run for run in runs if run.network == network],
                labelled,
                done,
                failed,
                grid.reference,
            )
            for network in networks
            for labelled in grid.labelled
        ],
    )


def cases_csv(runs: Sequence[WantedRun], done: dict[str, Finished]) -> str:
    """A line for each test case of those of `runs` that are in `done`, for tests and plots of
    one's own.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["arm", "network", "labelled", "seed", "case", *METRICS])
    for run in runs:
        if finished := done.get(run.name):
            names = [
                run.arm,
                run.network,
                "all" if run.labelled is None else run.labelled,
                run.seed,
            ]
            figures = zip(*(finished.figures[metric].tolist() for metric in METRICS), strict=True)
            table.writerows(
                [*names, case, *values]
                for case, values in zip(finished.cases, figures, strict=True)
            )
    return text.getvalue()


def read_run(
    folder: Path, remedy: str = "delete the run {name}, and it is made again"
) -> Finished | None:
    """The figures of a finished run, None of any other.

    Raises UserError with the `remedy` where they are damaged.
    """
    if not (folder / "manifest.json").is_file():
        return None
    manifest, path = RunFolder(folder).manifest, folder / "evaluation" / "cases.csv"
    if "test" not in manifest:
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, MAX_BYTES), newline="")))
        cases = tuple(manifest["split"]["test"])
        if sorted(row["case"] for row in rows) != sorted(
            case for case in cases for _ in range(len(manifest["labels"]) - 1)
        ):
            raise ValueError("it does not hold every test case and class")
        figures = {
            metric: np.array(
                [
                    np.mean([float(row[metric]) for row in rows if row["case"] == case])
                    for case in cases
                ]
            )
            for metric in METRICS
        }
        if not all(np.isfinite(values).all() for values in figures.values()):
            raise ValueError("a figure is not finite")
        float(manifest["train_seconds"])
        return Finished(cases, figures, manifest)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: damaged, or not what dkuxnet writes ({type(error).__name__}: {error}); "
            f"{remedy.format(name=folder.name)}"
        ) from error


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
        by_arm.setdefault((run.arm, run.labelled), []).append(run)
    here = {arm: group for (arm, count), group in by_arm.items() if count == labelled}
    dice = {
        key: {run.seed: done[run.name].figures["dice"] for run in group if run.name in done}
        for key, group in by_arm.items()
    }  # (arm, labelled) -> seed -> (cases,)
    tests = against_reference({arm: dice[arm, labelled] for arm in here}, reference)
    low, high = dice[BOUND, labelled], dice[BOUND, None]
    gains = {arm: gain(dice[arm, labelled], low) for arm in here if arm != BOUND}
    picked_from = sum(found is not None for found in gains.values())
    rows = []
    for arm, group in here.items():
        more = {"test": tests.get(arm)}
        if arm != BOUND:
            ours = dice[arm, labelled]
            more |= {
                "gain": gains[arm],
                "gain_corrected": gain(ours, low, picked_from),
                "share": share_of_gap(ours, low, high),
            }
        rows.append(_row(group, done, failed, **more))
    return Table(runs[0].network, labelled, rows, _row(by_arm[BOUND, None], done, failed))


def _row(
    group: Sequence[WantedRun], done: dict[str, Finished], failed: dict[str, str], **more: Any
) -> Row:
    """group: the runs of one arm, one a seed."""
    first = group[0]
    row = {
        "arm": first.arm,
        "method": first.settings.method.name,
        "labelled": first.labelled,
        "failed": {run.seed: failed[run.name] for run in group if run.name in failed},
    } | more
    finished = {run.seed: done[run.name] for run in group if run.name in done}
    if not finished:
        return Row(**row)
    some = next(iter(finished.values()))
    dice = np.mean([run.figures["dice"] for run in finished.values()], axis=0)
    return Row(
        **row,
        metrics={
            metric: spread([run.figures[metric].mean() for run in finished.values()])
            for metric in METRICS
        },
        dice_by_seed={seed: float(run.figures["dice"].mean()) for seed, run in finished.items()},
        minutes_by_seed={
            seed: run.manifest["train_seconds"] / 60 for seed, run in finished.items()
        },
        parameters=some.manifest.get("parameters"),
        cases=dict(zip(some.cases, dice.tolist(), strict=True)),
    )


def _facts(done: Sequence[Finished], validation_cases: int) -> dict[str, Any]:
    """What holds for the finished runs: sizes of pool and test list, machines and versions (each
    that occurs), hours. validation_cases: how many of the pool validate; a validation list of a
    split's own file is no part of it.
    """
    if not done:
        return {}
    manifest = done[0].manifest
    machines = [run.manifest.get("machine", {}) for run in done]
    return {
        "pool": sum(len(manifest["split"].get(key, ())) for key in ("labelled", "unlabelled"))
        + validation_cases,
        "test": len(done[0].cases),
        "classes": [name for name, value in manifest.get("labels", {}).items() if value != 0],
        "patch": manifest.get("patch"),
        "spacing_mm": manifest.get("plan", {}).get("spacing_mm"),
        "machines": _each(
            f"{m.get('gpu') or 'no GPU'}, CPU threads: {m.get('cpu_threads', '?')}, "
            f"{m.get('platform', '?')}"
            for m in machines
        ),
        "versions": _each(
            f"dkuxnet {m.get('dkuxnet', '?')}, torch {m.get('torch', '?')}, Python "
            f"{m.get('python', '?')}"
            for m in machines
        ),
        "train_hours": sum(run.manifest["train_seconds"] for run in done) / 3600,
        "evaluate_hours": sum(run.manifest.get("evaluate_seconds", 0) for run in done) / 3600,
    }


def _each(texts: Any) -> list[str]:
    return list(dict.fromkeys(texts))
