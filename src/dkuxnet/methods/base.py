"""The contract of a method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dkuxnet.types import Batch, NetworkShape


class Method(nn.Module):
    """Turns a batch into losses. Owns its networks; knows no optimiser, device, file or loop.

    Subclasses state how many networks they take (`branches`), whether they look at unlabelled patches, and what can be
    set (`Options`, a dataclass). Being a module, a method's state_dict carries everything that it owns: saving, resuming
    and moving are the loop's business.
    """

    branches: ClassVar[int] = 1
    uses_unlabelled: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Options:
        """Nothing to set."""

    def __init__(self, networks: Sequence[nn.Module], options: "Method.Options", shape: NetworkShape):
        """networks: `branches` of them, built alike and initialised apart. Raises ValueError where they do not fit."""
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.options = options
        self.shape = shape

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named, weighted scalars; the loop sums them. `step` counts optimiser steps from 0."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after each optimiser step: a teacher follows its student here."""

    def predictor(self) -> nn.Module:
        """The module that validation, prediction and export use: image (B, C, X, Y, Z) -> Output."""
        return self.networks[0]
