"""UA-MT (Yu et al., MICCAI 2019, arXiv 1907.07034): a mean teacher that is followed only where it
is sure.
"""

import math
from dataclasses import dataclass, field

import torch
from pydantic import PositiveInt
from torch import Tensor

from dkuxnet.models.methods.base import Steps, Weight, probabilities, ramp_up
from dkuxnet.models.methods.losses import FLOOR
from dkuxnet.models.methods.mean_teacher import MeanTeacher


class UAMT(MeanTeacher):
    """The consistency counts in voxels where the entropy of the teacher's mean over noisy passes
    is under a threshold, which rises from 3/4 of its maximum to the maximum, where all voxels
    count (the paper's Equations 2 to 4).

    The passes differ by noise on the image and by whatever dropout the network has (V-Net has some,
    a dk-uxnet has none).
    """

    @dataclass(frozen=True)
    class Options(MeanTeacher.Options):
        """As the mean teacher's. passes: noisy passes of the teacher, T in the paper. noise: their
        standard deviation, in units of the normalised image; draws beyond twice of it are cut.
        threshold_steps: the threshold rises over these, in the paper over the whole training.
        """

        passes: PositiveInt = 8
        noise: Weight = 0.1
        threshold_steps: Steps = field(default=4000, metadata={"before": 400})

    def answer(self, weak: Tensor, step: int) -> dict[str, Tensor]:
        options = self.options
        target = probabilities(self.teacher(weak))
        mean = torch.zeros_like(target)
        for _ in range(options.passes):
            noise = (options.noise * torch.randn_like(weak)).clamp(
                -2 * options.noise, 2 * options.noise
            )
            mean += probabilities(self.teacher(weak + noise)) / options.passes
        entropy = -(mean * (mean + FLOOR).log()).sum(dim=1, keepdim=True)
        threshold = (0.75 + 0.25 * ramp_up(step, options.threshold_steps)) * math.log(mean.shape[1])
        return {"target": target, "counts": (entropy < threshold).float()}
