"""Mean teacher: a student and the moving average (EMA) of its own weights.

Source: Tarvainen and Valpola, arXiv 1703.01780.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import all_patches, probabilities, ramp_up
from dkuxnet.models.methods.losses import masked_mean
from dkuxnet.models.methods.options import Outline, Steps, Weight
from dkuxnet.models.methods.teacher import TeacherMethod, TeacherOptions, teacher_targets


@dataclass(frozen=True)
class MeanTeacherOptions(TeacherOptions):
    """w: weight of the consistency. ramp_up_steps: see `base.ramp_up`.

    outline: see `teacher.teacher_targets`; not in the paper.
    """

    w: Weight = 10.0
    ramp_up_steps: Steps = field(default=400, metadata={"share": 0.5})
    outline: Outline = field(default=0.0, metadata={"before": 0.0})


class MeanTeacher(TeacherMethod[MeanTeacherOptions]):
    """L_seg + w_qd L_qd + r(t) w MSE(student on strong views, teacher on weak views).

    As in the field's 3D versions, the consistency is taken on unlabelled patches alone; the paper
    takes all.
    """

    Options = MeanTeacherOptions

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options = self.options
        maps: dict[str, Tensor] = {}
        if batch.unlabelled is not None:
            patches, maps = teacher_targets(
                batch.unlabelled, lambda weak: self.predict_targets(weak, step), options.outline
            )
            batch = replace(batch, unlabelled=patches)
        output = self.networks[0](all_patches(batch, "strong"))
        losses = self.supervision([output], batch.label)
        if maps:
            student = probabilities(output)[len(batch.label) :]
            error = (student - maps["target"]).square().mean(dim=1)
            weight = options.w * ramp_up(step, options.ramp_up_steps)
            losses["consistency"] = weight * masked_mean(error, maps["mask"][:, 0])
        return losses

    def predict_targets(self, weak: Tensor, step: int) -> dict[str, Tensor]:
        """The teacher's probabilities of weak views, "target" (B, K, X, Y, Z).

        And "mask" (B, 1, X, Y, Z): the voxels that count.
        """
        target = probabilities(self.teacher(weak))
        return {"target": target, "mask": torch.ones_like(target[:, :1])}
