"""Gaussian smoothing of patches, each with its own width."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(image: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur each patch of (B, C, X, Y, Z) with its own sigma (B,) in voxels; sigma 0 leaves it
    unchanged.

    reach: voxels to either side that count; three of the largest sigma are enough.
    """
    offsets = torch.arange(reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp_min(1e-3) ** 2))
    kernel = kernel / (kernel[:, :1] + 2 * kernel[:, 1:].sum(dim=1, keepdim=True))
    centre, *sides = kernel.view(*kernel.shape, 1, 1, 1, 1).unbind(
        1
    )  # (B, 1, 1, 1, 1) each: the kernel is symmetric
    for axis in (
        2,
        3,
        4,
        # sums of shifted copies: a fifth of the time of a convolution a patch, whose kernels all differ
    ):
        length = image.shape[axis]
        pad = [0] * 6
        pad[2 * (4 - axis)] = pad[2 * (4 - axis) + 1] = reach
        padded = F.pad(image, pad, mode="replicate")
        image = image * centre
        for offset, weight in enumerate(sides, 1):
            pair = padded.narrow(axis, reach - offset, length) + padded.narrow(
                axis, reach + offset, length
            )
            image.addcmul_(pair, weight)
    return image
