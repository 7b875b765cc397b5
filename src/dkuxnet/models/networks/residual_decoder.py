"""The residual decoder: skips from the image and every encoder stage, a bottleneck, four up
blocks.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dkuxnet.models.networks.blocks import ResidualBlock, UpBlock


class ResidualDecoder(nn.Module):
    """Image and encoder features -> voxel features from coarse to fine.

    forward(image (B, C, X, Y, Z), features at strides 2, 4, 8, 16) returns five maps at strides 16,
    8, 4, 2, 1 with `self.channels`: twice the last width (768 in the paper), then the widths
    backwards (384, 192, 96, 48).

    recompute: in training keep what goes into a block, not what happens in it, and compute that
    again in the backward pass: less memory, more time, the same gradients (Chen et al., arXiv
    1604.06174).
    """

    def __init__(self, in_channels: int, widths: Sequence[int], recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        self.channels = (2 * widths[-1], *reversed(widths))
        sources = (in_channels, *widths[:-1])  # what the skips at strides 1, 2, 4, 8 are made of
        self.skips = nn.ModuleList(
            ResidualBlock(s, w) for s, w in zip(sources, widths, strict=True)
        )
        self.bottleneck = ResidualBlock(widths[-1], 2 * widths[-1])
        self.ups = nn.ModuleList(
            UpBlock(before, after) for before, after in pairwise(self.channels)
        )

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        skips = [
            self._run(skip, x) for skip, x in zip(self.skips, (image, *features[:-1]), strict=True)
        ]
        maps = [self._run(self.bottleneck, features[-1])]
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            maps.append(self._run(up, maps[-1], skip))
        return maps

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        return (
            checkpoint(block, *inputs, use_reentrant=False)
            if self.recompute and self.training
            else block(*inputs)
        )
