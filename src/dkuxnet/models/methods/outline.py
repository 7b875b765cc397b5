"""Organs made larger or smaller within their surroundings: the variety of sizes that a handful of
labelled scans lacks.

A displacement along the slope of the smoothed organ is the idea of Kovacs et al. (MICCAI 2023,
arXiv 2309.03652), who move the neighbours of an organ and so deform it; here the organ itself grows
or shrinks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dkuxnet.models.methods.blur import gaussian_blur

# Standard deviation of the smoothing over the largest displacement. Of a flat outline neighbouring
# voxels are then read at most
# 0.4 voxels closer or further apart than they lie, of a curved one a little more: nothing folds
SMOOTHNESS = 1.5


def outline_displacement(organ: Tensor, outwards: Tensor, share: float) -> Tensor:
    """Where every voxel is to be read from so that the organ's outline moves.

    organ: (B, 1, X, Y, Z) from 0 to 1, what is organ. outwards: (B,) from -1 to 1, how far its
    outline moves, of the largest displacement, which is `share` of the radius of a ball as large as
    all that is organ. -> (B, 3, X, Y, Z) voxels along X, Y, Z. A flat outline moves by 0.85 of the
    largest at most (its new place is read from further in, where the displacement is already
    smaller), that of a ball with a share of 0.25 by 0.17 of its radius outwards and 0.23 inwards;
    what is small or thin beside the rest dissolves in the smoothing and moves less. Counted in
    voxels, whatever their edges.
    """
    sigma = SMOOTHNESS * share * ball_radius(organ.sum(dim=(1, 2, 3, 4)))
    # as far as the smoothing of a patch full of organ would reach: to ask how wide this one is
    # would make a GPU wait
    reach = math.ceil(3 * SMOOTHNESS * share * ball_radius(organ[0].numel()))
    smooth = gaussian_blur(organ, sigma, reach)
    slope = torch.stack(torch.gradient(smooth[:, 0], dim=(1, 2, 3)), dim=1)  # points inwards
    steepest = math.sqrt(2 * math.pi) * sigma  # times this a flat outline's slope is 1
    return (outwards * sigma / SMOOTHNESS * steepest).view(-1, 1, 1, 1, 1) * slope


def ball_radius(volume: float | Tensor) -> float | Tensor:
    """Of a volume in voxels, in voxels."""
    return (volume * 3 / (4 * math.pi)) ** (1 / 3)


def displaced(values: Tensor, displacement: Tensor) -> Tensor:
    """(B, C, X, Y, Z) read, linearly, where `displacement` (B, 3, X, Y, Z), in voxels, says; the
    border goes on outside.
    """
    with torch.autocast(
        values.device.type, enabled=False
    ):  # places in bfloat16 would be off by a tenth of a voxel
        identity = torch.eye(3, 4, device=values.device).expand(len(values), 3, 4)
        grid = F.affine_grid(identity, list(values.shape), align_corners=False)
        return F.grid_sample(
            values, grid + in_half_sizes(displacement), padding_mode="border", align_corners=False
        )


def in_half_sizes(displacement: Tensor) -> Tensor:
    """(B, 3, X, Y, Z) voxels -> (B, X, Y, Z, 3) as `grid_sample` counts: in half sizes and in
    reverse axis order.
    """
    along = [
        part * (2 / n)
        for part, n in zip(displacement.unbind(1), displacement.shape[2:], strict=True)
    ]
    return torch.stack(along[::-1], dim=-1)
