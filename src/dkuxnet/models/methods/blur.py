"""Gaussian smoothing of patches, each with its own width."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(
    image: Tensor, sigma: Tensor, reach: int, edges: Sequence[float] = (1, 1, 1)
) -> Tensor:
    """Blur each patch of (B, C, X, Y, Z) with its own sigma (B,).

    Sigma 0 leaves a patch unchanged. reach: how far to either side voxels count; three of the
    largest sigma are enough. edges: of a voxel along (X, Y, Z), in the unit of sigma and reach.
    """
    # sums of shifted copies: far faster than a convolution of each patch with its own kernel
    for axis, edge in enumerate(edges, 2):
        length, far = image.shape[axis], math.ceil(reach / edge)
        centre, *sides = _kernel(image, sigma / edge, far)
        pad = [0] * 6
        pad[2 * (4 - axis)] = pad[2 * (4 - axis) + 1] = far
        padded = F.pad(image, pad, mode="replicate")
        image = image * centre
        for offset, weight in enumerate(sides, 1):
            before = padded.narrow(axis, far - offset, length)
            after = padded.narrow(axis, far + offset, length)
            image.addcmul_(before + after, weight)
    return image


def _kernel(image: Tensor, sigma: Tensor, reach: int) -> tuple[Tensor, ...]:
    """The weights (B, 1, 1, 1, 1) of the centre and of each distance from it, in voxels."""
    offsets = torch.arange(reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp_min(1e-3) ** 2))
    kernel = kernel / (kernel[:, :1] + 2 * kernel[:, 1:].sum(dim=1, keepdim=True))
    return kernel.view(*kernel.shape, 1, 1, 1, 1).unbind(1)
