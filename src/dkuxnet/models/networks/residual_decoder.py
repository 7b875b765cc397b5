"""The residual decoder: skips from the image and every encoder stage, a bottleneck, four up blocks.

Source: Lee et al., "3D UX-Net" (arXiv 2209.15076), Figure 1.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dkuxnet.core.types import NEVER_FLAT, LevelsFlat, Strides
from dkuxnet.models.networks.blocks import ResidualBlock, UpBlock


class ResidualDecoder(nn.Module):
    """Image and encoder features -> voxel features, coarse to fine.

    channels: of the five maps, twice the last width (768 in the paper), then the widths backwards
    (384, 192, 96, 48).

    recompute: activation checkpointing, block by block: less memory and more time in training, the
    same gradients (Chen et al., arXiv 1604.06174).
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        strides: Strides,
        recompute: bool = False,
        flat: LevelsFlat = NEVER_FLAT,
    ):
        super().__init__()
        self.recompute = recompute
        self.channels = (2 * widths[-1], *reversed(widths))
        sources = (in_channels, *widths[:-1])  # channels of the skips' inputs, fine to coarse
        self.skips = nn.ModuleList(
            ResidualBlock(*each) for each in zip(sources, widths, flat[:-1], strict=True)
        )
        self.bottleneck = ResidualBlock(widths[-1], 2 * widths[-1], flat[-1])
        self.ups = nn.ModuleList(
            UpBlock(before, after, stride, level)
            for (before, after), stride, level in zip(
                pairwise(self.channels), reversed(strides), reversed(flat[:-1]), strict=True
            )
        )

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, X, Y, Z) and the encoder's four maps -> five maps, coarse to fine."""
        skips = [
            self._run(skip, x) for skip, x in zip(self.skips, (image, *features[:-1]), strict=True)
        ]
        maps = [self._run(self.bottleneck, features[-1])]
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            maps.append(self._run(up, maps[-1], skip))
        return maps

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        output: Tensor
        if self.recompute and self.training:
            output = checkpoint(block, *inputs, use_reentrant=False)
        else:
            output = block(*inputs)
        return output
