"""Gaussian smoothing of patches, each with its own width."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(image: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur each patch of (B, C, X, Y, Z) with its own sigma (B,) in voxels.

    Sigma 0 leaves a patch unchanged. reach: voxels to either side that count; three of the largest
    sigma are enough.
    """
    offsets = torch.arange(reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp_min(1e-3) ** 2))
    kernel = kernel / (kernel[:, :1] + 2 * kernel[:, 1:].sum(dim=1, keepdim=True))
    # the kernel is symmetric: (B, 1, 1, 1, 1) for the centre and for each distance from it
    centre, *sides = kernel.view(*kernel.shape, 1, 1, 1, 1).unbind(1)
    # sums of shifted copies: far faster than a convolution of each patch with its own kernel
    for axis in (2, 3, 4):
        length = image.shape[axis]
        pad = [0] * 6
        pad[2 * (4 - axis)] = pad[2 * (4 - axis) + 1] = reach
        padded = F.pad(image, pad, mode="replicate")
        image = image * centre
        for offset, weight in enumerate(sides, 1):
            before = padded.narrow(axis, reach - offset, length)
            after = padded.narrow(axis, reach + offset, length)
            image.addcmul_(before + after, weight)
    return image
