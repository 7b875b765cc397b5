"""The trainings of a benchmark, one after another or side by side: what fails or dies is a line
and stops no other.

Apart from benchmark.py because every process of it imports this module, and needs no tables or
figures.
"""

import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from dkuxnet.benchmark.grid import Grid, WantedRun
from dkuxnet.core.config import Settings
from dkuxnet.core.errors import UserError
from dkuxnet.machine.files import write_text
from dkuxnet.machine.processes import side_by_side
from dkuxnet.models.methods import METHODS
from dkuxnet.models.networks import NETWORKS
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.experiment import run_training
from dkuxnet.training.loop import Interrupted, NotFinite

Progress = Callable[
    [str, str, int, int, dict[str, float]], None
]  # run, what, done, of how many, figures


def make(
    missing: list[WantedRun], grid: Grid, processes: int, progress: Progress
) -> Iterator[tuple[str, str]]:
    """Make the runs; yields (name, "" or the line of what went wrong) as they end."""
    threads = (
        0 if processes == 1 else max(1, usable_cores() // max(1, min(processes, len(missing))))
    )
    jobs = {
        run.name: (grid.prepared, grid.output, run.name, run.settings, threads, (METHODS, NETWORKS))
        for run in missing
    }
    if processes == 1:
        for name, job in jobs.items():
            yield name, train_one(partial(progress, name), *job)
    else:
        yield from side_by_side(train_one, jobs, processes, tell_death, progress)


def train_one(
    tell: Callable[..., None],
    prepared: Path,
    output: Path,
    name: str,
    settings: Settings,
    threads: int,
    tables: tuple[dict[str, str], dict[str, str]],
) -> str:
    """One run, gone on with where it left a checkpoint; "" or the line of what went wrong.

    A fault (an exception that nobody foresaw, a loss that is no number) drops the checkpoint: once
    the method is mended, the run starts anew and has no step of the faulty one. What stops a run
    from outside (Ctrl-C, a kill, no memory) keeps it.

    threads: of torch; 0 leaves them. tables: METHODS and NETWORKS of the process that asks, which
    may have more entries.
    """
    if threads:
        torch.set_num_threads(threads)
    METHODS.update(tables[0])
    NETWORKS.update(tables[1])
    folder, report = output / "runs" / name, output / "failed" / f"{name}.txt"
    run = RunFolder(folder)
    resume = run.has_checkpoint
    try:
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)  # killed before it saved anything
        run_training(prepared, folder, settings, resume, tell)
    except Interrupted as stop:
        raise KeyboardInterrupt from stop
    except UserError as error:
        if isinstance(error, NotFinite):
            run.forget_checkpoints()
        return str(error)
    except Exception as error:  # a fault in one method must not cost the others their night
        run.forget_checkpoints()
        report.parent.mkdir(exist_ok=True)
        write_text(report, traceback.format_exc())
        return f"{type(error).__name__}: {' '.join(str(error).split())} (see {report})"
    report.unlink(missing_ok=True)
    return ""


def tell_death(exit_code: int) -> str:
    """The line for a process that ended without a word."""
    if hasattr(signal, "SIGKILL") and exit_code == -signal.SIGKILL:  # Windows has none
        return "its process was killed (SIGKILL), as happens where memory runs out; take fewer --processes or smaller patches"
    return f"its process ended with exit code {exit_code}"


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
