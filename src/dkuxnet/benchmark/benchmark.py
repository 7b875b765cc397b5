"""A benchmark: check everything, make the missing runs, and write after each what is known so far.

OUTPUT/runs/ARM_NETWORK_nLABELLED_seedS   the runs, each a run folder like any other
OUTPUT/benchmark.md, benchmark.json       the tables, rewritten after every run
OUTPUT/cases.csv                          every test case of every finished run, rewritten with them
OUTPUT/benchmark.html, figure.svg         the page, at the end
OUTPUT/failed/RUN.txt                     the traceback of a run that failed unexpectedly
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkuxnet.benchmark.figures import (
    Comparison,
    Finished,
    cases_csv,
    compare,
    is_finished,
    read_finished,
)
from dkuxnet.benchmark.grid import Grid, WantedRun, read_grid, wanted_runs
from dkuxnet.benchmark.page import write_page
from dkuxnet.benchmark.text import write_tables
from dkuxnet.benchmark.trainings import RunProgress, make
from dkuxnet.core.config import Settings, flatten, how_settings
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Document, Split
from dkuxnet.core.types import NetworkShape
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.machine.files import inside, write_text
from dkuxnet.machine.lock import locked
from dkuxnet.machine.processes import stopping_on_sigterm
from dkuxnet.models.build import build_method
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.identity import arrays_sha256, data_identity
from dkuxnet.training.job import Job, new_job, settings_of, uses_unlabelled, write_out_options
from dkuxnet.training.loop import Interrupted


@dataclass(frozen=True)
class Watch:
    """Who follows a benchmark.

    progress: called during a run. ended: called after each, with the error's line ("" where there
    is none) and the comparison so far.
    """

    progress: RunProgress = lambda run, what, done, total, figures: None
    ended: Callable[[WantedRun, str, Comparison], None] = lambda run, error, comparison: None


def run_benchmark(
    file: StrPath,
    prepared: StrPath | None = None,
    output: StrPath | None = None,
    processes: int = 1,
    watch: Watch | None = None,
) -> Comparison:
    """Make the runs of the grid in `file` that are not there yet; write what all say to `output`.

    prepared, output: in place of the file's. processes: trainings at once; above 1 each has a
    process and its share of the cores. Raises UserError, before anything is made, for whatever is
    wrong with the grid or does not fit the data or the runs that are there;
    training.loop.Interrupted after Ctrl-C or SIGTERM: the same call goes on. A run that fails stops
    no other: its line is in the comparison.
    """
    watch = watch or Watch()
    grid = read_grid(file, prepared, output)
    runs = check(grid)
    folder = grid.output / "runs"
    with locked(make_folder(grid.output), "benchmark"):
        done = read_finished(folder, runs)  # damage is told now, not after a training
        missing = {run.name: run for run in runs if run.name not in done}
        for name in missing:
            inside(folder, name)
        failed: dict[str, str] = {}
        try:
            with (
                stopping_on_sigterm(),
                closing(make([*missing.values()], grid, processes, watch.progress)) as made,
            ):
                for name, error in made:
                    failed |= {name: error} if error else {}
                    done |= read_finished(folder, [missing[name]])
                    watch.ended(missing[name], error, write_so_far(grid, runs, done, failed))
                comparison = write_so_far(grid, runs, done, failed)
                write_page(comparison, grid.output)
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(
                f"stopped; finished runs and the states of unfinished ones are in {folder}"
            ) from None
    return comparison


def write_so_far(
    grid: Grid, runs: list[WantedRun], done: dict[str, Finished], failed: dict[str, str]
) -> Comparison:
    """What is known so far, written to the grid's output."""
    comparison = compare(grid, runs, done, failed)
    write_tables(comparison, grid.output)
    write_text(grid.output / "cases.csv", cases_csv(runs, done))
    return comparison


# --- before anything is made ---


def check(grid: Grid) -> list[WantedRun]:
    """The runs of the grid, after a look at all that could be wrong; nothing is written."""
    advised = PreparedSet(grid.prepared).meta.plan.network
    runs = wanted_runs(grid, advised)
    check_pool(grid, new_job(grid.prepared, runs[0].settings))  # the bound: it has all labels
    shapes: dict[tuple[str, str], tuple[Settings, NetworkShape]] = {}
    for run in runs:
        job = new_job(grid.prepared, run.settings)
        check_existing(grid.output, run, job)
        check_unlabelled(run, job)
        if not is_finished(grid.output / "runs" / run.name):
            shapes.setdefault((run.arm, run.network), (run.settings, job.shape))
    for settings, shape in shapes.values():
        build_method(settings, shape, advised)  # refuses what does not fit together
    return runs


def check_pool(grid: Grid, job: Job) -> None:
    """Raises UserError for an empty test list and for more labels than there are.

    job: a run with all labels of the pool.
    """
    split = job.split
    if not split.test:
        raise UserError(
            "the test list is empty, so there is nothing to compare; set data.test_cases in "
            "[settings], or data.split to a file with a test list"
        )
    # a validation list of the split's own file is no part of the pool
    pool = len(split.labelled) + job.settings.data.validation_cases
    for count in grid.labelled:
        if count > pool:
            raise UserError(
                f"labelled holds {count}, but the training pool has {pool} labelled cases of "
                f"{pool + len(split.unlabelled)}; ask for fewer, or add labels and prepare again"
            )


def check_unlabelled(run: WantedRun, job: Job) -> None:
    """Raises UserError where a method that learns from unlabelled scans would see none.

    It would be another method.
    """
    if not uses_unlabelled(run.settings):
        return
    if not job.split.unlabelled:
        raise UserError(
            f"labelled holds {run.labelled}, which leaves no case of the pool unlabelled for "
            f"{run.arm}; ask for fewer"
        )
    if not run.settings.train.unlabelled_batch:
        raise UserError(
            f"with train.unlabelled_batch=0 {run.arm} would see no unlabelled case; leave out "
            "that setting, or the arm"
        )


def check_existing(output: Path, run: WantedRun, job: Job) -> None:
    """Raises UserError where a run of that name is there and is another one."""
    folder = output / "runs" / run.name
    if not folder.exists():
        return
    if not (folder / "settings.json").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise UserError(
                f"{folder} is there and is no run (no settings.json); move it away, or choose "
                "another output"
            )
        return
    there = dict(flatten(_written_out(settings_of(RunFolder(folder))).model_dump(mode="json")))
    here = dict(flatten(job.settings.model_dump(mode="json")))
    if (folder / "manifest.json").is_file():
        manifest, identity = RunFolder(folder).manifest, data_identity(job.data)
        there |= {key: getattr(manifest, key) for key in identity} | _lists(manifest.split)
        here |= identity | _lists(job.split)
        if manifest.test is not None:
            there["weights"] = manifest.weights or "final"
            here["weights"] = "best" if job.split.validation else "final"
        there["class_first"], here["class_first"] = manifest.class_first, job.class_first
        there["a coarse stage"], here["a coarse stage"] = manifest.coarse, job.coarse is not None
        if manifest.arrays_sha256 is not None:  # older runs have none
            there["arrays_sha256"] = manifest.arrays_sha256
            here["arrays_sha256"] = arrays_sha256(job.data, job.split)
    # of a split the lists themselves are compared, not their file
    ignored = {"data.split", *how_settings()}
    for key in here | there:
        if key not in ignored and here.get(key) != there.get(key):
            raise UserError(
                f"{output} holds runs of another grid: {key} is {_brief(there.get(key))} there, "
                f"{_brief(here.get(key))} here ({run.name}); choose another output"
            )


def _written_out(settings: Settings) -> Settings:
    """With the defaults of options that are newer than the run.

    As they are where the run has some that are no more.
    """
    try:
        return write_out_options(settings)
    except UserError:
        return settings


def _lists(split: Split) -> dict[str, tuple[str, ...]]:
    """Keys as a message names them."""
    return {f"the {key} list": names for key, names in split.lists().items()}


def _brief(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, default=Document.to_json)
    return text if len(text) <= 60 else f"{text[:57]}..."


def make_folder(output: Path) -> Path:
    """The benchmark's folder, there. Raises UserError where it cannot be made."""
    try:
        inside(output, "failed")
        inside(output, "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{output}: cannot write there: {error.strerror}; choose another output"
        ) from error
    return output
