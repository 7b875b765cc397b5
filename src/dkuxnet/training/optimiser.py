"""The optimiser of a training, its learning rate, and what it gathered when a run goes on.

An optimiser of torch loads the whole of torch._dynamo when it is made, for wrappers that matter
only where an optimiser is compiled, which takes seconds. Here the same methods stand without these
wrappers; where a later torch wraps them otherwise, a start takes longer and nothing else changes.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dkuxnet.core.config import TrainSettings


def _plain(method: Any) -> Any:
    return inspect.unwrap(method)


class _Light:
    add_param_group = _plain(Optimizer.add_param_group)
    zero_grad = _plain(Optimizer.zero_grad)
    state_dict = _plain(Optimizer.state_dict)
    load_state_dict = _plain(Optimizer.load_state_dict)


class AdamW(_Light, torch.optim.AdamW):
    step = torch.no_grad()(_plain(torch.optim.AdamW.step))


class SGD(_Light, torch.optim.SGD):
    step = torch.no_grad()(_plain(torch.optim.SGD.step))


def make_optimiser(method: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW or SGD over what has a gradient.

    Only matrices and kernels decay, not norms, biases, gains or queries.
    """
    named = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    decays = [p for name, p in named if p.ndim > 1 and not name.endswith(("queries", "scale"))]
    chosen = {id(p) for p in decays}
    groups = [
        {"params": decays, "weight_decay": settings.weight_decay},
        {"params": [p for _, p in named if id(p) not in chosen], "weight_decay": 0.0},
    ]
    if settings.optimiser == "sgd":
        momentum = settings.momentum
        return SGD(groups, lr=settings.lr, momentum=momentum, nesterov=momentum > 0)
    return AdamW(groups, lr=settings.lr, fused=True)  # hundreds of small tensors in one pass


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then polynomial decay to 0.

    A function of the absolute step, so that a resumed run has no jump.
    """
    if step < settings.warm_up_steps:
        return settings.lr * (step + 1) / settings.warm_up_steps
    left = 1 - (step - settings.warm_up_steps) / max(settings.steps - settings.warm_up_steps, 1)
    return settings.lr * math.pow(max(left, 0.0), settings.poly)


def restore_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take what an optimiser gathered for each parameter, and its learning rate.

    Its other options remain those of the settings. Raises ValueError where that does not fit the
    parameters: fused steps go through memory without a look at shapes, so that each tensor is also
    laid out as its parameter is (a file does not keep a memory format).
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if [len(group["params"]) for group in saved["param_groups"]] != [
        len(group["params"]) for group in optimiser.param_groups
    ]:
        raise ValueError("other groups of parameters")
    adam = isinstance(optimiser, torch.optim.AdamW)
    kept = {"step", "exp_avg", "exp_avg_sq"} if adam else {"momentum_buffer"}
    state = {}
    for index, entries in saved["state"].items():
        if index not in range(len(parameters)) or set(entries) != kept:
            raise ValueError(f"another optimiser's state of parameter {index}")
        state[index] = {
            name: _laid_out_as(parameters[index], name, value) for name, value in entries.items()
        }
    groups = optimiser.state_dict()["param_groups"]
    for group, its in zip(groups, saved["param_groups"], strict=True):
        if type(its["lr"]) is not float or not math.isfinite(its["lr"]):
            raise ValueError(f"learning rate {its['lr']!r}")
        group["lr"] = its["lr"]  # so that a state that is saved again before a step is the same
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _laid_out_as(parameter: Tensor, name: str, value: Tensor) -> Tensor:
    expected = () if name == "step" else parameter.shape
    if value.shape != expected or not value.is_floating_point():
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} for a parameter of shape "
            f"{tuple(parameter.shape)}"
        )
    if name == "step":
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
