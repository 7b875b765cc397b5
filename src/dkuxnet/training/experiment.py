"""READ FIRST: the whole job, from settings to scores, top to bottom.

Settings -> data -> networks -> method -> train -> evaluate. Everything that has a mechanism is
somewhere else; here is only what follows what.
"""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dkuxnet.core.config import Settings
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import DataWarning, telling_disk_errors
from dkuxnet.core.schemas import Manifest
from dkuxnet.core.seeds import VIEWS, step_seed
from dkuxnet.core.types import Batch, TrainProgress
from dkuxnet.machine.devices import deterministic, telling_device_errors, to_device
from dkuxnet.machine.distributed import joined, on_rank_zero, rank
from dkuxnet.machine.lock import locked
from dkuxnet.machine.memory import (
    forget_peak_memory,
    free_bytes,
    giving_back_large_blocks,
    peak_memory_gib,
)
from dkuxnet.models.build import StateDict, build_method
from dkuxnet.models.methods.base import Method
from dkuxnet.prediction.predictor import load_predictor, predicting
from dkuxnet.runs.folder import MutedRun, RunFolder
from dkuxnet.training.advice import check_step_fits, memory_advice, missing_classes
from dkuxnet.training.begin import earlier_weights
from dkuxnet.training.coarse import CoarseStage, copy_run, write_priors
from dkuxnet.training.job import (
    Job,
    check_processes,
    describe,
    lengthen,
    loss_form,
    new_job,
    resumed_job,
    unlabelled_patches,
    warn_of_patches_alone,
    warn_without_unlabelled,
)
from dkuxnet.training.loop import NotFinite, TrainState, make_state, train
from dkuxnet.training.patches import Patches, PatchStream, read_ahead
from dkuxnet.training.postprocessing import choose_postprocessing
from dkuxnet.training.reference import write_reference
from dkuxnet.training.scoring import evaluate_test, validation_dice
from dkuxnet.training.views import change_intensities, make_views

Tensors = tuple[Tensor, Tensor | None]  # images, labels of labelled ones


@telling_device_errors()
@telling_disk_errors()
def run_training(
    prepared: StrPath,
    run: StrPath,
    settings: Settings,
    resume: bool = False,
    progress: TrainProgress | None = None,
    steps: int | None = None,
) -> Manifest:
    """Train on a prepared set in a new run folder, then evaluate the test list; the manifest.

    Where the job has a coarse stage, that is trained first, in RUN/coarse. resume: go on with the
    run as its folder describes it; `settings` is then ignored. steps: that it then has in all, see
    `job.lengthen`. Raises UserError for anything wrong with the input,
    `training.loop.Interrupted` after Ctrl-C. A new run that fails before it saved anything leaves
    no folder.
    """
    prepared, run = Path(prepared), Path(run)
    with joined():
        show = progress if progress and not rank() else _silent
        job = resumed_job(prepared, run, steps) if resume else new_job(prepared, settings)
        check_processes(job)
        for told in [] if rank() else missing_classes(job):
            warnings.warn(told, DataWarning, stacklevel=2)
        for stage in [] if resume else [job.coarse, job]:
            if stage:
                warn_without_unlabelled(stage)
        return train_stage(job, run, resume, show)


def train_stage(job: Job, run: Path, resume: bool, progress: TrainProgress) -> Manifest:
    """Train a job, and before it the coarse stage where it has one."""
    with ExitStack() as open_run:
        open_run.enter_context(deterministic(job.settings.train.deterministic))
        forget_peak_memory(job.device)  # of a training before this one
        open_run.enter_context(giving_back_large_blocks())
        method = make_method(job)
        check_step_fits(method, job, free_bytes(job.device), resume)
        warn_of_patches_alone(job)
        if not resume:
            on_rank_zero(lambda: RunFolder.make(run, job.settings, describe(job, method)))
        folder = MutedRun(run) if rank() else RunFolder.open(run)
        on_rank_zero(lambda: open_run.enter_context(locked(folder.folder, "training")))
        try:
            coarse = coarse_stage(job, job.coarse, folder, progress) if job.coarse else None
            if not folder.has_progress and (start := start_weights(job, method, coarse)):
                method = make_method(job, start)
            state = make_state(method, job.settings.train)
            if resume:
                if folder.has_progress:  # else it was killed before, and begins
                    state.restore(folder.load_checkpoint())
                if on_rank_zero(lambda: lengthen(folder, job, state.step)):
                    state.stale = 0
                folder.rewind_metrics(state.step)
            free = free_bytes(job.device)
            tracked, telling = folder.tracked(), lambda: memory_advice(method, job, free)
            with tracked, telling_device_errors(telling):
                train_and_evaluate(job, state, folder, progress, coarse)
        finally:
            if not resume:
                folder.discard_unless_saved()
    return folder.manifest


def coarse_stage(job: Job, coarse: Job, folder: RunFolder, progress: TrainProgress) -> CoarseStage:
    """The coarse stage of a job: trained, or gone on with, or copied where the settings name one.

    coarse: its own job. folder: of the fine stage.
    """
    run, given = folder.coarse, job.settings.coarse.run

    def show(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        progress(f"coarse {what}", done, total, figures)

    def begun() -> bool:
        if not run.is_run:  # else what a kill left before it was one
            shutil.rmtree(run.folder, ignore_errors=True)
        return run.is_run

    if given is not None:
        on_rank_zero(lambda: copy_run(given, run.folder))
    elif not on_rank_zero(lambda: run.is_finished):
        train_stage(coarse, run.folder, on_rank_zero(begun), show)
    predictor, _, _ = load_predictor(run.folder, device=str(job.device))
    asked = job.unlabelled if unlabelled_patches(job) else job.partly_labelled
    priors = write_priors(
        coarse, asked, run.folder, predictor, lambda done, total: show("predict", done, total, {})
    )
    return CoarseStage(predictor, priors)


def start_weights(job: Job, method: Method[Any], coarse: CoarseStage | None) -> list[StateDict]:
    """What the networks begin with: an earlier run's weights, the coarse stage's, or none."""
    if (run := job.settings.train.pretrained) is not None:
        return earlier_weights(run, job, method.networks[0])
    return coarse.weights if coarse and job.settings.coarse.start else []


def make_method(job: Job, start: Sequence[StateDict] = ()) -> Method[Any]:
    """The method of a job on its device. start: weights to begin with, see `build_method`."""
    network = job.data.meta.plan.network
    method = to_device(build_method(job.settings, job.shape, network, start), job.device)
    method.form = loss_form(job.settings.loss, job.data.class_names)
    return method


def train_and_evaluate(
    job: Job,
    state: TrainState,
    folder: RunFolder,
    progress: TrainProgress,
    coarse: CoarseStage | None,
) -> None:
    """From state.step to the end, then the test list.

    Raises NotFinite with the cases of the step at fault.
    """
    steps = job.settings.train.steps

    def validate(predictor: nn.Module) -> float:
        return validation_dice(predictor, job, coarse)

    def show(step: int, figures: dict[str, float]) -> None:
        progress("train", step, steps, figures)

    try:
        train(
            state,
            batches(job, state.step, coarse),
            job.settings.train,
            folder,
            job.device,
            validate if job.split.validation else None,
            show,
        )
    except NotFinite as error:
        cases = [name for stream in patch_streams(job) for name in stream.names_at(error.step)]
        raise NotFinite(error.step, f"{error}; its cases: {', '.join(cases)}") from error
    weights = on_rank_zero(folder.choose_weights)
    if weights == "best":
        best = on_rank_zero(lambda: folder.load_weights(weights))
        state.predicting().load_state_dict(best)
    predictor = state.predicting().predictor().eval()
    peak_gib = peak_memory_gib(job.device)
    if job.split.validation and job.settings.infer.postprocessing == "chosen":
        chosen = choose_postprocessing(predictor, job, coarse)
        folder.update_manifest(postprocessing=chosen.to_json())
        settings = predicting(job.settings, job.data.class_names, chosen)
        job = replace(job, settings=settings)
    write_reference(folder, predictor, job, coarse, partial(_count, progress, "compare"))
    folder.update_manifest(
        train_seconds=round(state.seconds, 1),
        steps_done=state.step,
        peak_memory_gib=peak_gib,
        weights=weights,
    )
    if job.split.test:
        evaluate_test(folder, predictor, job, partial(_count, progress, "evaluate"), coarse)


def batches(job: Job, first: int, coarse: CoarseStage | None = None) -> Iterator[Batch]:
    """The batches of the steps from `first` on: patches read ahead, views made here.

    Made in another thread, on a CPU, views would take torch's threads from the networks.
    """
    last, workers = job.settings.train.steps, job.settings.data.workers
    steps = read_ahead(patch_streams(job, coarse), first, last, workers, pinned)
    return (make_batch(job, step, patches) for step, patches in enumerate(steps, first))


def make_batch(job: Job, step: int, patches: Sequence[Tensors]) -> Batch:
    """The views of the patches of a step, on the device of the job."""
    seed = step_seed(job.settings.train.seed, VIEWS, step)
    generator = torch.Generator(job.device).manual_seed(seed)
    augment, views = job.settings.augment, []
    for image, label in patches:
        image = image.to(job.device, non_blocking=True)
        label = None if label is None else label.to(job.device, non_blocking=True)
        spacing_mm = job.data.meta.plan.spacing_mm
        coarse_mm = job.coarse.data.meta.plan.spacing_mm if job.coarse else None
        views.append(
            make_views(
                image,
                label,
                augment,
                generator,
                spacing_mm,
                job.shape.classes,
                coarse_mm,
                with_priors=bool(job.partly_labelled),
            )
        )
    labelled, *others = views
    strengthen = partial(
        change_intensities, settings=augment.strong, edges=labelled.edges, kept=job.priors
    )
    return Batch(labelled, others[0] if others else None, strengthen)


def pinned(patches: Patches) -> Tensors:
    """Patches as tensors, where there is a GPU in memory that it reads by itself.

    From any other the program would wait for each copy, and so for all that the GPU was told
    before.
    """
    image, label = (None if part is None else torch.from_numpy(part) for part in patches)
    if torch.cuda.is_available():
        image, label = (None if part is None else part.pin_memory() for part in (image, label))
    if image is None:
        raise ValueError("patches without images")
    return image, label


def patch_streams(job: Job, coarse: CoarseStage | None = None) -> list[PatchStream]:
    """Where the patches come from: labelled cases, and unlabelled ones if the method uses them."""
    chosen, data, margin = job.settings.train, job.settings.data, job.settings.augment.margin
    streams = [
        PatchStream(
            job.training,
            job.split.labelled,
            job.patch,
            chosen.labelled_batch,
            chosen.seed,
            True,
            data.foreground_share,
            job.class_first,
            margin,
            coarse.priors if coarse and job.partly_labelled else None,
        )
    ]
    if count := unlabelled_patches(job):
        streams.append(
            PatchStream(
                job.training,
                job.unlabelled,
                job.patch,
                count,
                chosen.seed,
                False,
                margin=margin,
                priors=coarse.priors if coarse else None,
            )
        )
    return streams


def _count(progress: TrainProgress, what: str, done: int, total: int) -> None:
    progress(what, done, total, {})


def _silent(what: str, done: int, total: int, figures: dict[str, float]) -> None:
    """Progress that nobody follows."""
