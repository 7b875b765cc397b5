"""CPS, cross pseudo supervision: two networks label the scans for each other.

Source: Chen et al., CVPR 2021, arXiv 2106.01226.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import (
    Method,
    all_patches,
    branch_predictor,
    probabilities,
    ramp_up,
)
from dkuxnet.models.methods.losses import consistency_loss
from dkuxnet.models.methods.options import Branch, MethodOptions, Steps, Weight


@dataclass(frozen=True)
class CPSOptions(MethodOptions):
    """w: weight of the cross supervision. ramp_up_steps: see `base.ramp_up`.

    predict: which network predicts.
    """

    w: Weight = 1.0
    ramp_up_steps: Steps = field(default=400, metadata={"share": 0.5})
    predict: Branch = "mean"


class CPS(Method[CPSOptions]):
    """L_seg + w_qd L_qd of both + r(t) w (cross-entropy of each against the other's hard label).

    The cross supervision is on all patches. Both networks see the same view, as in the paper. The
    ramp is the field's 3D version's, and the mean of both predicts where the paper takes the first.
    """

    branches = 2
    Options = CPSOptions

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        images = all_patches(batch, "strong")
        outputs = [network(images) for network in self.networks]
        losses = self.supervision(outputs, batch.label)
        a, b = map(probabilities, outputs)
        # twice, since the paper has the sum of both directions, not their mean
        weight = 2 * self.options.w * ramp_up(step, self.options.ramp_up_steps)
        return losses | {"cross": weight * consistency_loss(a, b, form="pseudo", gradient="both")}

    def predictor(self) -> nn.Module:
        return branch_predictor(self.networks, self.options.predict)
