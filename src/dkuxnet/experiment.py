"""READ FIRST. Settings -> data -> networks -> method -> train -> evaluate: the whole job from top to bottom.

The only module that knows both networks and methods. Everything that has a mechanism is somewhere else; here is only
what follows what.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dkuxnet import formats
from dkuxnet.config import Settings, validate
from dkuxnet.data.augment import make_views
from dkuxnet.data.dataset import PreparedSet
from dkuxnet.data.loader import PatchStream, read_ahead
from dkuxnet.data.splits import Split, make_split
from dkuxnet.errors import UserError
from dkuxnet.evaluate import Evaluation, evaluate_pair
from dkuxnet.infer import label_on_scan, label_volume, sliding_window
from dkuxnet.lookup import lookup, parse_options
from dkuxnet.methods import METHODS
from dkuxnet.methods.base import Method
from dkuxnet.metrics import dice
from dkuxnet.networks import NETWORKS
from dkuxnet.networks.grouping import default_groups
from dkuxnet.run import RunFolder, machine, write_json
from dkuxnet.train import INITIAL, VIEWS, make_state, step_seed, train
from dkuxnet.types import Batch, Group, NetworkShape

Progress = Callable[[str, int, int, dict[str, float]], None]  # what, done, of how many, figures


def run_training(
    prepared: Path, run: Path, settings: Settings, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Train on a prepared data set in a new run folder, then evaluate the test list; returns the manifest.

    resume: go on with the run as its folder describes it; `settings` is then ignored. Raises UserError for anything
    wrong with the input, `train.Interrupted` after Ctrl-C.
    """
    progress = progress or (lambda what, done, total, figures: None)
    if resume:
        folder = RunFolder.open(run)
        settings = validate(folder.settings)
    data = PreparedSet(prepared, settings.data.cache_gib)
    device = choose_device(settings.train.device)
    split = split_cases(data, settings)
    shape = network_shape(data, settings)
    patch = settings.train.patch or data.meta["plan"]["patch"]
    method = to_device(build_method(settings, shape, data.meta["plan"]), device)
    state = make_state(method, settings.train)
    if resume:
        checkpoint = folder.load_checkpoint()
        state.restore(checkpoint)
        folder.rewind_metrics(state.step)
    else:
        folder = RunFolder.create(run, settings.model_dump(mode="json"), describe(data, split, shape, patch, method, settings))

    total = settings.train.steps
    train(
        state,
        batches(data, split, patch, settings, device, state.step),
        settings.train,
        folder,
        device,
        validate=(lambda predictor: validation_dice(predictor, data, split.validation, patch, settings, device))
        if split.validation else None,
        progress=lambda step, figures: progress("train", step, total, figures),
    )
    folder.close()
    folder.update_manifest(train_seconds=round(state.seconds, 1), steps_done=state.step)
    if split.test:
        evaluate_test(folder, data, state.predicting().predictor().eval(), split.test, patch, settings, device, progress)
    return folder.manifest


def split_cases(data: PreparedSet, settings: Settings) -> Split:
    """Who trains and who judges, by the settings."""
    chosen = settings.data
    return make_split(
        data.names, data.names_with_label, chosen.labelled, chosen.validation_cases, chosen.test_cases, chosen.split
    )


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
    for branch in range(method.branches):
        torch.manual_seed(step_seed(settings.train.seed, INITIAL, branch))
        networks.append(builder(shape, settings.network.model_extra))
    try:
        return method(networks, options, shape)
    except ValueError as error:
        raise UserError(f"method '{settings.method.name}' with network '{name}': {error}") from error


def batches(
    data: PreparedSet, split: Split, patch: Sequence[int], settings: Settings, device: torch.device, first: int
) -> Iterator[Batch]:
    """The batches of the steps from `first` on: patches read ahead, views made on the device."""
    chosen = settings.train
    streams = [PatchStream(data, split.labelled, patch, chosen.labelled_batch, chosen.seed, True,
                           settings.data.foreground_share)]
    uses_unlabelled = lookup(METHODS, settings.method.name, "method").uses_unlabelled
    if split.unlabelled and chosen.unlabelled_batch and uses_unlabelled:
        streams.append(PatchStream(data, split.unlabelled, patch, chosen.unlabelled_batch, chosen.seed, False))
    generator = torch.Generator(device)
    for step, patches in enumerate(read_ahead(streams, first, chosen.steps, settings.data.workers), first):
        generator.manual_seed(step_seed(chosen.seed, VIEWS, step))
        views = []
        for image, label in patches:
            label = None if label is None else torch.from_numpy(label).to(device)
            image = torch.from_numpy(image).to(device, memory_format=torch.channels_last_3d)
            views.append(make_views(image, label, settings.augment, generator))
        yield Batch(*views)


def validation_dice(
    predictor: nn.Module, data: PreparedSet, cases: Sequence[str], patch: Sequence[int], settings: Settings,
    device: torch.device,
) -> float:
    """Mean Dice over the cases and the foreground classes, on the prepared grid."""
    classes = len(data.class_names)
    scores = []
    for name in cases:
        prob = sliding_window(predictor, data.array(name, "image"), patch, classes, settings.infer, device).prob
        label, truth = prob.argmax(axis=0), data.array(name, "label")
        scores += [dice(label == k, truth == k) for k in range(1, classes)]
    return float(np.mean(scores))


def evaluate_test(
    folder: RunFolder, data: PreparedSet, predictor: nn.Module, cases: Sequence[str], patch: Sequence[int],
    settings: Settings, device: torch.device, progress: Progress,
) -> Evaluation:
    """Predict the test cases, score them on their own grids, write RUN/evaluation/; the summary goes to the manifest."""
    target = folder.folder / "evaluation"
    (target / "predictions").mkdir(parents=True, exist_ok=True)
    labels = data.meta["labels"]
    write_json(target / "predictions" / "dataset.json", {"labels": labels})
    started, rows, files = time.monotonic(), [], {}
    for done, name in enumerate(cases, 1):
        info = data.info(name)
        affine = np.array(info["affine"])
        grid = sliding_window(predictor, data.array(name, "image"), patch, len(labels), settings.infer, device)
        label = label_on_scan(grid.prob, info["shape"], affine, settings.infer.largest_component)
        prediction = label_volume(label, affine, list(labels.values()))
        path = target / "predictions" / f"{name}.nii.gz"
        formats.write(prediction, path)
        truth = label_volume(data.array(name, "truth"), affine, list(labels.values()))
        rows += evaluate_pair(name, prediction, truth, labels)
        files[name] = (path.relative_to(target), data.folder / "cases" / f"{name}.truth.b2nd")
        progress("evaluate", done, len(cases), {})
    result = Evaluation(rows, files)
    result.write_json(target / "summary.json")
    result.write_csv(target / "cases.csv")
    folder.update_manifest(evaluate_seconds=round(time.monotonic() - started, 1), test=result.summary())
    return result


def load_predictor(run: Path, weights: str = "final", device: str = "auto") -> tuple[nn.Module, Settings, dict[str, Any]]:
    """The trained predictor of a run in eval mode, its settings and its manifest. Raises UserError where it does not fit."""
    folder = RunFolder.open(run)
    settings, manifest = validate(folder.settings), folder.manifest
    described = manifest["network_shape"]
    shape = NetworkShape(
        described["in_channels"], described["classes"],
        tuple(Group(g["name"], tuple(g["classes"]), g["queries"]) for g in described["groups"]),
    )
    method = build_method(settings, shape, manifest["plan"])
    try:
        method.load_state_dict(folder.load_weights(weights))
    except RuntimeError as error:
        raise UserError(f"{run}/{weights}.safetensors holds the weights of another network than settings.json "
                        f"describes: {str(error).splitlines()[1].strip()}") from error
    return to_device(method.predictor(), choose_device(device)).eval(), settings, manifest


def choose_device(name: str) -> torch.device:
    """"auto" is the GPU where there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


def describe(
    data: PreparedSet, split: Split, shape: NetworkShape, patch: Sequence[int], method: Method, settings: Settings
) -> dict[str, Any]:
    """The manifest: what a machine needs to know to use this run without the prepared set."""
    return {
        "prepared": str(data.folder.resolve()),
        "labels": data.meta["labels"],
        "channels": data.meta["channels"],
        "plan": data.meta["plan"],
        "fingerprint": data.meta["fingerprint"],
        "split": split.to_json(),
        "network_shape": json.loads(json.dumps(dataclasses.asdict(shape))),
        "network": settings.network.name or data.meta["plan"]["network"],
        "method": settings.method.name,
        "uses_unlabelled": method.uses_unlabelled,
        "patch": list(patch),
        "parameters": sum(p.numel() for p in method.parameters()),
        "machine": machine(),
    }
