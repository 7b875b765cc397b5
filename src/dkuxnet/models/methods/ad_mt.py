"""AD-MT: a student and two teachers that follow it in turns.

Source: Zhao et al., "Alternate Diverse Teaching for Semi-supervised Medical Image Segmentation",
ECCV 2024, arXiv 2311.17325.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape
from dkuxnet.models.methods.average import update_average
from dkuxnet.models.methods.base import Ensemble, Method, probabilities, ramp_up
from dkuxnet.models.methods.losses import FLOOR, consistency_loss
from dkuxnet.models.methods.mixing import cutmix, random_boxes
from dkuxnet.models.methods.options import Decay, Edge, MethodOptions, Share, Steps, Weight


@dataclass(frozen=True)
class ADMTOptions(MethodOptions):
    """w: weight of the pseudo-labels; the paper's is 2 beside half of L_seg.

    ramp_up_steps: see `base.ramp_up`. threshold: least probability of a pseudo-label that counts.
    period: most steps that one teacher follows the student before it is the other's turn; in the
    paper half an epoch. box: edge of the CutMix box as a share of the patch's. decay: of the
    teachers' moving averages. predict: the mean of the teachers, or the student.
    """

    w: Weight = 4.0
    ramp_up_steps: Steps = field(default=400, metadata={"share": 0.5})
    threshold: Share = 0.8
    period: PositiveInt = 19
    box: Edge = 0.5
    decay: Decay = 0.99
    predict: Literal["teachers", "student"] = "teachers"


class ADMT(Method[ADMTOptions]):
    """L_seg + w_qd L_qd + r(t) w L_pseudo.

    The teachers differ since each follows the student only in its own turns, which are random in
    length, on batches of their own and under another perturbation: strong views in the first
    teacher's turns, CutMix of weak views in the second's (the paper's random periodic alternate
    updating). L_pseudo is the cross-entropy against the confident pseudo-labels of both, see
    `predict_targets`.
    """

    mixes = "unlabelled"
    Options = ADMTOptions

    def __init__(self, networks: Sequence[nn.Module], options: ADMTOptions, shape: NetworkShape):
        super().__init__(networks, options, shape)
        copies = [copy.deepcopy(self.networks[0]) for _ in range(2)]
        self.teachers = nn.ModuleList(copies).requires_grad_(False)
        # state of the alternation, so that a resumed run goes on with it
        self.second: Tensor
        self.register_buffer("second", torch.tensor(False))  # whose turn it is
        self.left: Tensor
        self.register_buffer("left", torch.tensor(options.period))  # steps of this turn

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move to a device, all but the alternation: it is read at every step."""
        second, left = self.second, self.left
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        self.second, self.left = second, left
        return self

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, student = self.options, self.networks[0]
        if batch.unlabelled is None:
            return self.supervision([student(batch.labelled.strong)], batch.label)
        image, weak = batch.unlabelled.strong, batch.unlabelled.weak
        target = self.predict_targets(weak)
        if self.second:
            boxes = random_boxes(len(weak), weak.shape[2:], options.box, weak.device)
            image, target = cutmix(weak, boxes), cutmix(target, boxes)
        output = student(torch.cat([batch.labelled.strong, image]))
        losses = self.supervision([output], batch.label)
        prob = probabilities(output)[len(batch.label) :]
        weight = options.w * ramp_up(step, options.ramp_up_steps)
        losses["pseudo"] = weight * consistency_loss(
            prob, target, "pseudo", "strong", options.threshold
        )
        return losses

    @torch.no_grad()
    def predict_targets(self, weak: Tensor) -> Tensor:
        """The teachers' mean probabilities of weak views, (B, K, X, Y, Z).

        In each voxel weighted by exp(-entropy): where they conflict the surer one decides (the
        paper's conflict-combating module).
        """
        probs = torch.stack([probabilities(teacher(weak)) for teacher in self.teachers])
        entropy = -(probs * (probs + FLOOR).log2()).sum(dim=2, keepdim=True)
        return ((-entropy).softmax(dim=0) * probs).sum(dim=0)

    def after_step(self, step: int) -> None:
        update_average(self.teachers[int(self.second)], self.networks[0], self.options.decay, step)
        self.left -= 1
        if self.left <= 0:
            self.second.logical_not_()
            self.left.fill_(torch.randint(1, self.options.period + 1, ()))

    def predictor(self) -> nn.Module:
        if self.options.predict == "teachers":
            return Ensemble(self.teachers)
        return self.networks[0]
