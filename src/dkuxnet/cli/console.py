"""What the commands show: progress (a bar on a terminal, plain lines elsewhere) and results."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from dkuxnet.benchmark.benchmark import Watch
    from dkuxnet.benchmark.figures import Comparison
    from dkuxnet.benchmark.grid import WantedRun
    from dkuxnet.core.schemas import Found, Manifest, Plan, Prepared, Statistic
    from dkuxnet.core.types import CaseProgress
    from dkuxnet.data.update import Update
    from dkuxnet.evaluation.evaluate import Evaluation
    from dkuxnet.evaluation.metrics import Metric

PLAIN_SECONDS = 10  # between two lines where there is no terminal

console = Console(highlight=False)


@contextmanager
def case_progress() -> "Iterator[CaseProgress]":
    """Progress of a job over cases: (what, done, of how many)."""
    with _shown() as update:
        yield lambda what, done, total: update(what, done, total, "")


@contextmanager
def train_progress() -> Iterator[Callable[[str, int, int, dict[str, float]], None]]:
    """Progress of a training: (what, done, of how many, figures)."""
    with _shown() as update:

        def show(what: str, done: int, total: int, figures: dict[str, float]) -> None:
            parts = [
                f"{key} {value:.3g}"
                for key, value in figures.items()
                if key not in ("seconds", "lr", "grad_norm")
            ]
            update(what, done, total, "  ".join(parts))

        yield show


@contextmanager
def sentence_progress(what: str) -> "Iterator[CaseProgress]":
    """Progress of a job that says what it does now: (sentence, done, of how many)."""
    with _shown(every=0) as update:
        yield lambda sentence, done, total: update(what, done, total, sentence)


@contextmanager
def _shown(every: float = PLAIN_SECONDS) -> Iterator[Callable[[str, int, int, str], None]]:
    """Progress of a job: (what, done, of how many, note); `every` is for plain lines, in s."""
    if not console.is_terminal:
        yield _plain_lines(every)
        return
    columns = (
        TextColumn("{task.description:9}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def update(what: str, done: int, total: int, note: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, note="")
            bars.update(tasks[what], completed=done, total=total, note=escape(note))

        yield update


def _plain_lines(every: float) -> Callable[[str, int, int, str], None]:
    last_what, last_time = "", 0.0

    def update(what: str, done: int, total: int, note: str) -> None:
        nonlocal last_what, last_time
        now = time.monotonic()
        if what != last_what or done == total or now - last_time >= every:
            last_what, last_time = what, now
            console.print(f"{what} {done}/{total}  {note}".rstrip(), soft_wrap=True, markup=False)

    return update


def next_of_prepared(meta: "Prepared", prepared: Path, split: Path | None) -> str:
    """The command that trains on a prepared set, for its labels and the cases it holds back."""
    held_back, words = set(meta.held_back), ["train", str(prepared), "runs/first"]
    pool = [case for case in meta.cases if case.name not in held_back]
    labelled = sum(case.labelled for case in pool)
    if labelled == len(pool) > 1:  # else nothing would be unlabelled
        words += ["--labelled", str(max(1, labelled // 2))]
    if held_back and split is not None:
        words += ["--split", str(split)]
    elif held_back:
        words += ["--set", f"data.test_cases={len(held_back)}"]
    return f"next: dkuxnet {shlex.join(words)}"


def show_prepared(meta: "Prepared", prepared: Path) -> None:
    from dkuxnet.data.prepared_set import PreparedSet

    labelled, coarse = sum(case.labelled for case in meta.cases), PreparedSet(prepared).coarse
    partly = sum(case.partly for case in meta.cases)
    in_part = f" ({partly} in part)" if partly else ""
    held_back = f", {len(meta.held_back)} held back for testing" if meta.held_back else ""
    _say(
        f"{len(meta.cases)} cases prepared in {prepared}, {labelled} with a label{in_part}"
        f"{held_back}; "
        f"classes: {', '.join(meta.labels)}"
        + (f"; regions: {', '.join(meta.regions)}" if meta.regions else "")
    )
    if coarse:
        _say(f"plan of the coarse stage: {_plan(PreparedSet(coarse).meta.plan)}")
    _say(f"plan: {_plan(meta.plan)}, network {meta.plan.network}")


def show_updated(done: "Update", prepared: Path) -> None:
    _say(f"{prepared}: {_cases(done.added)} added, {_cases(done.labelled)} with a new label")


def _cases(names: Sequence[str]) -> str:
    from dkuxnet.data.layouts.files import short_list

    counted = f"{len(names)} case{'' if len(names) == 1 else 's'}"
    return f"{counted} ({short_list(names)})" if names else counted


def _plan(plan: "Plan") -> str:
    spacing, patch = (
        " x ".join(f"{n:.3g}" for n in each) for each in (plan.spacing_mm, plan.patch)
    )
    return f"{spacing} mm, patch {patch} voxels"


def show_trained(manifest: "Manifest", run: Path) -> None:
    from dkuxnet.evaluation.found import notes_on
    from dkuxnet.evaluation.more_metrics import asked_in

    planned = manifest.planned_steps[-1] if manifest.planned_steps else manifest.steps_done
    early = (
        f" of {planned}, as validation gained no more," if manifest.steps_done != planned else ""
    )
    _say(
        f"{manifest.method} with {manifest.network}: {manifest.steps_done} steps{early} in "
        f"{manifest.train_seconds or 0:.0f} s; weights in {run}: {weights_chosen(manifest.weights)}"
    )
    if manifest.postprocessing and (chosen := manifest.postprocessing.in_words):
        _say(chosen)
    if manifest.test:
        cases = _count(manifest.split.test, "test case")
        _show_summary(manifest.test, cases, manifest.found, asked_in(manifest.test))
        for note in (*manifest.label_notes, *notes_on(manifest.found or {})):
            _say(f"note: {note}")
    name = shlex.quote(str(run))
    _say(f"next: dkuxnet report {name}")
    _say(f"next: dkuxnet predict {name} SCANS --output predictions")


def show_folds(result: "Evaluation", folder: Path) -> None:
    show_evaluation(result)
    _say(f"in {folder / 'evaluation'}: predictions of these cases, summary.json, cases.csv")
    _say(f"next: dkuxnet predict {shlex.quote(str(folder))} SCANS --output predictions")


def weights_chosen(weights: str | None) -> str:
    """Which weights a command takes, in words."""
    return "best, by the validation cases" if weights == "best" else "final"


def show_evaluation(result: "Evaluation") -> None:
    _show_summary(result.summary(), _count(result.files, "case"), result.found(), result.asked)
    for note in result.notes:
        _say(f"note: {note}")


def show_demo(made: dict[str, Any]) -> None:
    """The end of the demonstration: what was made, how good it is, what to type next."""
    folder = made["folder"]
    _say("")
    _show_summary(made["summary"], f"{made['test_cases']} unseen synthetic scans", made["found"])
    _say(
        f"Trained on {made['labelled']} labelled and {made['unlabelled']} unlabelled scans in "
        f"{made['train_seconds']:.0f} s. Made in {folder}:"
    )
    for name, what in made["files"].items():
        _say(f"  {folder / name}: {what}")
    _say("On your own scans (a folder of images, some of them with a label map):")
    _say(
        "  dkuxnet prepare SCANS prepared\n  dkuxnet train prepared runs/first\n"
        "  dkuxnet predict runs/first NEW_SCANS --output predictions\n  dkuxnet report runs/first"
    )


@contextmanager
def benchmark_watch() -> Iterator["Watch"]:
    """What a benchmark calls: a bar for each run on a terminal, then its line and the tables."""
    from dkuxnet.benchmark.benchmark import Watch

    if not console.is_terminal:
        yield Watch(_plain_starts(), _show_run)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def progress(run: str, what: str, done: int, total: int, figures: dict[str, float]) -> None:
            if run not in tasks:
                tasks[run] = bars.add_task("", total=total)
            bars.update(
                tasks[run], description=escape(f"{run} {what}"), completed=done, total=total
            )

        def ended(run: "WantedRun", error: str, comparison: "Comparison") -> None:
            if run.name in tasks:
                bars.remove_task(tasks.pop(run.name))
            _show_run(run, error, comparison)

        yield Watch(progress, ended)


def _plain_starts() -> Callable[[str, str, int, int, dict[str, float]], None]:
    """Progress without a terminal: a line when a run begins and when its evaluation begins."""
    begun: set[tuple[str, str]] = set()

    def progress(run: str, what: str, done: int, total: int, figures: dict[str, float]) -> None:
        if (run, what) not in begun:
            begun.add((run, what))
            _say(f"{run}: {what} {done}/{total}")

    return progress


def _show_run(run: "WantedRun", error: str, comparison: "Comparison") -> None:
    from dkuxnet.evaluation.metrics import DICE

    if error:
        _say(f"{run.name} failed: {error}")
    else:
        table = next(
            t
            for t in comparison.tables
            if t.network == run.network and run.labelled in (t.labelled, None)
        )
        row = (
            table.bound
            if run.labelled is None
            else next(row for row in table.rows if row.arm == run.arm)
        )
        _say(
            f"{run.arm}, {run.network}, {'all' if run.labelled is None else run.labelled} "
            f"labelled, seed {run.seed}: "
            f"Dice {DICE.show(row.dice_by_seed[run.seed], compared=True)}, "
            f"{row.minutes_by_seed[run.seed]:.1f} min"
        )
    if comparison.done + len(comparison.failed) < comparison.wanted:  # else it is shown at the end
        _show_comparison(comparison)


def show_benchmark(comparison: "Comparison") -> None:
    """The tables, the answer and where the page is; the command says what failed."""
    from dkuxnet.benchmark.words import headlines

    _show_comparison(comparison)
    for line in headlines(comparison):
        _say(line)
    figure = ", figure.svg" if comparison.done else ""
    _say(f"in {comparison.output}: benchmark.html, benchmark.md, benchmark.json, cases.csv{figure}")


def _show_comparison(comparison: "Comparison") -> None:
    """The tables: drawn on a terminal, else the lines of benchmark.md."""
    from dkuxnet.benchmark.text import HEADINGS, cells, markdown_table
    from dkuxnet.benchmark.words import counted, title

    seeds = len(comparison.seeds)
    _say(f"{comparison.done} of {comparison.wanted} runs finished")
    for each in comparison.tables:
        if not console.is_terminal:
            _say("\n".join([title(each), *markdown_table(each, seeds), *counted(each.all_rows)]))
            continue
        table = Table(title=title(each), title_justify="left")
        for number, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="left" if number == 0 else "right")
        for row in each.all_rows:
            table.add_row(*(escape("\n".join(filter(None, cell))) for cell in cells(row, seeds)))
        console.print(table)
        for line in counted(each.all_rows):
            _say(line)


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _show_summary(
    summary: "dict[str, dict[str, Statistic]]",
    title: str,
    found: "dict[str, Found] | None",
    asked: Sequence["Metric"] = (),
) -> None:
    from dkuxnet.cli.scores import asked_table, scores_table

    table, below = scores_table(summary, title, found)
    console.print(table)
    if asked:
        console.print(asked_table(summary, asked))
    if below:
        _say(below)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


def weights_of(run: Path, asked: str | None = None) -> str:
    from dkuxnet.runs.folder import RunFolder
    from dkuxnet.runs.folds import runs_in

    return asked or weights_chosen(RunFolder(runs_in(run)[0]).choose_weights())
