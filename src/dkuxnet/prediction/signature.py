"""What a scan looks like to a network: the mean and the spread of its features in every class."""

from functools import reduce

import numpy as np
import torch
from torch import Tensor


class SignatureSums:
    """Adds up the features of window after window, each voxel by its probability of a class."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []  # of each batch, (K, 1 + 2 C'), on the device

    def add(self, probs: Tensor, features: Tensor | None) -> None:
        """probs: (B, K, X, Y, Z), features: (B, C', X, Y, Z) or None, which adds nothing."""
        if features is None:
            return
        values = features.float().flatten(2)
        one = torch.ones_like(values[:, :1])
        moments = torch.cat([one, values, values.square()], dim=1)
        self.parts.append(torch.einsum("bkv,bcv->kc", probs.flatten(2), moments))

    def vector(self) -> np.ndarray:
        """(2 K C',): mean and standard deviation; empty where there were no features."""
        if not self.parts:
            return np.zeros(0)
        sums = reduce(torch.add, torch.stack(self.parts).cpu().double())
        weight, first, second = sums.tensor_split([1, 1 + sums.shape[1] // 2], dim=1)
        weight = weight.clamp_min(1e-3)  # a class that is nowhere
        mean = first / weight
        spread = (second / weight - mean.square()).clamp_min(0).sqrt()
        return torch.cat([mean, spread], dim=1).flatten().numpy()
