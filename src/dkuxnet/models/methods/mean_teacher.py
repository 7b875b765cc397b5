"""Mean teacher (Tarvainen and Valpola, arXiv 1703.01780): a student and the moving average of its
own weights.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import (
    Decay,
    Outline,
    Steps,
    Weight,
    all_patches,
    probabilities,
    ramp_up,
)
from dkuxnet.models.methods.losses import masked_mean
from dkuxnet.models.methods.teacher import TeacherMethod, taught


class MeanTeacher(TeacherMethod):
    """L_seg + w_qd L_qd + r(t) w MSE(student on strong views, teacher on weak views) over the
    unlabelled patches.

    As in the field's 3D versions, the consistency is taken on unlabelled patches alone; the paper
    takes all.
    """

    @dataclass(frozen=True)
    class Options:
        """w: weight of the consistency. decay: of the teacher's moving average. predict: who
        answers. ramp_up_steps: see `base.ramp_up`. w_qd: weight of the query loss. outline: see
        `teacher.taught`; not in the paper.
        """

        w: Weight = 10.0
        decay: Decay = 0.99
        ramp_up_steps: Steps = 400
        w_qd: Weight = 0.1
        predict: Literal["teacher", "student"] = "teacher"
        outline: Outline = field(default=0.0, metadata={"before": 0.0})

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, maps = self.options, {}
        if batch.unlabelled is not None:
            patches, maps = taught(
                batch.unlabelled, lambda weak: self.answer(weak, step), options.outline
            )
            batch = replace(batch, unlabelled=patches)
        output = self.networks[0](all_patches(batch, "strong"))
        losses = self.supervision([output], batch.labelled.label, options.w_qd)
        if maps:
            error = (
                (probabilities(output)[len(batch.labelled.label) :] - maps["target"])
                .square()
                .mean(dim=1)
            )
            weight = options.w * ramp_up(step, options.ramp_up_steps)
            losses["consistency"] = weight * masked_mean(error, maps["counts"][:, 0])
        return losses

    def answer(self, weak: Tensor, step: int) -> dict[str, Tensor]:
        """The teacher's probabilities of weak views, (B, K, X, Y, Z), and how much each voxel
        counts, (B, 1, X, Y, Z).
        """
        target = probabilities(self.teacher(weak))
        return {"target": target, "counts": torch.ones_like(target[:, :1])}
