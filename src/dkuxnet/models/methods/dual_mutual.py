"""Dual mutual learning, the method of the paper (Wu, Li, Zhang, ISBI 2024): two branches that
teach each other.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape, Output
from dkuxnet.models.methods.average import update_average
from dkuxnet.models.methods.base import (
    Decay,
    MeanOf,
    Method,
    Outline,
    Share,
    Steps,
    Weight,
    all_patches,
    probabilities,
    ramp_up,
)
from dkuxnet.models.methods.losses import consistency_loss
from dkuxnet.models.methods.teacher import taught


class DualMutual(Method):
    """L_seg + w_qd L_qd + r(t) (w_segc L_segc + w_qdc L_qdc) over two branches.

    In the paper (`decay` 0, `view_b` "weak") branch A sees the strong views, branch B the weak
    ones, and they teach each other on all patches. With `decay` the mean of the branches' moving
    averages, which sees the weak views, teaches both on the unlabelled patches (without these there
    is no consistency), and predicts. With `outline` the branches then see what these averages found
    larger or smaller than it is, and are to say so: a network of few labels gives every organ the
    size that it knows, and so does what teaches it.
    """

    branches = 2

    @dataclass(frozen=True)
    class Options:
        """w_*: weights, 0 switches a term off. ramp_up_steps: r(t) rises from 0 to 1 over these.
        form, gradient, threshold: see `losses.consistency_loss`. decay: of the moving averages
        that teach; 0 is the paper, which has none. outline: how far the outline of the
        foreground that the averages find in an unlabelled patch moves at most, outwards or
        inwards, see `outline.outline_displacement`; without averages nothing moves. view_b:
        what branch B sees. predict: which branch answers.
        """

        w_qd: Weight = 0.1
        w_segc: Weight = 1.0
        w_qdc: Weight = 0.1
        ramp_up_steps: Steps = 200
        form: Literal["mse", "kl", "pseudo", "pseudo-dice", "pseudo-both"] = "pseudo-both"
        gradient: Literal["both", "strong"] = "both"
        threshold: Share = 0.0
        decay: Decay = 0.99
        outline: Outline = field(default=0.25, metadata={"before": 0.0})
        view_b: Literal["weak", "strong"] = "strong"
        predict: Literal["mean", "a", "b"] = "mean"

    def __init__(self, networks: Sequence[nn.Module], options: Options, shape: NetworkShape):
        super().__init__(networks, options, shape)
        if (options.w_qd or options.w_qdc) and not all(
            getattr(network, "has_queries", False) for network in networks
        ):
            raise ValueError(
                "this network has no queries: set method.w_qd=0 and method.w_qdc=0, or take a "
                "dk-uxnet"
            )
        if options.decay and options.gradient == "strong":
            raise ValueError(
                "with method.decay the moving averages teach and no branch does: leave out "
                "method.gradient"
            )
        self.teachers = (
            copy.deepcopy(self.networks).requires_grad_(False) if options.decay else None
        )

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options = self.options
        weights = {
            name: weight
            for name, weight in (("segc", options.w_segc), ("qdc", options.w_qdc))
            if weight
        }
        targets: dict[str, Tensor] = {}
        if self.teachers is not None and batch.unlabelled is None:
            weights = {}
        if not weights:
            batch = replace(batch, unlabelled=None)  # nothing reads these patches
        elif self.teachers is not None:
            patches, targets = taught(batch.unlabelled, self.answer, options.outline)
            batch = replace(batch, unlabelled=patches)
        views = ("strong", options.view_b)
        branches = [
            network(all_patches(batch, view))
            for network, view in zip(self.networks, views, strict=True)
        ]
        losses = self.supervision(branches, batch.labelled.label, options.w_qd)
        for name, weight in weights.items():
            a, b = map(COMPARED[name], branches)
            losses[name] = (
                ramp_up(step, options.ramp_up_steps)
                * weight
                * self.consistency(a, b, targets.get(name))
            )
        return losses

    def answer(self, weak: Tensor) -> dict[str, Tensor]:
        """What the moving averages say of weak views, for each consistency."""
        outputs = [teacher(weak) for teacher in self.teachers]
        wanted = ["segc", "qdc"] if self.options.w_qdc else ["segc"]
        return {
            name: torch.stack([COMPARED[name](output) for output in outputs]).mean(dim=0)
            for name in wanted
        }

    def consistency(self, a: Tensor, b: Tensor, target: Tensor | None) -> Tensor:
        """Between the branches, (B, K or G, X, Y, Z), or of both, on the unlabelled patches, with
        a target of these.
        """
        options = self.options
        if target is None:
            return consistency_loss(a, b, options.form, options.gradient, options.threshold)
        return (
            sum(
                consistency_loss(
                    student[-len(target) :], target, options.form, "strong", options.threshold
                )
                for student in (a, b)
            )
            / 2
        )

    def after_step(self, step: int) -> None:
        if self.teachers is not None:
            update_average(self.teachers, self.networks, self.options.decay, step)

    def predictor(self) -> nn.Module:
        a, b = self.networks if self.teachers is None else self.teachers
        return {"mean": MeanOf([a, b]), "a": a, "b": b}[self.options.predict]


def over_groups(output: Output) -> Tensor:
    """How voxels spread over the groups of queries, (B, G, X, Y, Z)."""
    return output.group_prob.float()


# what each consistency compares: distributions at every voxel
COMPARED = {"segc": probabilities, "qdc": over_groups}
