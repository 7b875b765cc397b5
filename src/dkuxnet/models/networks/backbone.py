"""What dk-uxnet and plain uxnet share: the encoder of 3D UX-Net and the residual decoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from dkuxnet.core.types import NetworkShape, Output
from dkuxnet.models.networks.residual_decoder import ResidualDecoder
from dkuxnet.models.networks.uxnet import UXNetEncoder, UXNetOptions


class UXNetBackbone(nn.Module):
    """Encoder and decoder; a subclass puts its head on the decoder's feature maps in `decode`."""

    def __init__(self, shape: NetworkShape, options: UXNetOptions):
        super().__init__()
        self.voxel_channels = options.widths[0]
        self.encoder = UXNetEncoder(shape.in_channels, options, shape.strides, shape.flat)
        self.decoder = ResidualDecoder(
            shape.in_channels, options.widths, shape.strides, options.recompute, shape.flat
        )

    def forward(self, image: Tensor) -> Output:
        """(B, C, X, Y, Z), edges divisible by the product of their strides -> Output."""
        return self.decode(image, self.encoder(image))

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output:
        """The image (B, C, X, Y, Z) and what the encoder made of it -> Output."""
        raise NotImplementedError
