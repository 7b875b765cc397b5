"""READ FIRST. Settings -> data -> networks -> method -> train -> evaluate: the whole job from top to bottom.

The only module that brings networks and methods together. Everything that has a mechanism is somewhere else; here is only
what follows what.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dkuxnet import formats
from dkuxnet.config import MethodSettings, Settings, validate
from dkuxnet.data.augment import make_views
from dkuxnet.data.dataset import PreparedSet
from dkuxnet.data.loader import PatchStream, read_ahead
from dkuxnet.data.splits import Split, make_split
from dkuxnet.distributed import by_the_first, joined, local_rank, of_all, rank, shared, world
from dkuxnet.errors import UserError
from dkuxnet.evaluate import Evaluation, evaluate_pair
from dkuxnet.infer import GridPrediction, label_on_scan, label_volume, sliding_window
from dkuxnet.lock import locked
from dkuxnet.lookup import lookup, parse_options, unknown
from dkuxnet.methods import METHODS
from dkuxnet.methods.base import Method
from dkuxnet.metrics import dice
from dkuxnet.networks import NETWORKS
from dkuxnet.networks.grouping import default_groups
from dkuxnet.run import MutedRun, RunFolder, forget_peak_memory, machine, peak_memory_gib, write_json
from dkuxnet.train import INITIAL, VIEWS, NotFinite, TrainState, make_state, step_seed, train
from dkuxnet.types import Batch, Group, NetworkShape, Volume

Progress = Callable[[str, int, int, dict[str, float]], None]  # what, done, of how many, figures


@dataclass(frozen=True)
class Job:
    """What a training is about: who trains and judges, what the network must hold, the patch (X, Y, Z) in voxels."""

    settings: Settings
    data: PreparedSet
    split: Split
    shape: NetworkShape
    patch: tuple[int, int, int]
    device: torch.device


@contextmanager
def telling_out_of_memory() -> Iterator[None]:
    """Out of memory is a UserError that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not (isinstance(error, torch.OutOfMemoryError)
                                                    or "DefaultCPUAllocator" in str(error)):  # of the CPU torch has no kind
            raise
        raise UserError("out of memory; lower train.labelled_batch and train.unlabelled_batch, then train.patch, or take a "
                        "smaller network") from error


@telling_out_of_memory()
def run_training(
    prepared: Path, run: Path, settings: Settings, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Train on a prepared data set in a new run folder, then evaluate the test list; returns the manifest.

    resume: go on with the run as its folder describes it; `settings` is then ignored. Raises UserError for anything
    wrong with the input, `train.Interrupted` after Ctrl-C. A new run that fails before it saved anything leaves no folder.
    """
    with joined(), ExitStack() as open_run:
        progress = progress if progress and not rank() else lambda what, done, total, figures: None
        job = resumed_job(prepared, run) if resume else new_job(prepared, settings)
        forget_peak_memory(job.device)  # of a training before this one
        method = to_device(build_method(job.settings, job.shape, job.data.meta["plan"]), job.device)
        state = make_state(method, job.settings.train)
        if not resume:
            by_the_first(lambda: RunFolder.create(run, job.settings.model_dump(mode="json"), describe(job, method)) and None)
        folder = MutedRun(run) if rank() else RunFolder.open(run)
        by_the_first(lambda: open_run.enter_context(locked(folder.folder, "training")))
        try:
            if resume:
                state.restore(folder.load_checkpoint())
                folder.rewind_metrics(state.step)
            train_and_evaluate(job, state, folder, progress)
        finally:
            folder.close()
            if not resume:
                folder.discard_unless_saved()
    return folder.manifest


def train_and_evaluate(job: Job, state: TrainState, folder: RunFolder, progress: Progress) -> None:
    """From state.step to the end, then the test list. Raises NotFinite with the cases of the step at fault."""
    total = job.settings.train.steps
    try:
        train(
            state,
            batches(job, state.step),
            job.settings.train,
            folder,
            job.device,
            validate=(lambda predictor: validation_dice(predictor, job)) if job.split.validation else None,
            progress=lambda step, figures: progress("train", step, total, figures),
        )
    except NotFinite as error:
        cases = [name for stream in patch_streams(job) for name in stream.names_at(error.step)]
        raise NotFinite(error.step, f"{error}; its cases: {', '.join(cases)}") from error
    folder.update_manifest(train_seconds=round(state.seconds, 1), steps_done=state.step,
                           peak_memory_gib=peak_memory_gib(job.device))
    if job.split.test:
        evaluate_test(folder, state.predicting().predictor().eval(), job, progress)


def new_job(prepared: Path, settings: Settings) -> Job:
    """The job that the settings describe."""
    settings = write_out_options(settings)
    data, chosen = PreparedSet(prepared, settings.data.cache_gib), settings.data
    split = make_split(
        data.names, data.names_with_label, chosen.labelled, chosen.validation_cases, chosen.test_cases, chosen.split
    )
    patch = tuple(settings.train.patch or data.meta["plan"]["patch"])
    return Job(settings, data, split, network_shape(data, settings), patch, choose_device(settings.train.device))


def write_out_options(settings: Settings) -> Settings:
    """The settings with every option of the method: a default that changes later then changes no run that is there."""
    method = lookup(METHODS, settings.method.name, "method")
    options = parse_options(method.Options, settings.method.model_extra, f"method.{settings.method.name}")
    return settings.model_copy(update={"method": MethodSettings(name=settings.method.name, **dataclasses.asdict(options))})


def resumed_job(prepared: Path, run: Path) -> Job:
    """The job of a run that is there, as its manifest has it. Raises UserError where the prepared set is another one."""
    folder = RunFolder.open(run)
    settings, manifest = validate(folder.settings), folder.manifest
    data = PreparedSet(prepared, settings.data.cache_gib)
    shape, patch = described_network(manifest, run)
    for key, now in data_identity(data).items():
        if manifest.get(key) != now:
            raise UserError(f"{run} was trained on another data set than {prepared} (its {key} differ); resume it with "
                            f"{manifest.get('prepared')}")
    split = Split(**{name: tuple(cases) for name, cases in manifest["split"].items()})
    return Job(settings, data, split, shape, patch, choose_device(settings.train.device))


def network_shape(data: PreparedSet, settings: Settings) -> NetworkShape:
    """Channels, classes and query groups for a data set; the groups of the settings, or else those of its classes."""
    names = data.class_names
    if not settings.network.groups:
        groups = default_groups(names, settings.network.queries)
    else:
        for group in settings.network.groups:
            for name in group.classes:
                if name not in names:
                    raise UserError(f"network.groups: '{group.name}' names the class '{name}'; the data set has {names}")
        groups = tuple(
            Group(g.name, tuple(names.index(name) for name in g.classes), g.queries) for g in settings.network.groups
        )
    return NetworkShape(len(data.meta["channels"]), len(names), groups)


def build_method(settings: Settings, shape: NetworkShape, plan: dict[str, Any]) -> Method:
    """The method with its freshly initialised networks; the same seed gives the same weights."""
    method = lookup(METHODS, settings.method.name, "method")
    name = settings.network.name or plan["network"]
    builder = lookup(NETWORKS, name, "network")
    options = parse_options(method.Options, settings.method.model_extra, f"method.{settings.method.name}")
    networks = []
    try:
        for branch in range(method.branches):
            torch.manual_seed(step_seed(settings.train.seed, INITIAL, branch))
            networks.append(shared(builder(shape, settings.network.model_extra), method.uses_features))
        return method(networks, options, shape)
    except (ValueError, AssertionError, ZeroDivisionError) as error:  # the last two are torch's for sizes that do not fit
        raise UserError(f"method '{settings.method.name}' with network '{name}': {error}") from error


def batches(job: Job, first: int) -> Iterator[Batch]:
    """The batches of the steps from `first` on: patches read ahead, views made on the device."""
    chosen, data = job.settings.train, job.settings.data
    streams = patch_streams(job)
    generator, spacing = torch.Generator(job.device), job.data.meta["plan"]["spacing_mm"]
    for step, patches in enumerate(read_ahead(streams, first, chosen.steps, data.workers), first):
        generator.manual_seed(step_seed(chosen.seed, VIEWS, step))
        views = []
        for image, label in patches:
            label = None if label is None else torch.from_numpy(label).to(job.device)
            views.append(make_views(torch.from_numpy(image).to(job.device), label, job.settings.augment, generator, spacing))
        yield Batch(*views)


def patch_streams(job: Job) -> list[PatchStream]:
    """Where the patches come from: of the labelled cases and, for a method that uses them, of the unlabelled ones."""
    chosen, data = job.settings.train, job.settings.data
    streams = [PatchStream(job.data, job.split.labelled, job.patch, chosen.labelled_batch, chosen.seed, True,
                           data.foreground_share)]
    uses_unlabelled = lookup(METHODS, job.settings.method.name, "method").uses_unlabelled
    if job.split.unlabelled and chosen.unlabelled_batch and uses_unlabelled:
        streams.append(PatchStream(job.data, job.split.unlabelled, job.patch, chosen.unlabelled_batch, chosen.seed, False))
    return streams


def validation_dice(predictor: nn.Module, job: Job) -> float:
    """Mean Dice over the validation cases and the foreground classes, on the prepared grid."""
    scores = []
    for name in job.split.validation[rank()::world()]:
        image, truth = job.data.array(name, "image"), job.data.array(name, "label")
        prob = sliding_window(predictor, image, job.patch, job.shape.classes, job.settings.infer, job.device).prob
        label = prob.argmax(axis=0)
        scores += [dice(label == k, truth == k) for k in range(1, job.shape.classes)]
    return float(np.mean(of_all(scores)))


def evaluate_test(folder: RunFolder, predictor: nn.Module, job: Job, progress: Progress) -> Evaluation:
    """Predict the test cases, score them on their own grids, write RUN/evaluation/; the summary goes to the manifest."""
    target, infer = folder.folder / "evaluation", job.settings.infer
    labels = job.data.meta["labels"]

    def prepare_folder() -> None:
        (target / "predictions").mkdir(parents=True, exist_ok=True)
        write_json(target / "predictions" / "dataset.json", {"labels": labels})

    by_the_first(prepare_folder)
    started, rows, files = time.monotonic(), [], []
    for done, name in enumerate(job.split.test[rank()::world()], 1):
        info = job.data.info(name)
        affine = np.array(info["affine"])
        grid = sliding_window(predictor, job.data.array(name, "image"), job.patch, len(labels), infer, job.device,
                              with_uncertainty=True, groups=len(job.shape.groups))
        label = label_on_scan(grid.prob, info["shape"], affine, infer.largest_component)
        prediction = label_volume(label, affine, list(labels.values()))
        path = target / "predictions" / f"{name}.nii.gz"
        formats.write(prediction, path)
        write_maps(target / "maps", name, grid, np.array(info["prepared_affine"]))
        truth = label_volume(job.data.array(name, "truth"), affine, list(labels.values()))
        rows += evaluate_pair(name, prediction, truth, labels)
        files.append((name, (path.relative_to(target), job.data.folder / "cases" / f"{name}.truth.b2nd")))
        progress("evaluate", min(done * world(), len(job.split.test)), len(job.split.test), {})
    order = list(job.split.test)
    rows = sorted(of_all(rows), key=lambda row: order.index(row["case"]))
    result = Evaluation(rows, dict(sorted(of_all(files), key=lambda file: order.index(file[0]))))
    by_the_first(lambda: result.write_json(target / "summary.json"))
    by_the_first(lambda: result.write_csv(target / "cases.csv"))
    folder.update_manifest(evaluate_seconds=round(time.monotonic() - started, 1), test=result.summary())
    return result


def write_maps(folder: Path, name: str, grid: GridPrediction, affine: np.ndarray) -> None:
    """Uncertainty (X, Y, Z) and spread over the query groups (G, X, Y, Z), on the network's grid, as uint8 with 255 for 1:
    what the report shows beside a prediction."""
    for kind, values in (("uncertainty", grid.uncertainty), ("groups", grid.groups)):
        if values is not None:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            formats.write(Volume(np.rint(255 * values).astype(np.uint8), affine), folder / kind / f"{name}.nii.gz")


def load_predictor(run: Path, weights: str = "final", device: str = "auto") -> tuple[nn.Module, Settings, dict[str, Any]]:
    """The trained predictor of a run in eval mode, its settings and its manifest.

    weights: "final" or "best". Raises UserError where the run has none, or they are of another network.
    """
    if weights not in ("final", "best"):
        raise unknown("weights", weights, ("final", "best"))
    folder = RunFolder.open(run)
    settings, manifest = validate(folder.settings), folder.manifest
    shape, _ = described_network(manifest, run)
    method = build_method(settings, shape, manifest["plan"])
    try:
        method.load_state_dict(folder.load_weights(weights))
    except RuntimeError as error:
        raise UserError(f"{run}/{weights}.safetensors holds the weights of another network than settings.json "
                        f"describes: {str(error).splitlines()[1].strip()}") from error
    return to_device(method.predictor(), choose_device(device)).eval(), settings, manifest


def described_network(manifest: dict[str, Any], run: Path) -> tuple[NetworkShape, tuple[int, int, int]]:
    """What a manifest says of the network: its shape and its patch. Raises UserError where it does not."""
    try:
        described, patch = manifest["network_shape"], tuple(map(int, manifest["patch"]))
        groups = tuple(Group(g["name"], tuple(g["classes"]), g["queries"]) for g in described["groups"])
        manifest["plan"]["normalisation"], manifest["labels"], manifest["channels"], manifest["split"]
        return NetworkShape(described["in_channels"], described["classes"], groups), patch
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run}/manifest.json is damaged: {type(error).__name__} {error}") from error


def choose_device(name: str) -> torch.device:
    """"auto" is the GPU where there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world() > 1:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not available here ({str(error).splitlines()[0]}); try auto or cpu") from error
    return device


def to_device(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module, its kernels in channels-last memory: a 3x3x3 convolution is then twice as fast on a CPU, and
    LayerNorm over channels reads contiguous memory."""
    module.to(device)
    for parameter in module.parameters():
        if parameter.ndim == 5:  # Module.to would refuse a module with a parameter of 4 axes
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return module


def describe(job: Job, method: Method) -> dict[str, Any]:
    """The manifest: what a machine needs to know to use this run without the prepared set."""
    return {
        "prepared": str(job.data.folder.resolve()),
        **data_identity(job.data),
        "fingerprint": job.data.meta["fingerprint"],
        "split": job.split.to_json(),
        "network_shape": dataclasses.asdict(job.shape),
        "network": job.settings.network.name or job.data.meta["plan"]["network"],
        "method": job.settings.method.name,
        "uses_unlabelled": method.uses_unlabelled and job.settings.train.unlabelled_batch > 0,
        "patch": list(job.patch),
        "parameters": sum(p.numel() for p in method.parameters()),
        "machine": machine(job.device),
    }


def data_identity(data: PreparedSet) -> dict[str, Any]:
    """By what a resumed run knows its data set again."""
    return {"cases": data.names} | {key: data.meta[key] for key in ("labels", "channels", "plan")}
