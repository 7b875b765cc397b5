"""The predictor of a finished run: its networks, built and filled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from dkuxnet.core.config import Settings, validate
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest, Postprocessing
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


def predicting(
    settings: Settings,
    names: Sequence[str],
    chosen: Postprocessing | None,
    infer: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings with the `infer` that predicts.

    That of the run, with what was `chosen` on its validation cases, and over it `infer`: what is
    otherwise for once, by key. names: of the classes, background first. Raises UserError where it
    is no such setting.
    """
    infer = infer or {}
    now = validate({"infer": settings.infer.model_dump(mode="json") | dict(infer)}).infer
    if chosen and now.postprocessing == "chosen":
        classes, least = names[1:], now.min_ml
        by_class = least if isinstance(least, dict) else dict.fromkeys(classes, least)
        if "min_ml" not in infer:
            more = {name: max(ml, by_class.get(name, 0)) for name, ml in chosen.min_ml.items()}
            now = now.model_copy(update={"min_ml": by_class | more})
        largest = now.largest_component
        if "largest_component" not in infer and largest is not True:
            both = {*(largest or ()), *chosen.largest_component}
            names = tuple(name for name in classes if name in both)
            now = now.model_copy(update={"largest_component": names})
    return settings.model_copy(update={"infer": now})
