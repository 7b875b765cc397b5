"""The encoder of 3D UX-Net: large depthwise kernels at four reduced resolutions.

Source: Lee et al., "3D UX-Net" (arXiv 2209.15076), Figure 2.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from dkuxnet.core.types import NEVER_FLAT, LevelsFlat, Strides
from dkuxnet.models.networks.blocks import ChannelLayerNorm, UXBlock, kernel_edges
from dkuxnet.models.networks.cpu.fused import half

Width = Annotated[int, Field(ge=1, le=8192)]
Depth = Annotated[int, Field(ge=0, le=128)]


@dataclass(frozen=True)
class UXNetOptions:
    """Sizes of the encoder and of the decoder beside it; the defaults are the published ones.

    widths: channels of the encoder's stages. depths: blocks of each stage.
    drop_rate: of stochastic depth in the last block, from 0 in the first. layer_scale: initial
    scale of the residuals. recompute: less memory in training for more time, see `ResidualDecoder`.
    """

    widths: tuple[Width, Width, Width, Width] = (48, 96, 192, 384)
    depths: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2)
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layer_scale: Annotated[float, Field(allow_inf_nan=False)] = 1e-6
    recompute: bool = False


class UXNetEncoder(nn.Module):
    """(B, C, X, Y, Z) -> four feature maps of `widths` channels, each reduced by its stride.

    With the paper's strides these are at 1/2, 1/4, 1/8 and 1/16 of each edge.
    """

    def __init__(
        self,
        in_channels: int,
        options: UXNetOptions,
        strides: Strides,
        flat: LevelsFlat = NEVER_FLAT,
    ):
        super().__init__()
        widths, blocks = options.widths, sum(options.depths)
        rates = iter([options.drop_rate * i / max(blocks - 1, 1) for i in range(blocks)])
        stem_edges = kernel_edges(7, flat[0])
        stem = nn.Sequential(
            nn.Conv3d(in_channels, widths[0], stem_edges, strides[0], padding=half(stem_edges)),
            ChannelLayerNorm(widths[0]),
        )
        self.reduce = nn.ModuleList([stem])
        for (before, after), stride in zip(pairwise(widths), strides[1:], strict=True):
            self.reduce.append(
                nn.Sequential(ChannelLayerNorm(before), nn.Conv3d(before, after, stride, stride))
            )
        self.stages = nn.ModuleList(
            nn.Sequential(
                *[UXBlock(width, next(rates), options.layer_scale, level) for _ in range(depth)]
            )
            for width, depth, level in zip(widths, options.depths, flat[1:], strict=True)
        )
        self.norms = nn.ModuleList(ChannelLayerNorm(width) for width in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        features, x = [], image
        for reduce, stage, norm in zip(self.reduce, self.stages, self.norms, strict=True):
            x = stage(reduce(x))  # fewer voxels, the next width
            features.append(norm(x))
        return features
