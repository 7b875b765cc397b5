"""What an optimiser gathered, from a checkpoint that may be anybody's, back beside the parameters that it belongs to."""

import math
from typing import Any

import torch
from torch import Tensor


def restore_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take what an optimiser gathered for each parameter; its options remain those of the settings, but for the learning rate.

    Raises ValueError where that does not fit the parameters: fused steps go through memory without a look at shapes, so that
    each tensor is also laid out as its parameter is (a file does not keep a memory format).
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if [len(group["params"]) for group in saved["param_groups"]] != [len(group["params"]) for group in optimiser.param_groups]:
        raise ValueError("other groups of parameters")
    kept = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimiser, torch.optim.AdamW) else {"momentum_buffer"}
    state = {}
    for index, entries in saved["state"].items():
        if index not in range(len(parameters)) or set(entries) != kept:
            raise ValueError(f"another optimiser's state of parameter {index}")
        state[index] = {name: _laid_out_as(parameters[index], name, value) for name, value in entries.items()}
    groups = optimiser.state_dict()["param_groups"]
    for group, its in zip(groups, saved["param_groups"], strict=True):
        if type(its["lr"]) is not float or not math.isfinite(its["lr"]):
            raise ValueError(f"learning rate {its['lr']!r}")
        group["lr"] = its["lr"]  # each step sets it anew; a state that is saved again before one is then the same
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _laid_out_as(parameter: Tensor, name: str, value: Tensor) -> Tensor:
    expected = () if name == "step" else parameter.shape
    if value.shape != expected or not value.is_floating_point():
        raise ValueError(f"{name} of shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}")
    return value.clone() if name == "step" else torch.empty_like(parameter, dtype=value.dtype).copy_(value)
