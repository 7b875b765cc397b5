"""CPS, cross pseudo supervision (Chen et al., CVPR 2021, arXiv 2106.01226): two networks label the
scans for each other.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import (
    MeanOf,
    Method,
    Steps,
    Weight,
    all_patches,
    probabilities,
    ramp_up,
)
from dkuxnet.models.methods.losses import consistency_loss


class CPS(Method):
    """L_seg + w_qd L_qd of both + r(t) w (cross-entropy of each against the other's hard
    decision), on all patches.

    Both see the same view, as in the paper. The ramp is the field's 3D version's, and the mean of
    both predicts where the paper takes the first.
    """

    branches = 2

    @dataclass(frozen=True)
    class Options:
        """w: weight of the cross supervision. ramp_up_steps: see `base.ramp_up`. predict: which
        network answers. w_qd: weight of the query loss.
        """

        w: Weight = 1.0
        ramp_up_steps: Steps = 400
        w_qd: Weight = 0.1
        predict: Literal["mean", "a", "b"] = "mean"

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        images = all_patches(batch, "strong")
        outputs = [network(images) for network in self.networks]
        losses = self.supervision(outputs, batch.labelled.label, self.options.w_qd)
        a, b = map(probabilities, outputs)
        weight = (
            2 * self.options.w * ramp_up(step, self.options.ramp_up_steps)
        )  # the sum of both directions, not their mean
        return losses | {"cross": weight * consistency_loss(a, b, form="pseudo", gradient="both")}

    def predictor(self) -> nn.Module:
        return {"mean": MeanOf(self.networks), "a": self.networks[0], "b": self.networks[1]}[
            self.options.predict
        ]
