"""DTC, dual-task consistency (Luo et al., AAAI 2021, arXiv 2009.04448): a segmentation and a level
set that must agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape
from dkuxnet.models.methods.base import (
    Method,
    Positive,
    Steps,
    Weight,
    all_patches,
    probabilities,
    ramp_up,
)
from dkuxnet.models.methods.losses import one_hot


class DTC(Method):
    """L_seg + w_qd L_qd + w_level MSE(level set, signed distance) + r(t) w MSE(segmentation, level
    set turned into one).

    A 1x1x1 head on the voxel features predicts for every foreground class its level set in [-1, 1],
    negative inside. The consistency is on all patches, and goes through T^-1(l) = sigmoid(-k l).
    """

    uses_features = True

    @dataclass(frozen=True)
    class Options:
        """w: weight of the consistency. w_level: of the level set on labelled patches, beta in the
        paper. steepness: k. ramp_up_steps: see `base.ramp_up`. w_qd: weight of the query loss.
        """

        w: Weight = 1.0
        w_level: Weight = 0.3
        steepness: Positive = 1500.0
        ramp_up_steps: Steps = 400
        w_qd: Weight = 0.1

    def __init__(self, networks: Sequence[nn.Module], options: Options, shape: NetworkShape):
        super().__init__(networks, options, shape)
        channels = getattr(networks[0], "voxel_channels", None)
        if channels is None:
            raise ValueError(
                "this network does not show its voxel features; dk-uxnet, uxnet and vnet networks "
                "do"
            )
        self.level_set = nn.Conv3d(channels, shape.classes - 1, 1)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, label = self.options, batch.labelled.label
        output = self.networks[0](all_patches(batch, "strong"))
        levels = self.level_set(output.features).float().tanh()  # (B, K - 1, X, Y, Z)
        losses = self.supervision([output], label, options.w_qd)
        losses["level"] = (
            options.w_level
            * (levels[: len(label)] - signed_distance(label, self.shape.classes)).square().mean()
        )
        turned = torch.sigmoid(-options.steepness * levels)
        error = (probabilities(output)[:, 1:] - turned).square().mean()
        return losses | {"dual": options.w * ramp_up(step, options.ramp_up_steps) * error}


def signed_distance(label: Tensor, classes: int) -> Tensor:
    """(B, X, Y, Z) class indices -> (B, classes - 1, X, Y, Z): distance to the border in voxels,
    negative inside, each side divided by its largest. A class that a patch lacks (or fills) has
    no border: 1 (or -1) everywhere.
    """
    from scipy.ndimage import distance_transform_edt

    masks = one_hot(label, classes)[:, 1:].cpu().numpy().astype(bool)
    levels = np.empty(masks.shape, np.float32)
    for index in np.ndindex(masks.shape[:2]):
        mask = masks[index]
        if mask.all() or not mask.any():
            levels[index] = -1.0 if mask.any() else 1.0
            continue
        inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
        levels[index] = outside / outside.max() - inside / inside.max()
    return torch.from_numpy(levels).to(label.device)
