"""How many steps of a training fit into some minutes on this machine: a few of them are tried."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from dkuxnet.core.config import MAX_STEPS, Settings
from dkuxnet.core.errors import UserError, telling_disk_errors
from dkuxnet.core.types import Batch
from dkuxnet.machine.devices import deterministic, telling_out_of_memory, to_device
from dkuxnet.machine.distributed import joined, on_rank_zero, world
from dkuxnet.machine.memory import free_bytes, giving_back_large_blocks
from dkuxnet.models.build import build_method
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.advice import check_step_fits, memory_advice
from dkuxnet.training.experiment import batches
from dkuxnet.training.job import Job, new_job, with_steps
from dkuxnet.training.loop import TrainState, make_state, train_step, uses_bfloat16
from dkuxnet.training.scoring import validation_dice

TRIED = 3  # the first steps take memory and choose kernels: they tell how many to measure
LEAST, MOST = 5, 100  # steps that are measured, as many as last a MEASURED-th of the time
MEASURED = 50
LEAST_STEPS = 10  # of a training


@telling_out_of_memory()
@telling_disk_errors()
def settings_for(
    minutes: float, prepared: Path, run: Path, settings: Settings
) -> tuple[Settings, str]:
    """The settings with as many steps as fit into the minutes, and a sentence that says so.

    The minutes are those of the measuring, of the steps and of validations, without the evaluation
    of the test list. Nothing is written. Of several processes all must call this, and all get the
    same. Raises UserError where that is no training, and for whatever `run_training` would refuse.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be a number above 0, got {minutes:g}")
    began = time.monotonic()
    with joined(), ExitStack() as trial:
        RunFolder.check_new(run)
        # the last steps of a training without an end: all ramps have risen, pre-trainings are over
        job = new_job(prepared, with_steps(settings, MAX_STEPS))
        trial.enter_context(deterministic(job.settings.train.deterministic))
        trial.enter_context(giving_back_large_blocks())
        built = build_method(job.settings, job.shape, job.data.meta.plan.network)
        method, free = to_device(built, job.device), free_bytes(job.device)
        check_step_fits(method, job, free, resume=False)
        state = make_state(method, job.settings.train)
        with telling_out_of_memory(lambda: memory_advice(method, job, free)):
            step, validation = measure(job, state, minutes, began)
        step += validation / job.settings.train.validate_every  # and the last one is extra
        steps, said = on_rank_zero(
            lambda: fitting(minutes, step, time.monotonic() - began + validation)
        )
    if job.split.test:
        said += "; the evaluation of the test list comes after them"
    return with_steps(settings, steps), said


def fitting(minutes: float, step: float, spent: float) -> tuple[int, str]:
    """How many steps fit into the minutes, and a sentence that says so.

    step: seconds of one. spent: seconds that are no training. Raises UserError for too few.
    """
    steps = min(max(int((60 * minutes - spent) / step), 0), MAX_STEPS)
    said = f"{steps:,} steps of {step:.2g} s fit into {minutes:g} minute{'s' * (minutes != 1)}"
    if steps < LEAST_STEPS:
        needed = math.ceil(12 * (spent + LEAST_STEPS * step) / 60) / 10  # with a fifth to spare
        raise UserError(
            f"{said}, and a training has at least {LEAST_STEPS}: give --minutes {needed:g} or more"
        )
    return steps, said


def measure(job: Job, state: TrainState, minutes: float, began: float) -> tuple[float, float]:
    """Seconds of a step and of a validation, 0 where there are no validation cases.

    began: when the minutes did. Raises UserError as soon as it is clear that too few steps fit.
    """
    state.step = MAX_STEPS - TRIED - MOST
    tried = batches(job, state.step)
    first = min([timed(job, state, tried, 1) for _ in range(TRIED)][1:])

    def to_measure() -> int:
        fitting(minutes, first, time.monotonic() - began + LEAST * first)
        return min(max(math.ceil(60 * minutes / MEASURED / first), LEAST), MOST)

    count = on_rank_zero(to_measure)
    step = timed(job, state, tried, count) / count
    cases = job.split.validation
    if not cases:
        return step, 0.0
    some = job.split.model_copy(update={"validation": cases[: world()]})
    started = time.monotonic()
    validation_dice(state.predicting().predictor().eval(), replace(job, split=some))
    return step, (time.monotonic() - started) * len(cases) / len(some.validation)


def timed(job: Job, state: TrainState, tried: Iterator[Batch], count: int) -> float:
    """Seconds of the next `count` steps."""
    train, device = job.settings.train, job.device
    precision = torch.bfloat16 if uses_bfloat16(train.precision, device) else torch.float32
    started = time.monotonic()
    for batch in islice(tried, count):
        _, norm = train_step(state, batch, train, device, precision)
        state.step += 1
    norm.item()  # a GPU is waited for
    return time.monotonic() - started
