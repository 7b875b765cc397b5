"""The encoder of 3D UX-Net: large depthwise kernels at strides 2, 4, 8 and 16.

Source: Lee et al., "3D UX-Net" (arXiv 2209.15076), Figure 2.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from dkuxnet.models.networks.blocks import ChannelLayerNorm, UXBlock


class UXNetEncoder(nn.Module):
    """(B, C, X, Y, Z) -> four feature maps of `widths` channels at strides 2, 4, 8, 16.

    X, Y, Z divisible by 16. The rate of stochastic depth rises linearly from 0 in the first block
    to `drop_rate` in the last. layer_scale: initial scale of the residuals.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        drop_rate: float,
        layer_scale: float,
    ):
        super().__init__()
        blocks = sum(depths)
        rates = iter([drop_rate * i / max(blocks - 1, 1) for i in range(blocks)])
        stem = nn.Sequential(
            nn.Conv3d(in_channels, widths[0], 7, stride=2, padding=3), ChannelLayerNorm(widths[0])
        )
        self.reduce = nn.ModuleList([stem])
        for before, after in pairwise(widths):
            self.reduce.append(
                nn.Sequential(ChannelLayerNorm(before), nn.Conv3d(before, after, 2, stride=2))
            )
        self.stages = nn.ModuleList(
            nn.Sequential(*[UXBlock(width, next(rates), layer_scale) for _ in range(depth)])
            for width, depth in zip(widths, depths, strict=True)
        )
        self.norms = nn.ModuleList(ChannelLayerNorm(width) for width in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        features, x = [], image
        for reduce, stage, norm in zip(self.reduce, self.stages, self.norms, strict=True):
            x = stage(reduce(x))  # half the resolution, the next width
            features.append(norm(x))
        return features
