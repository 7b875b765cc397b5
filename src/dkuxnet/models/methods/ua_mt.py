"""UA-MT: a mean teacher that the student follows only where the teacher is certain.

Source: Yu et al., MICCAI 2019, arXiv 1907.07034.
"""

import math
from dataclasses import dataclass, field

import torch
from pydantic import PositiveInt
from torch import Tensor

from dkuxnet.core.shares import draw_own
from dkuxnet.models.methods.base import probabilities, ramp_up
from dkuxnet.models.methods.losses import FLOOR
from dkuxnet.models.methods.mean_teacher import MeanTeacher, MeanTeacherOptions
from dkuxnet.models.methods.options import Steps, Weight


@dataclass(frozen=True)
class UAMTOptions(MeanTeacherOptions):
    """passes: noisy passes of the teacher, T in the paper. noise: their standard deviation.

    The noise is in units of the normalised image; draws beyond twice its deviation are cut.
    threshold_steps: the threshold rises over these, in the paper over the whole training.
    """

    passes: PositiveInt = 8
    noise: Weight = 0.1
    threshold_steps: Steps = field(default=4000, metadata={"share": 1.0, "before": 400})


class UAMT(MeanTeacher):
    """The consistency counts in voxels where the teacher's uncertainty is under a threshold.

    The uncertainty is the entropy of the teacher's mean over noisy passes; the threshold rises from
    3/4 of the largest entropy to the largest, where all voxels count (the paper's Equations 2 to
    4). The passes differ by noise on the image and by whatever dropout the network has (V-Net has
    some, a dk-uxnet has none).
    """

    options: UAMTOptions
    Options = UAMTOptions

    def predict_targets(self, weak: Tensor, step: int) -> dict[str, Tensor]:
        options = self.options
        target = probabilities(self.teacher(weak))
        mean = torch.zeros_like(target)
        largest, size = 2 * options.noise, weak.shape[1:]
        for _ in range(options.passes):
            noise = draw_own(lambda rows: torch.randn(rows, *size, device=weak.device), len(weak))
            noise = (options.noise * noise).clamp(-largest, largest)
            mean += probabilities(self.teacher(weak + noise)) / options.passes
        entropy = -(mean * (mean + FLOOR).log()).sum(dim=1, keepdim=True)
        threshold = (0.75 + 0.25 * ramp_up(step, options.threshold_steps)) * math.log(mean.shape[1])
        return {"target": target, "mask": (entropy < threshold).float()}
