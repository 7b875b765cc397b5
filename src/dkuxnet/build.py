"""Settings and a network's shape -> a method with its networks; a finished run -> its predictor.

The only module that brings networks and methods together.
"""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from dkuxnet.config import Settings, validate
from dkuxnet.data.dataset import PreparedSet
from dkuxnet.devices import choose_device, to_device
from dkuxnet.distributed import shared
from dkuxnet.errors import UserError
from dkuxnet.lookup import lookup, parse_options, unknown
from dkuxnet.methods import METHODS
from dkuxnet.methods.base import Method
from dkuxnet.networks import NETWORKS
from dkuxnet.networks.grouping import default_groups
from dkuxnet.run import RunFolder
from dkuxnet.train import INITIAL, step_seed
from dkuxnet.types import Group, NetworkShape


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


def load_predictor(run: Path, weights: str = "final", device: str = "auto") -> tuple[nn.Module, Settings, dict[str, Any]]:
    """The trained predictor of a run in eval mode, its settings and its manifest.

    weights: "final" or "best". Raises UserError where the run has none, or they are of another network.
    """
    if weights not in ("final", "best"):
        raise unknown("weights", weights, ("final", "best"))
    folder = RunFolder.open(run)
    settings, manifest = validate(folder.settings), folder.manifest
    shape, _ = described_network(manifest, run)
    tensors = folder.load_weights(weights)
    try:
        with torch.device("meta"):  # holds no weights: settings from a stranger may describe more than there is memory for
            build_method(settings, shape, manifest["plan"]).load_state_dict(tensors, assign=True)
        method = build_method(settings, shape, manifest["plan"])
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{run}/{weights}.safetensors holds the weights of another network than settings.json "
                        f"describes: {shorten(str(error).splitlines()[-1].strip(), 200)}") from error
    return to_device(method.predictor(), choose_device(device)).eval(), settings, manifest


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


def described_network(manifest: dict[str, Any], run: Path) -> tuple[NetworkShape, tuple[int, int, int]]:
    """What a manifest says of the network: its shape and its patch. Raises UserError where it does not."""
    try:
        described, patch = manifest["network_shape"], tuple(map(int, manifest["patch"]))
        groups = tuple(Group(g["name"], tuple(g["classes"]), g["queries"]) for g in described["groups"])
        manifest["plan"]["normalisation"], manifest["labels"], manifest["channels"], manifest["split"]
        return NetworkShape(described["in_channels"], described["classes"], groups), patch
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run}/manifest.json is damaged: {type(error).__name__} {error}") from error
