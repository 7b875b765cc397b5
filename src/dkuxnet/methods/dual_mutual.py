"""Dual mutual learning, the method of the paper (Wu, Li, Zhang, ISBI 2024): two branches that teach each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from dkuxnet.losses import consistency_loss
from dkuxnet.methods.base import MeanOf, Method, all_patches, probabilities, ramp_up
from dkuxnet.types import Batch, NetworkShape


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
        options = self.options
        a = self.networks[0](all_patches(batch, "strong", "strong"))
        b = self.networks[1](all_patches(batch))
        losses = self.supervision([a, b], batch.labelled.label, options.w_qd)
        ramp = ramp_up(step, options.ramp_up_steps)
        form = (options.form, options.gradient, options.threshold)
        if options.w_segc:
            losses["segc"] = ramp * options.w_segc * consistency_loss(probabilities(a), probabilities(b), *form)
        if options.w_qdc:
            losses["qdc"] = ramp * options.w_qdc * consistency_loss(a.group_prob, b.group_prob, *form)
        return losses

    def predictor(self) -> nn.Module:
        return {"mean": MeanOf(self.networks), "a": self.networks[0], "b": self.networks[1]}[self.options.predict]
