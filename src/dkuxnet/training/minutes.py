"""How many steps of a training fit into some minutes on this machine: a few of them are tried."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dkuxnet.core.config import MAX_STEPS, Settings
from dkuxnet.core.errors import UserError, telling_disk_errors
from dkuxnet.core.types import Batch
from dkuxnet.data.geometry import Region, resample_region
from dkuxnet.machine.devices import deterministic, telling_device_errors
from dkuxnet.machine.distributed import joined, on_rank_zero, world
from dkuxnet.machine.memory import free_bytes, giving_back_large_blocks
from dkuxnet.prediction.windows import sliding_window
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.advice import check_step_fits, memory_advice
from dkuxnet.training.coarse import CoarseStage
from dkuxnet.training.experiment import batches, make_method
from dkuxnet.training.job import Job, new_job, unlabelled_patches, windows_of, with_steps
from dkuxnet.training.loop import TrainState, compiled, make_state, train_step, uses_bfloat16
from dkuxnet.training.priors import Priors
from dkuxnet.training.scoring import validation_dice

TRIED = 3  # the first steps take memory and choose kernels: they tell how many to measure
LEAST, MOST = 5, 100  # steps that are measured, as many as last a MEASURED-th of the time
MEASURED = 50
LEAST_STEPS = 10  # of a training


@dataclass(frozen=True)
class Cost:
    """Seconds of a stage: of a step, its share of the validations included, and of the last one."""

    step: float
    last: float
    predictor: nn.Module


@telling_device_errors()
@telling_disk_errors()
def settings_for(
    minutes: float, prepared: Path, run: Path, settings: Settings
) -> tuple[Settings, str]:
    """The settings with as many steps as fit into the minutes, and a sentence that says so.

    The minutes are those of the measuring, of the steps and validations of both stages, and of what
    the coarse one says of unlabelled cases, without the evaluation of the test list. Nothing is
    written. Of several processes all must call this, and all get the same. Raises UserError where
    that is no training, and for whatever `run_training` would refuse.
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
        step = spent = 0.0
        coarse = None
        if job.coarse:
            step, spent, coarse = cost_of_coarse(job, job.coarse, minutes, began)
        fine = cost(job, minutes, began, coarse)
        step, spent = step + fine.step, spent + fine.last
        steps, said = on_rank_zero(lambda: fitting(minutes, step, time.monotonic() - began + spent))
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


def cost_of_coarse(
    job: Job, coarse: Job, minutes: float, began: float
) -> tuple[float, float, CoarseStage]:
    """Seconds that the coarse stage adds to each step of the fine one, and all in all; the stage.

    A number of steps that is set for it stays, and one that is trained already has none.
    """
    asked = job.settings.coarse
    own = coarse.settings.train.steps
    settings = with_steps(coarse.settings, MAX_STEPS)
    its = cost(replace(coarse, settings=settings), minutes, began)
    step, spent = its.step, its.last
    if asked.run is not None:
        step = spent = 0.0
    elif "steps" in asked.train:
        step, spent = 0.0, spent + own * step
    cases = job.unlabelled if unlabelled_patches(job) else job.partly_labelled
    started = time.monotonic()
    windows = windows_of(coarse)
    for name in cases[:1]:
        sliding_window(its.predictor, coarse.training.array(name, "image"), windows)
    spent += (time.monotonic() - started) * math.ceil(len(cases) / world())
    return step, spent, CoarseStage(its.predictor, NothingFound(Path(), coarse.data))


class NothingFound(Priors):
    """In the place of what the coarse stage will say: as large, and resampled likewise."""

    def crop(
        self, name: str, grid: Sequence[int], start: Sequence[int], shape: Sequence[int]
    ) -> np.ndarray:
        stored = np.zeros((len(self.coarse.class_names) - 1, *self.coarse.shape(name)), np.uint8)
        box = [slice(a, a + n) for a, n in zip(start, shape, strict=True)]
        return resample_region(stored, Region.of(grid, box)) / np.float32(255)


def cost(job: Job, minutes: float, began: float, coarse: CoarseStage | None = None) -> Cost:
    """Try some steps of a stage, and a validation case.

    began: when the minutes did. Raises UserError as soon as it is clear that too few steps fit.
    """
    method, free = make_method(job), free_bytes(job.device)
    check_step_fits(method, job, free, resume=False)
    state = make_state(method, job.settings.train)
    with telling_device_errors(lambda: memory_advice(method, job, free)):
        state.step = MAX_STEPS - TRIED - MOST
        tried = batches(job, state.step, coarse)
        first = min([timed(job, state, tried, 1) for _ in range(TRIED)][1:])

        def to_measure() -> int:
            fitting(minutes, first, time.monotonic() - began + LEAST * first)
            return min(max(math.ceil(60 * minutes / MEASURED / first), LEAST), MOST)

        count = on_rank_zero(to_measure)
        step, predictor = timed(job, state, tried, count) / count, state.predicting().predictor()
        cases, started = job.split.validation, time.monotonic()
        if not cases:
            return Cost(step, 0, predictor.eval())
        some = job.split.model_copy(update={"validation": cases[: world()]})
        validation_dice(predictor.eval(), replace(job, split=some), coarse)
        last = (time.monotonic() - started) * len(cases) / len(some.validation)
    return Cost(step + last / job.settings.train.validate_every, last, predictor)


def timed(job: Job, state: TrainState, tried: Iterator[Batch], count: int) -> float:
    """Seconds of the next `count` steps."""
    train, device = job.settings.train, job.device
    precision = torch.bfloat16 if uses_bfloat16(train.precision, device) else torch.float32
    started = time.monotonic()
    with compiled(state.method, train, device):
        for batch in islice(tried, count):
            _, norm = train_step(state, batch, train, device, precision)
            state.step += 1
    norm.item()  # a GPU is waited for
    return time.monotonic() - started
