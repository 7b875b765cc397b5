"""Dual mutual learning, the method of the paper (Wu, Li, Zhang, ISBI 2024): two branches that teach each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dkuxnet.losses import consistency_loss, query_loss_all, segmentation_loss
from dkuxnet.methods.base import Method
from dkuxnet.types import Batch, NetworkShape, Output


class DualMutual(Method):
    """L_seg + w_qd L_qd + r(t) (w_segc L_segc + w_qdc L_qdc); branch A sees the strong views, branch B the weak ones."""

    branches = 2

    @dataclass(frozen=True)
    class Options:
        """w_*: weights, 0 switches a term off. ramp_up_steps: r(t) rises from 0 to 1 over these. form, gradient,
        threshold: see `losses.consistency_loss`. predict: which branch answers."""

        w_qd: float = 0.1
        w_segc: float = 1.0
        w_qdc: float = 0.1
        ramp_up_steps: int = 400
        form: Literal["mse", "kl", "pseudo", "pseudo-dice", "pseudo-both"] = "pseudo-both"
        gradient: Literal["both", "strong"] = "both"
        threshold: float = 0.0
        predict: Literal["mean", "a", "b"] = "mean"

    def __init__(self, networks: Sequence[nn.Module], options: Options, shape: NetworkShape):
        super().__init__(networks, options, shape)
        if (options.w_qd or options.w_qdc) and not all(getattr(network, "has_queries", False) for network in networks):
            raise ValueError("this network has no queries: set method.w_qd=0 and method.w_qdc=0, or take a dk-uxnet")

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, labelled, unlabelled = self.options, batch.labelled, batch.unlabelled
        # one forward a branch: labelled patches first, unlabelled after them
        views = [(labelled.strong, labelled.weak)] + ([(unlabelled.strong, unlabelled.weak)] if unlabelled else [])
        a, b = (network(torch.cat(images)) for network, images in zip(self.networks, zip(*views, strict=True), strict=True))
        count = len(labelled.label)

        losses = {"seg": sum(segmentation_loss(output.logits[:count], labelled.label) for output in (a, b))}
        if options.w_qd:
            losses["qd"] = options.w_qd * sum(
                query_loss_all(first(output, count), labelled.label, self.shape.groups) for output in (a, b)
            )
        ramp = ramp_up(step, options.ramp_up_steps)
        form = (options.form, options.gradient, options.threshold)
        if options.w_segc:
            probs = a.logits.float().softmax(dim=1), b.logits.float().softmax(dim=1)
            losses["segc"] = ramp * options.w_segc * consistency_loss(*probs, *form)
        if options.w_qdc:
            losses["qdc"] = ramp * options.w_qdc * consistency_loss(a.group_prob, b.group_prob, *form)
        return losses

    def predictor(self) -> nn.Module:
        return {"mean": BranchMean(self.networks), "a": self.networks[0], "b": self.networks[1]}[self.options.predict]


class BranchMean(nn.Module):
    """The mean of the branches' probabilities, as logits; their disagreement is the uncertainty.

    Uncertainty: the Jensen-Shannon divergence of the branches over its maximum, log 2: 0 agreement, 1 contradiction.
    """

    def __init__(self, networks: nn.ModuleList):
        super().__init__()
        self.networks = networks

    def forward(self, image: Tensor) -> Output:
        a, b = (network(image) for network in self.networks)
        log_a, log_b = a.logits.float().log_softmax(dim=1), b.logits.float().log_softmax(dim=1)
        log_mean = torch.logaddexp(log_a, log_b) - math.log(2)
        divergence = (log_a.exp() * (log_a - log_mean) + log_b.exp() * (log_b - log_mean)).sum(dim=1) / 2
        return Output(logits=log_mean, uncertainty=(divergence / math.log(2)).clamp(0, 1))


def ramp_up(step: int, length: int) -> float:
    """r(t): the Gaussian ramp exp(-5 (1 - t)^2), t from 0 to 1 over `length` steps (Laine and Aila, arXiv 1610.02242)."""
    t = min(step / length, 1.0) if length > 0 else 1.0
    return math.exp(-5 * (1 - t) ** 2)


def first(output: Output, count: int) -> Output:
    """The part of the first `count` patches of a batch that the query loss reads."""
    return Output(
        logits=output.logits[:count],
        group_prob=output.group_prob[:count],
        layer_group_prob=tuple(layer[:count] for layer in output.layer_group_prob),
    )
