"""The contract of a method, and what many methods share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape, Output
from dkuxnet.models.methods.losses import query_loss_all, segmentation_loss

# What options may be: checked where settings are read
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Edge = Annotated[float, Field(gt=0, lt=1)]  # of a patch
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a moving average
Outline = Annotated[
    float, Field(ge=0, le=0.4)
]  # share of an organ's radius; wider smoothing dissolves the organ itself
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=0)]


class Method(nn.Module):
    """Turns a batch into losses. Owns its networks; knows no optimiser, device, file or loop.

    Subclasses state how many networks they take (`branches`), whether they look at unlabelled
    patches, and what can be set (`Options`, a dataclass). Being a module, a method's state_dict
    carries everything that it owns: saving, resuming and moving are the loop's business.
    """

    branches: ClassVar[int] = 1
    uses_unlabelled: ClassVar[bool] = True
    uses_features: ClassVar[bool] = False  # whether `losses` reads `Output.features`

    @dataclass(frozen=True)
    class Options:
        """Nothing to set.

        (An option that comes later says in its field's metadata, as `before`, what runs without it
        had.)
        """

    def __init__(
        self, networks: Sequence[nn.Module], options: "Method.Options", shape: NetworkShape
    ):
        """networks: `branches` of them, built alike and initialised apart.

        Raises ValueError where they do not fit.
        """
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.options = options
        self.shape = shape

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named, weighted scalars; the loop sums them. `step` counts optimiser steps from 0.

        What is drawn at random here comes from torch's own generator, which the loop seeds with
        every step.
        """
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after each optimiser step: a teacher follows its student here."""

    def predictor(self) -> nn.Module:
        """The module that validation, prediction and export use: image (B, C, X, Y, Z) -> Output."""
        return self.networks[0]

    def supervision(
        self, outputs: Sequence[Output], label: Tensor, w_qd: float
    ) -> dict[str, Tensor]:
        """L_seg + w_qd L_qd, summed over branches whose first patches are those of `label`; L_qd
        where there are queries.
        """
        outputs = [first(output, len(label)) for output in outputs]
        losses = {"seg": sum(segmentation_loss(output.logits, label) for output in outputs)}
        if w_qd and outputs[0].group_prob is not None:
            losses["qd"] = w_qd * sum(
                query_loss_all(output, label, self.shape.groups) for output in outputs
            )
        return losses


def all_patches(batch: Batch, view: str) -> Tensor:
    """The labelled patches, then the unlabelled ones, (B, C, X, Y, Z). view: "weak" or "strong"."""
    labelled = getattr(batch.labelled, view)
    return (
        labelled
        if batch.unlabelled is None
        else torch.cat([labelled, getattr(batch.unlabelled, view)])
    )


def first(output: Output, count: int) -> Output:
    """The part of the first `count` patches of a batch that the losses on labels read."""
    return Output(
        logits=output.logits[:count],
        group_prob=None if output.group_prob is None else output.group_prob[:count],
        layer_group_prob=tuple(layer[:count] for layer in output.layer_group_prob),
    )


def probabilities(output: Output) -> Tensor:
    """Softmax over the classes in float32, (B, K, X, Y, Z)."""
    return output.logits.float().softmax(dim=1)


def ramp_up(step: int, length: int) -> float:
    """r(t): the Gaussian ramp exp(-5 (1 - t)^2), t from 0 to 1 over `length` steps (Laine and
    Aila, arXiv 1610.02242).
    """
    t = min(step / length, 1.0) if length > 0 else 1.0
    return math.exp(-5 * (1 - t) ** 2)


class MeanOf(nn.Module):
    """The mean of networks' probabilities, as logits; their disagreement is the uncertainty: see
    `mean_output`.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Output:
        return mean_output([network(image) for network in self.networks])


def mean_output(outputs: Sequence[Output]) -> Output:
    """Mean probabilities as logits, the mean assignment to groups where all have one, and as
    uncertainty the Jensen-Shannon divergence of the outputs over its maximum, the log of their
    number: 0 agreement, 1 contradiction.
    """
    logs = [
        output.logits.float().log_softmax(dim=1) for output in outputs
    ]  # stacked they would take twice as long
    log_mean = reduce(torch.logaddexp, logs) - math.log(len(outputs))
    divergence = sum((log.exp() * (log - log_mean)).sum(dim=1) for log in logs) / len(outputs)
    groups = [output.group_prob.float() for output in outputs if output.group_prob is not None]
    return Output(
        logits=log_mean,
        group_prob=sum(groups) / len(groups) if len(groups) == len(outputs) else None,
        uncertainty=(divergence / math.log(len(outputs))).clamp(0, 1),
    )
