"""Plain 3D UX-Net: the same encoder and residual decoder with a 1x1x1 head and no queries (arXiv
2209.15076).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dkuxnet.core.lookup import parse_options
from dkuxnet.core.types import NetworkShape, Output
from dkuxnet.models.networks.residual_decoder import ResidualDecoder
from dkuxnet.models.networks.uxnet import UXNetEncoder


@dataclass(frozen=True)
class UXNetOptions:
    """Sizes as in DKUXNetOptions, whose encoder and decoder these are."""

    widths: tuple[int, int, int, int] = (48, 96, 192, 384)
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    drop_rate: float = 0.0
    layer_scale: float = 1e-6
    recompute: bool = False


class UXNet(nn.Module):
    """(B, C, X, Y, Z) -> Output with segmentation logits alone. X, Y, Z divisible by 16."""

    def __init__(self, shape: NetworkShape, options: UXNetOptions):
        super().__init__()
        self.encoder = UXNetEncoder(
            shape.in_channels,
            options.widths,
            options.depths,
            options.drop_rate,
            options.layer_scale,
        )
        self.decoder = ResidualDecoder(shape.in_channels, options.widths, options.recompute)
        self.voxel_channels = options.widths[0]
        self.head = nn.Conv3d(self.voxel_channels, shape.classes, 1)

    def forward(self, image: Tensor) -> Output:
        return self.decode(image, self.encoder(image))

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output:
        voxels = self.decoder(image, features)[-1]
        return Output(logits=self.head(voxels), features=voxels)


def uxnet(shape: NetworkShape, options: dict) -> UXNet:
    """3D UX-Net at its published widths."""
    return UXNet(shape, parse_options(UXNetOptions, options, "network.uxnet"))


def uxnet_tiny(shape: NetworkShape, options: dict) -> UXNet:
    """3D UX-Net at the widths of `dk-uxnet-tiny`."""
    return UXNet(
        shape,
        parse_options(UXNetOptions, {"widths": (8, 16, 32, 64)} | options, "network.uxnet-tiny"),
    )
