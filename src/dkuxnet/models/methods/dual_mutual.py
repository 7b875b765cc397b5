"""Dual mutual learning, the method of the paper: two branches that teach each other.

Source: Wu, Li, Zhang (ISBI 2024, arXiv 2311.12364).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape
from dkuxnet.models.methods.average import update_average
from dkuxnet.models.methods.base import (
    Method,
    all_patches,
    branch_predictor,
    probabilities,
    ramp_up,
)
from dkuxnet.models.methods.losses import consistency_loss, group_probabilities
from dkuxnet.models.methods.options import (
    Branch,
    Decay,
    MethodOptions,
    Outline,
    Share,
    Steps,
    Weight,
)
from dkuxnet.models.methods.teacher import teacher_targets

# the distributions, (B, K or G, X, Y, Z), that each consistency compares
DISTRIBUTIONS = {"segc": probabilities, "qdc": group_probabilities}


@dataclass(frozen=True)
class DualMutualOptions(MethodOptions):
    """w_segc, w_qdc: weights of the consistencies; 0 switches a term off.

    pretrain_steps: as many steps before that are on labelled patches alone, at half of the cost;
    not in the paper. ramp_up_steps: r(t) rises from 0 to 1 over these, after them. form, gradient,
    threshold: see `losses.consistency_loss`. decay: of the moving averages (EMA) that teach; 0 is
    the paper, which has none. outline: how far the outline of the foreground that the averages find
    in an unlabelled patch moves at most, outwards or inwards, see `outline.outline_displacement`;
    without averages nothing moves. view_b: what branch B sees. predict: which branch predicts.
    """

    w_segc: Weight = 1.0
    w_qdc: Weight = 0.1
    pretrain_steps: Steps = field(default=0, metadata={"before": 0})
    ramp_up_steps: Steps = field(default=200, metadata={"share": 0.25})
    form: Literal["mse", "kl", "pseudo", "pseudo-dice", "pseudo-both"] = "pseudo-both"
    gradient: Literal["both", "strong"] = "both"
    threshold: Share = 0.0
    decay: Decay = 0.99
    outline: Outline = field(default=0.25, metadata={"before": 0.0})
    view_b: Literal["weak", "strong"] = "strong"
    predict: Branch = "mean"


class DualMutual(Method[DualMutualOptions]):
    """L_seg + w_qd L_qd + r(t) (w_segc L_segc + w_qdc L_qdc) over two branches.

    In the paper (`decay` 0, `view_b` "weak") branch A sees the strong views, branch B the weak
    ones, and they teach each other on all patches. With `decay` the mean of the branches' moving
    averages, which sees the weak views, teaches both on the unlabelled patches (without these there
    is no consistency), and predicts. With `outline` the students see the organs that these
    teachers found enlarged or shrunk, with targets to match: trained on few labels, a network
    gives every organ the size that it knows, and so does its teacher.
    """

    branches = 2
    Options = DualMutualOptions

    def __init__(
        self, networks: Sequence[nn.Module], options: DualMutualOptions, shape: NetworkShape
    ):
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
        weights = {"segc": options.w_segc, "qdc": options.w_qdc}
        weights = {name: weight for name, weight in weights.items() if weight}
        targets: dict[str, Tensor] = {}
        pretraining = step < options.pretrain_steps
        if pretraining or (self.teachers is not None and batch.unlabelled is None):
            weights = {}  # nothing to teach with, or on
        if not weights:
            batch = replace(batch, unlabelled=None)  # nothing reads these patches
        elif self.teachers is not None and batch.unlabelled is not None:
            patches, targets = teacher_targets(
                batch.unlabelled, self.predict_targets, options.outline
            )
            batch = replace(batch, unlabelled=patches)
        network_a, network_b = self.networks
        outputs = [
            network_a(all_patches(batch, "strong")),
            network_b(all_patches(batch, options.view_b)),
        ]
        losses = self.supervision(outputs, batch.label)
        ramp = ramp_up(step - options.pretrain_steps, options.ramp_up_steps)
        for name, weight in weights.items():
            a, b = map(DISTRIBUTIONS[name], outputs)
            losses[name] = ramp * weight * self.consistency(a, b, targets.get(name))
        return losses

    def predict_targets(self, weak: Tensor) -> dict[str, Tensor]:
        """The teachers' mean distributions (B, K or G, X, Y, Z) of weak views, class first."""
        outputs = [teacher(weak) for teacher in self.teachers or ()]
        wanted = ["segc", "qdc"] if self.options.w_qdc else ["segc"]
        return {
            name: torch.stack([DISTRIBUTIONS[name](output) for output in outputs]).mean(dim=0)
            for name in wanted
        }

    def consistency(self, a: Tensor, b: Tensor, target: Tensor | None) -> Tensor:
        """Of the branches' distributions (B, K or G, X, Y, Z) with each other, or with a target.

        A target is of the last patches, the unlabelled ones.
        """
        options = self.options
        if target is None:
            return consistency_loss(a, b, options.form, options.gradient, options.threshold)
        of_a, of_b = (
            consistency_loss(
                student[-len(target) :], target, options.form, "strong", options.threshold
            )
            for student in (a, b)
        )
        return (of_a + of_b) / 2

    def after_step(self, step: int) -> None:
        if self.teachers is not None:
            update_average(self.teachers, self.networks, self.options.decay, step)

    def predictor(self) -> nn.Module:
        branches = self.networks if self.teachers is None else self.teachers
        return branch_predictor(branches, self.options.predict)
