"""What a training is about, from its settings or from the folder of a run that goes on."""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dkuxnet.core.config import LossSettings, MethodSettings, Settings, flatten
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.lookup import lookup, parse_options, unknown
from dkuxnet.core.schemas import Manifest, ShapeOfNetwork, Split
from dkuxnet.core.types import NetworkShape
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.splits import make_split
from dkuxnet.evaluation.more_metrics import Asked, parse_asked
from dkuxnet.machine.devices import choose_device
from dkuxnet.machine.distributed import check_alike, world
from dkuxnet.models.components import Cleaning
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.base import Method
from dkuxnet.models.methods.losses import LossForm
from dkuxnet.prediction.tta import check_views, views_of
from dkuxnet.prediction.windows import Windows
from dkuxnet.runs.folder import RunFolder, machine
from dkuxnet.runs.trackers import check_trackers
from dkuxnet.training.identity import arrays_sha256, data_identity, identity_sha256
from dkuxnet.training.optimiser import learning_rate
from dkuxnet.training.shape import network_shape, patch_for

LEAST_WARM_UPS = 8  # a training is so many warm-ups long, where their steps are left out


@dataclass(frozen=True)
class Job:
    """What a training is about: who trains and judges, what the network must hold.

    patch: (X, Y, Z) in voxels. class_first: see `PatchStream`; of a single class there is no such
    choice. data describes the set and opens no array. `training`, `validation`
    and `test` open what the split lets each of them see. coarse: of the stage that comes first,
    None without one.
    """

    settings: Settings
    data: PreparedSet
    training: PreparedSet
    validation: PreparedSet
    test: PreparedSet
    split: Split
    shape: NetworkShape
    patch: tuple[int, int, int]
    device: torch.device
    class_first: bool
    coarse: "Job | None" = None

    @property
    def priors(self) -> int:
        """How many channels of the network the coarse stage fills: its foreground probabilities."""
        return self.shape.classes - 1 if self.coarse else 0

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """The cases of unlabelled patches: also those whose labels do not say all."""
        return (*self.split.unlabelled, *self.partly_labelled)

    @property
    def partly_labelled(self) -> tuple[str, ...]:
        """The labelled cases whose labels do not say all."""
        return tuple(filter(self.data.is_partly_labelled, self.split.labelled))


def new_job(prepared: Path, settings: Settings) -> Job:
    """The job that the settings describe."""
    data, chosen = PreparedSet(prepared, settings.data.cache_gib), settings.data
    split = make_split(
        data.names,
        data.names_with_label,
        chosen.labelled,
        chosen.validation_cases,
        chosen.test_cases,
        chosen.split,
        chosen.labelled_seed,
    )
    check_held_back(data, split)
    check_inference(settings, data.class_names)
    loss_form(settings.loss, data.class_names)
    check_trackers(settings.train)
    asked_of(settings).check(list(data.meta.structures))
    if settings.train.patience and not split.validation:
        raise UserError(
            f"train.patience={settings.train.patience} needs validation cases: set "
            "data.validation_cases, or give a list of them in data.split"
        )
    if chosen_run := settings.train.pretrained:
        RunFolder.open(chosen_run)  # a slip of the pen is told before a coarse stage is trained
    coarse = coarse_job(data, split, settings)
    settings = write_out_options(settings)
    shape = network_shape(data, settings, with_priors=coarse is not None)
    return Job(
        settings,
        *views(data, split),
        split,
        shape,
        patch_for(shape, settings, data.meta.plan),
        choose_device(settings.train.device),
        class_first=len(data.class_names) > 2,
        coarse=coarse,
    )


def coarse_job(data: PreparedSet, split: Split, settings: Settings) -> Job | None:
    """The job of the coarse stage, None where there is none.

    Raises UserError where the settings ask for one that cannot be.
    """
    asked = settings.coarse
    if asked.use is False or (asked.use is None and asked.run is None and data.coarse is None):
        return None
    if data.coarse is None:
        raise UserError(
            f"{data.folder} has no coarser voxels for a coarse stage: prepare it with --coarse-mm, "
            "or leave coarse.use and coarse.run out"
        )
    if asked.run is None:
        return new_job(data.coarse, begun_with_its_stage(settings.coarse_stage()))
    job = resumed_job(data.coarse, asked.run)
    check_coarse_run(asked.run, job.split, split)
    return with_split(job, split)


def begun_with_its_stage(settings: Settings) -> Settings:
    """Settings of a coarse stage that begins with that of an earlier run, where this has one."""
    run = settings.train.pretrained
    if run is None or not (stage := RunFolder(run).coarse).is_run:
        return settings
    train = settings.train.model_copy(update={"pretrained": stage.folder})
    return settings.model_copy(update={"train": train})


def with_split(job: Job, split: Split) -> Job:
    """The job of a coarse stage that is trained, for the cases of the fine one."""
    data, training, validation, test = views(
        PreparedSet(job.data.folder, job.settings.data.cache_gib), split
    )
    return dataclasses.replace(
        job, data=data, training=training, validation=validation, test=test, split=split
    )


def check_coarse_run(run: Path, its: Split, split: Split) -> None:
    """Raises UserError where a coarse run was trained on what it is asked about, or never ended."""
    if not RunFolder.open(run).is_finished:
        raise UserError(f"coarse.run: {run} has not ended; dkuxnet train ... --resume goes on")
    asked = {*split.unlabelled, *split.validation, *split.test}
    seen = {*its.labelled} & asked or {*its.unlabelled, *its.validation} & {*split.test}
    if seen:
        raise UserError(
            f"coarse.run: {run} was trained on case '{min(seen)}', which it would be asked about; "
            "train it with the same split"
        )


def check_inference(settings: Settings, names: Sequence[str]) -> None:
    """Raises UserError where `infer` does not fit the classes; a DataWarning of its views."""
    Cleaning.of(settings.infer, names)
    for told in check_views(settings, names):
        warnings.warn(f"infer.tta: {told}", DataWarning, stacklevel=2)


def asked_of(settings: Settings) -> Asked:
    """The metrics of the test list beside METRICS. Raises UserError where they are none."""
    return parse_asked(settings.evaluate.metrics, settings.evaluate.tolerance_mm)


def loss_form(settings: LossSettings, names: Sequence[str]) -> LossForm:
    """That of L_seg. names: of the classes. Raises UserError for a weight of none of them."""
    given = settings.class_weights
    for name in given:
        if name not in names:
            raise unknown("class in loss.class_weights", name, names)
    weights = tuple(given.get(name, 1.0) for name in names) if given else ()
    return LossForm(weights, settings.focal, settings.tversky)


def check_held_back(data: PreparedSet, split: Split) -> None:
    """Raises UserError where the split trains on a case that `prepare` held back for testing."""
    held_back = set(data.meta.held_back)
    for name in (*split.labelled, *split.unlabelled, *split.validation):
        if name in held_back:
            raise UserError(
                f"case '{name}' was held back for testing when {data.folder} was prepared, and "
                f"this split trains on it: set data.test_cases={len(held_back)}, or data.split as "
                "it was then"
            )


def views(
    data: PreparedSet, split: Split
) -> tuple[PreparedSet, PreparedSet, PreparedSet, PreparedSet]:
    """The set with all arrays closed, and as training, validation and test may open it.

    Each opens its own cases: a mistake elsewhere can then not train on a label that the split holds
    back.
    """
    return (
        data.only(),
        data.only(image=(*split.labelled, *split.unlabelled), label=split.labelled),
        data.only(image=split.validation, label=split.validation),
        data.only(image=split.test, truth=split.test),
    )


def resumed_job(prepared: Path, run: Path, steps: int | None = None) -> Job:
    """The job of a run that is there, as its manifest has it, with `steps` in all where given.

    Raises UserError where the prepared set is another one, and where settings.json has other steps
    than the run was begun or lengthened with.
    """
    folder = RunFolder.open(run)
    folder.check_own()
    settings, manifest = settings_of(folder), folder.manifest
    planned = manifest.planned_steps
    if planned and settings.train.steps not in (planned[-1], steps):
        raise UserError(
            f"{run}/settings.json has {settings.train.steps} steps, but the run is one of "
            f"{planned[-1]}; put that back, and give the new number with --resume --steps"
        )
    if steps is not None:
        settings = with_steps(settings, steps)
    data = PreparedSet(prepared, settings.data.cache_gib)
    for key, now in data_identity(data).items():
        if getattr(manifest, key) != now:
            raise UserError(
                f"{run} was trained on another data set than {prepared} (its {key} differ); resume "
                f"it with {manifest.prepared}"
            )
    split = manifest.split
    check_in(data, split, run)
    if manifest.arrays_sha256 not in (None, arrays_sha256(data, split)):
        raise UserError(
            f"{run} was trained on other scans or labels than those of the same names in "
            f"{prepared}; resume it with the set as it was, or train a new run"
        )
    return Job(
        settings,
        *views(data, split),
        split,
        manifest.shape,
        manifest.patch,
        choose_device(settings.train.device),
        manifest.class_first,
        resumed_coarse_job(data, folder) if manifest.coarse else None,
    )


def check_processes(job: Job) -> None:
    """Raises UserError where another process of this training has other settings or data."""
    settings = dict(flatten(job.settings.model_dump(mode="json")))
    for name, each in (("PREPARED", job), ("PREPARED/coarse", job.coarse)):
        if each:
            settings[name] = identity_sha256(each.data, each.split)
    check_alike(settings)


def resumed_coarse_job(data: PreparedSet, run: RunFolder) -> Job:
    """The job of the coarse stage of a run, which may not have begun."""
    if data.coarse is None:
        raise UserError(f"{data.folder} has no coarser voxels any more: prepare it as it was")
    if run.coarse.is_run:
        job = resumed_job(data.coarse, run.coarse.folder)
        return with_split(job, run.manifest.split) if run.coarse.is_finished else job
    begun = coarse_job(data, run.manifest.split, run.settings)
    if begun is None or begun.split != run.manifest.split:
        raise UserError(
            f"{run.folder}: its coarse stage has not begun and would have another split now; start "
            "it anew in another folder"
        )
    return begun


def lengthen(folder: RunFolder, job: Job, done: int) -> bool:
    """Write down that a run which has `done` steps goes on to those of the job.

    The schedule of the learning rate is then that of a training of so many steps from its first
    one, so that the rate changes here; a DataWarning says from what to what. Raises UserError where
    there are no steps left. Of an unchanged number nothing happens, and False is returned.
    """
    steps = job.settings.train.steps
    planned = folder.manifest.planned_steps or (folder.settings.train.steps,)
    if steps == planned[-1]:
        return False
    if steps <= done:
        raise UserError(f"{folder.folder} has done {done} steps: --steps {steps} leaves none to do")
    old, new = (
        learning_rate(done, job.settings.train.model_copy(update={"steps": each}))
        for each in (planned[-1], steps)
    )
    warnings.warn(
        DataWarning(
            f"the learning rate falls over {steps} steps instead of {planned[-1]} now: from "
            f"step {done} on it is {new:.3g} instead of {old:.3g}"
        ),
        stacklevel=2,
    )
    folder.lengthen(job.settings, (*planned, steps))
    return True


def windows_of(job: Job, **more: Any) -> Windows:
    """How the cases of a job are predicted. more: see `Windows`."""
    views = views_of(job.settings, job.data.meta.plan.spacing_mm)
    infer = job.settings.infer
    return Windows(job.patch, job.shape.classes, infer, job.device, views=views, **more)


def check_in(data: PreparedSet, split: Split, run: Path) -> None:
    """Raises UserError where the split of a manifest is none of this data set."""
    lists, labelled = split.lists(), set(data.names_with_label)
    names = [name for cases in lists.values() for name in cases]
    needed = {name for key in ("labelled", "validation", "test") for name in lists[key]}
    if (
        len(set(names)) < len(names)
        or not set(names) <= set(data.names)
        or not needed <= labelled
        or not split.labelled
    ):
        raise UserError(
            f"{run}/manifest.json is damaged: its split does not fit the cases of {data.folder}"
        )


def uses_unlabelled(settings: Settings) -> bool:
    """Whether the method learns from unlabelled scans, if there are some."""
    return bool(lookup(METHODS, settings.method.name, "method").uses_unlabelled)


def unlabelled_patches(job: Job) -> int:
    """How many unlabelled patches a step takes."""
    used = job.unlabelled and uses_unlabelled(job.settings)
    return job.settings.train.unlabelled_batch if used else 0


def warn_without_unlabelled(job: Job) -> None:
    """A DataWarning where the method learns from unlabelled scans and gets none."""
    steps = job.settings.train.steps
    pretraining = job.settings.method.options.get("pretrain_steps", 0) >= steps
    if uses_unlabelled(job.settings) and (pretraining or not unlabelled_patches(job)):
        why = "there is none", "add scans without a label, or keep fewer labels with --labelled N"
        if job.unlabelled:
            why = "train.unlabelled_batch is 0", "leave that setting out"
            if pretraining:
                why = f"all {steps} steps are pre-training", "lower method.pretrain_steps"
        warnings.warn(
            DataWarning(
                f"{job.settings.method.name} learns from unlabelled scans, and {why[0]}: it trains "
                f"on the labelled ones alone; {why[1]}"
            ),
            stacklevel=2,
        )


def warn_of_patches_alone(job: Job) -> None:
    """A DataWarning where a process has a single patch of those that the method mixes."""
    method = lookup(METHODS, job.settings.method.name, "method")
    patches = {"labelled": job.settings.train.labelled_batch, "unlabelled": unlabelled_patches(job)}
    if world() > 1 and patches.get(method.mixes) == world():
        warnings.warn(
            DataWarning(
                f"{job.settings.method.name} mixes {method.mixes} patches with those of the same "
                f"process, and each of the {world()} processes has one: nothing is mixed; set "
                f"train.{method.mixes}_batch={2 * world()} or more"
            ),
            stacklevel=2,
        )


def write_out_options(settings: Settings) -> Settings:
    """The settings with every option of the method written out, of both stages.

    A default that changes later then changes no run that is there, and what is left out and follows
    from the steps of the training stays as it is where a run is lengthened.
    """
    written, coarse = write_out_stage(settings), settings.coarse
    alone, follows = write_out_stage(settings.coarse_stage()), written.coarse_stage()
    options = {
        key: value
        for key, value in alone.method.options.items()
        if follows.method.options.get(key) != value
    }
    own = {"method": coarse.method | options, "train": dict(coarse.train)}
    if alone.train.warm_up_steps != follows.train.warm_up_steps:
        own["train"]["warm_up_steps"] = alone.train.warm_up_steps
    return written.model_copy(update={"coarse": coarse.model_copy(update=own)})


def write_out_stage(settings: Settings) -> Settings:
    """The same, of one stage alone."""
    name, given, train = settings.method.name, settings.method.options, settings.train
    method = lookup(METHODS, name, "method")
    options = parse_options(method.Options, given, f"method.{name}")
    shares = {
        option.name: round(option.metadata["share"] * train.steps)
        for option in dataclasses.fields(options)
        if "share" in option.metadata and option.name not in given
    }
    if "warm_up_steps" not in train.model_fields_set:
        warm_up = min(train.warm_up_steps, train.steps // LEAST_WARM_UPS)
        train = train.model_copy(update={"warm_up_steps": warm_up})
    written_out = MethodSettings(name=name, **(dataclasses.asdict(options) | shares))
    return settings.model_copy(update={"method": written_out, "train": train})


def with_steps(settings: Settings, steps: int) -> Settings:
    """The settings of a training of so many steps."""
    return settings.model_copy(update={"train": settings.train.model_copy(update={"steps": steps})})


def settings_of(run: RunFolder) -> Settings:
    """The settings of a run that is there.

    An option of its method that is newer than the run is as things were before it.
    """
    settings = run.settings
    options = dataclasses.fields(lookup(METHODS, settings.method.name, "method").Options)
    before = {
        option.name: option.metadata["before"] for option in options if "before" in option.metadata
    }
    method = MethodSettings(name=settings.method.name, **(before | settings.method.options))
    return settings.model_copy(update={"method": method})


def describe(job: Job, method: Method[Any]) -> Manifest:
    """The manifest: what a machine needs to know to use this run without the prepared set."""
    return Manifest(
        prepared=str(job.data.folder.resolve()),
        **data_identity(job.data),
        arrays_sha256=arrays_sha256(job.data, job.split),
        fingerprint=job.data.meta.fingerprint,
        split=job.split,
        network_shape=ShapeOfNetwork.model_validate(dataclasses.asdict(job.shape)),
        network=job.settings.network.name or job.data.meta.plan.network,
        method=job.settings.method.name,
        uses_unlabelled=unlabelled_patches(job) > 0,
        patch=job.patch,
        planned_steps=(job.settings.train.steps,),
        coarse=job.coarse is not None,
        class_first=job.class_first,
        parameters=sum(p.numel() for p in method.parameters()),
        machine=machine(job.device),
    )
