"""Mean teacher (Tarvainen and Valpola, arXiv 1703.01780): a student and the moving average of its own weights."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dkuxnet.losses import consistency_loss
from dkuxnet.methods.base import Decay, Steps, Weight, all_patches, probabilities, ramp_up
from dkuxnet.methods.teacher import TeacherMethod
from dkuxnet.types import Batch


class MeanTeacher(TeacherMethod):
    """L_seg + w_qd L_qd + r(t) w MSE(student on strong views, teacher on weak views) over the unlabelled patches.

    As in the field's 3D versions, the consistency is taken on unlabelled patches alone; the paper takes all.
    """

    @dataclass(frozen=True)
    class Options:
        """w: weight of the consistency. decay: of the teacher's moving average. predict: who answers. ramp_up_steps: see
        `base.ramp_up`. w_qd: weight of the query loss."""

        w: Weight = 10.0
        decay: Decay = 0.99
        ramp_up_steps: Steps = 400
        w_qd: Weight = 0.1
        predict: Literal["teacher", "student"] = "teacher"

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        output = self.networks[0](all_patches(batch, "strong"))
        losses = self.supervision([output], batch.labelled.label, self.options.w_qd)
        if batch.unlabelled is not None:
            student = probabilities(output)[len(batch.labelled.label):]
            weight = self.options.w * ramp_up(step, self.options.ramp_up_steps)
            losses["consistency"] = weight * self.consistency(student, batch.unlabelled.weak, step)
        return losses

    def consistency(self, student: Tensor, image: Tensor, step: int) -> Tensor:
        """student: (B, K, X, Y, Z) probabilities; image: the weak views that the teacher sees."""
        with torch.no_grad():
            target = probabilities(self.teacher(image))
        return consistency_loss(student, target, form="mse", gradient="strong")
