"""torch's optimisers without torch's compiler.

An optimiser of torch loads the whole of torch._dynamo when it is made, for wrappers that matter only where an optimiser is
compiled: 2 seconds of the 5 from a command to its first step. Here the same methods stand without these wrappers; where a
later torch wraps them otherwise, a start takes longer and nothing else changes.
"""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer


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
