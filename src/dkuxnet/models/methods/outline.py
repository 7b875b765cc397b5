"""Organs enlarged or shrunk: the variety of sizes that a handful of labelled scans lacks.

A displacement along the slope of the smoothed organ is the idea of Kovacs et al. (MICCAI 2023,
arXiv 2309.03652), who move the neighbours of an organ and so deform it; here the organ itself grows
or shrinks.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dkuxnet.models.methods.blur import gaussian_blur

Volume = TypeVar("Volume", float, Tensor)

# Standard deviation of the smoothing over the largest displacement. Of a flat outline neighbouring
# voxels are then read at most 0.4 voxels closer or further apart than they lie, of a curved one a
# little more: nothing folds
SMOOTHNESS = 1.5


def outline_displacement(
    organ: Tensor, outwards: Tensor, share: float, edges: Sequence[float] = (1, 1, 1)
) -> Tensor:
    """The displacement field that moves an organ's outline, (B, 3, X, Y, Z) voxels along X, Y, Z.

    organ: (B, 1, X, Y, Z) from 0 to 1. outwards: (B,) from -1 to 1, how far the outline moves, as a
    share of the largest displacement, which is `share` of the radius of a ball as large as the
    organ. edges: of a voxel along X, Y, Z, in any unit: an outline moves equally far in every
    direction. See `warp` for the direction: a voxel is read from where its displacement points.

    A flat outline moves by 0.85 of the largest displacement at most (its new place is read from
    further in, where the field is already weaker), that of a ball with a share of 0.25 by 0.17 of
    its radius outwards and 0.23 inwards; what is small or thin beside the rest dissolves in the
    smoothing and moves less.
    """
    voxel = math.prod(edges)
    sigma = SMOOTHNESS * share * ball_radius(organ.sum(dim=(1, 2, 3, 4)) * voxel)
    # as far as the smoothing of a patch full of organ would reach: to ask how wide this one is
    # would make a GPU wait
    reach = math.ceil(3 * SMOOTHNESS * share * ball_radius(organ[0].numel() * voxel))
    smooth = gaussian_blur(organ, sigma, reach, edges)
    # (B, 3, X, Y, Z), points inwards: along an axis of long voxels a gradient is a difference over
    # a long way, and a displacement is few voxels
    slope = torch.stack(
        [
            part / edge**2
            for part, edge in zip(torch.gradient(smooth[:, 0], dim=(1, 2, 3)), edges, strict=True)
        ],
        dim=1,
    )
    steepest = math.sqrt(2 * math.pi) * sigma  # times this a flat outline's slope is 1
    return (outwards * sigma / SMOOTHNESS * steepest).view(-1, 1, 1, 1, 1) * slope


def ball_radius(volume: Volume) -> Volume:
    """The radius of a ball of `volume`."""
    radius: Volume = (volume * 3 / (4 * math.pi)) ** (1 / 3)
    return radius


def warp(values: Tensor, displacement: Tensor) -> Tensor:
    """Read each voxel of (B, C, X, Y, Z) from where its displacement points, linearly interpolated.

    displacement: (B, 3, X, Y, Z) voxels. Beyond the border the last voxel is repeated.
    """
    # in bfloat16 the places would be off by a tenth of a voxel
    with torch.autocast(values.device.type, enabled=False):
        identity = torch.eye(3, 4, device=values.device).expand(len(values), 3, 4)
        grid = F.affine_grid(identity, list(values.shape), align_corners=False)
        grid = grid + grid_offsets(displacement)
        return F.grid_sample(values, grid, padding_mode="border", align_corners=False)


def grid_offsets(displacement: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Displacement in voxels -> in the units of `grid_sample`, (B, 3, X, Y, Z) -> (B, X, Y, Z, 3).

    Its units are half the size of the map that is sampled, its axes in reverse order. size: (X, Y,
    Z) of that map, where it is not the displacement's.
    """
    size = size or displacement.shape[2:]
    along = [part * (2 / n) for part, n in zip(displacement.unbind(1), size, strict=True)]
    return torch.stack(along[::-1], dim=-1)
