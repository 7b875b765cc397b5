"""Several processes for one training, started by this command or by torchrun."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import typer

from dkuxnet.cli.console import show_folds, show_trained, train_progress
from dkuxnet.core.config import Settings
from dkuxnet.core.errors import TOLD, UserError
from dkuxnet.machine.distributed import any_rank, joined
from dkuxnet.runs.folder import RunFolder
from dkuxnet.runs.folds import holds_folds
from dkuxnet.training.experiment import run_training
from dkuxnet.training.folds import run_folds
from dkuxnet.training.job import settings_of, with_steps, write_out_options
from dkuxnet.training.loop import Interrupted
from dkuxnet.training.minutes import settings_for

PATIENCE = 60  # seconds for the others to end by themselves once one has ended


def in_processes(devices: int) -> tuple[int, list[str]]:
    """Run this very command in `devices` processes on this machine.

    Returns the exit code and what went wrong, each error once, however many processes met it.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as told:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        env = {"OMP_NUM_THREADS": "1"} | os.environ
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), TOLD: told}
        env |= {"WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices)}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "dkuxnet", *sys.argv[1:]],
                env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
            )
            for rank in range(devices)
        ]
        _wait(processes)
        files = sorted(Path(told).iterdir(), key=lambda path: int(path.name))
        lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
        errors = list(dict.fromkeys(lines))
    codes = [process.returncode for process in processes]
    if not errors:
        errors = [
            f"process {rank} of {devices} was ended by signal {-code}"
            for rank, code in enumerate(codes)
            if code < 0
        ]
    return next((abs(code) for code in codes if code), 0), errors


def _wait(processes: list["subprocess.Popen[bytes]"]) -> None:
    """Until all have ended; where one fails, the others have PATIENCE."""

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    before = {each: signal.signal(each, pass_on) for each in (signal.SIGINT, signal.SIGTERM)}
    deadline = float("inf")
    try:
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes):
                deadline = min(deadline, time.monotonic() + PATIENCE)
            if time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.05)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def is_first() -> bool:
    """Whether this process reports: it is the only one, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def goes_on(run: Path) -> bool:
    """Whether torchrun has started the joined processes again after one ended, and a run is there.

    One that had saved nothing goes on from its first step.
    """
    counted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    # each machine's torchrun counts for itself
    there = RunFolder(run).is_run or holds_folds(run)
    return any_rank(counted, torch.device("cpu")) and there


def check_begun_here(run: Path, settings: Settings, any_steps: bool = False) -> None:
    """Raises UserError where the run that torchrun would go on with is not the one it began.

    That is one that is finished, or has other settings: the first start had refused its folder.
    any_steps: that start has chosen their number.
    """
    folder = RunFolder(run)
    manifest = folder.manifest
    if any_steps:
        settings = with_steps(settings, folder.settings.train.steps)
    finished = manifest.steps_done is not None and (manifest.test or not manifest.split.test)
    if finished or settings_of(folder) != write_out_options(settings):
        what = "a finished run" if finished else "a run of other settings"
        raise UserError(f"{run} exists already and is {what}; choose another run folder")


def again(prepared: Path, run: Path) -> str:
    """The command that goes on with a training, in as many processes.

    Who else started them, torchrun or a scheduler, does so again.
    """
    words = ["dkuxnet", "train", str(prepared), str(run), "--resume"]
    world = os.environ.get("WORLD_SIZE", "1")
    if TOLD in os.environ:
        words += ["--devices", world]
    as_before = "RANK" in os.environ and world != "1" and TOLD not in os.environ
    return shlex.join(words) + (f", in {world} processes as before" if as_before else "")


@contextmanager
def telling_stop(prepared: Path, run: Path) -> Iterator[None]:
    """A training that is stopped here tells the command that goes on, and ends with code 130."""
    try:
        yield
    except Interrupted as stop:
        if is_first():
            typer.echo(f"{stop}\nGo on with: {again(prepared, run)}", err=True)
        raise typer.Exit(130) from None


def train_folds(
    prepared: Path, folder: Path, settings: Settings, folds: int | None, resume: bool
) -> None:
    """Train the runs of a cross-validation and show their scores; see `run_folds`, `train_run`.

    folds: None where it goes on.
    """
    with telling_stop(prepared, folder), joined(), train_progress() as progress:
        resume = resume or goes_on(folder)
        result = run_folds(prepared, folder, settings, folds or 0, resume, progress)
    if is_first():
        show_folds(result, folder)


def train_run(
    prepared: Path,
    run: Path,
    settings: Settings,
    resume: bool,
    steps: int | None,
    minutes: float | None,
) -> None:
    """Train and show it, in this process or as one of several; see `run_training`.

    minutes: how long, where the settings do not say how many steps; a run that goes on has chosen
    them already.
    """
    with telling_stop(prepared, run), joined(), train_progress() as progress:
        if not resume and goes_on(run):
            check_begun_here(run, settings, minutes is not None)
            resume = True
        elif not resume and minutes is not None:
            settings, said = settings_for(minutes, prepared, run, settings)
            if is_first():
                typer.echo(said)
        manifest = run_training(prepared, run, settings, resume, progress, steps)
    if is_first():
        show_trained(manifest, run)
