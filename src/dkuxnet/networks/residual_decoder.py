"""The residual decoder: skips from the image and every encoder stage, a bottleneck, four up blocks."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from dkuxnet.networks.blocks import ResidualBlock, UpBlock


class ResidualDecoder(nn.Module):
    """Image and encoder features -> voxel features from coarse to fine.

    forward(image (B, C, X, Y, Z), features at strides 2, 4, 8, 16) returns five maps at strides 16, 8, 4, 2, 1 with
    `self.channels`: twice the last width (768 in the paper), then the widths backwards (384, 192, 96, 48).
    """

    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__()
        self.channels = (2 * widths[-1], *reversed(widths))
        sources = (in_channels, *widths[:-1])  # what the skips at strides 1, 2, 4, 8 are made of
        self.skips = nn.ModuleList(ResidualBlock(s, w) for s, w in zip(sources, widths, strict=True))
        self.bottleneck = ResidualBlock(widths[-1], 2 * widths[-1])
        self.ups = nn.ModuleList(UpBlock(before, after) for before, after in pairwise(self.channels))

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        skips = [skip(x) for skip, x in zip(self.skips, (image, *features[:-1]), strict=True)]
        maps = [self.bottleneck(features[-1])]
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            maps.append(up(maps[-1], skip))
        return maps
