"""The predictor of a finished run: its networks, built and filled."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from dkuxnet.core.config import Settings, validate
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import unknown
from dkuxnet.machine.devices import choose_device, to_device
from dkuxnet.models.build import build_method
from dkuxnet.runs.folder import RunFolder, described_network


def load_predictor(
    run: Path, weights: str = "final", device: str = "auto"
) -> tuple[nn.Module, Settings, dict[str, Any]]:
    """The trained predictor of a run in eval mode, its settings and its manifest.

    weights: "final" or "best". Raises UserError where the run has none, or they are of another
    network.
    """
    if weights not in ("final", "best"):
        raise unknown("weights", weights, ("final", "best"))
    folder = RunFolder.open(run)
    settings, manifest = validate(folder.settings), folder.manifest
    shape, _ = described_network(manifest, run)
    tensors = folder.load_weights(weights)
    try:
        with torch.device(
            "meta"
        ):  # holds no weights: settings from a stranger may describe more than there is memory for
            build_method(settings, shape, manifest["plan"]).load_state_dict(tensors, assign=True)
        method = build_method(settings, shape, manifest["plan"])
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{run}/{weights}.safetensors holds the weights of another network than settings.json "
            f"describes: {shorten(str(error).splitlines()[-1].strip(), 200)}"
        ) from error
    return to_device(method.predictor(), choose_device(device)).eval(), settings, manifest
