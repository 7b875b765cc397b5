"""The predictor of a finished run: its networks, built and filled."""

from pathlib import Path
from textwrap import shorten

import torch
from torch import nn

from dkuxnet.core.config import Settings
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest
from dkuxnet.machine.devices import choose_device, to_device
from dkuxnet.models.build import build_method
from dkuxnet.runs.folder import RunFolder


def load_predictor(
    run: StrPath, weights: str | None = None, device: str = "auto"
) -> tuple[nn.Module, Settings, Manifest]:
    """The trained predictor of a run in eval mode, its settings and its manifest.

    weights: "final" or "best"; by default the run's own, see `RunFolder.choose_weights`. Raises
    UserError where the run has none, or they are of another network.
    """
    folder = RunFolder.open(Path(run))
    weights = folder.choose_weights(weights)
    settings, manifest = folder.settings, folder.manifest
    tensors = folder.load_weights(weights)
    shape, network = manifest.shape, manifest.plan.network
    try:
        # holds no weights: a stranger's settings may describe more than there is memory for
        with torch.device("meta"):
            build_method(settings, shape, network).load_state_dict(tensors, assign=True)
        method = build_method(settings, shape, network)
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{run}/{weights}.safetensors holds the weights of another network than settings.json "
            f"describes: {shorten(str(error).splitlines()[-1].strip(), 200)}"
        ) from error
    return to_device(method.predictor(), choose_device(device)).eval(), settings, manifest
