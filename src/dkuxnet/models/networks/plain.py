"""Plain 3D UX-Net: encoder, residual decoder and a 1x1x1 head, without queries.

Source: Lee et al., "3D UX-Net" (arXiv 2209.15076).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dkuxnet.core.lookup import parse_options
from dkuxnet.core.types import NetworkShape, Output
from dkuxnet.models.networks.backbone import UXNetBackbone
from dkuxnet.models.networks.uxnet import UXNetOptions


class UXNet(UXNetBackbone):
    """(B, C, X, Y, Z) -> Output with segmentation logits alone."""

    def __init__(self, shape: NetworkShape, options: UXNetOptions):
        super().__init__(shape, options)
        self.head = nn.Conv3d(self.voxel_channels, shape.classes, 1)

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output:
        voxels = self.decoder(image, features)[-1]  # (B, C', X, Y, Z)
        return Output(logits=self.head(voxels), features=voxels)


def uxnet(shape: NetworkShape, options: dict[str, Any]) -> UXNet:
    """3D UX-Net at its published widths."""
    return UXNet(shape, parse_options(UXNetOptions, options, "network.uxnet"))


def uxnet_tiny(shape: NetworkShape, options: dict[str, Any]) -> UXNet:
    """3D UX-Net at the widths of `dk-uxnet-tiny`."""
    sizes = {"widths": (8, 16, 32, 64)}
    return UXNet(shape, parse_options(UXNetOptions, sizes | options, "network.uxnet-tiny"))
