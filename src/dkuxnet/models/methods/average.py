"""The exponential moving average (EMA) of a module's weights: a teacher, or what predicts."""

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """average <- d average + (1 - d) model, parameters and running statistics alike.

    d rises to `decay`, so that the first steps are forgotten soon. Integer buffers are copied.
    `step` counts optimiser steps from 0.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)
