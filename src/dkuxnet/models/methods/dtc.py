"""DTC, dual-task consistency: a segmentation and a level set that must agree.

Source: Luo et al., AAAI 2021, arXiv 2009.04448.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape
from dkuxnet.models.methods.base import Method, all_patches, probabilities, ramp_up
from dkuxnet.models.methods.losses import masked_mean, one_hot
from dkuxnet.models.methods.options import MethodOptions, Positive, Steps, Weight


@dataclass(frozen=True)
class DTCOptions(MethodOptions):
    """w: weight of the consistency. w_level: of the level set on labelled patches.

    steepness: k in the paper, whose beta is `w_level`. ramp_up_steps: see `base.ramp_up`.
    """

    w: Weight = 1.0
    w_level: Weight = 0.3
    steepness: Positive = 1500.0
    ramp_up_steps: Steps = field(default=400, metadata={"share": 0.5})


class DTC(Method[DTCOptions]):
    """L_seg + w_qd L_qd + w_level L_level + r(t) w L_dual.

    A 1x1x1 head on the voxel features predicts a level set in [-1, 1] for every foreground class,
    negative inside. L_level is its squared error to the signed distance on labelled patches, but
    those in which a voxel's class is not known: there no border is. L_dual
    is the squared error, on all patches, between the segmentation and the level set turned into
    one by sigmoid(-k level).
    """

    Options = DTCOptions

    def __init__(self, networks: Sequence[nn.Module], options: DTCOptions, shape: NetworkShape):
        super().__init__(networks, options, shape)
        channels = getattr(networks[0], "voxel_channels", None)
        if channels is None:
            raise ValueError(
                "this network does not show its voxel features; dk-uxnet, uxnet and vnet networks "
                "do"
            )
        self.level_set = nn.Conv3d(channels, shape.classes - 1, 1)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, label = self.options, batch.label
        output = self.networks[0](all_patches(batch, "strong"))
        levels = self.level_set(output.features).float().tanh()  # (B, K - 1, X, Y, Z)
        losses = self.supervision([output], label)
        whole = (label < self.shape.classes).flatten(1).all(dim=1)
        known = label * whole.view(-1, 1, 1, 1)
        error = (levels[: len(label)] - signed_distance(known, self.shape.classes)).square()
        counts = whole.float().view(-1, 1, 1, 1, 1).expand_as(error)
        losses["level"] = options.w_level * masked_mean(error, counts)
        turned = torch.sigmoid(-options.steepness * levels)
        error = (probabilities(output)[:, 1:] - turned).square().mean()
        return losses | {"dual": options.w * ramp_up(step, options.ramp_up_steps) * error}


def signed_distance(label: Tensor, classes: int) -> Tensor:
    """(B, X, Y, Z) class indices -> distance to each class's border, (B, classes - 1, X, Y, Z).

    In voxels, negative inside, each side divided by its largest. A class that a patch lacks (or
    fills) has no border: 1 (or -1) everywhere.
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
