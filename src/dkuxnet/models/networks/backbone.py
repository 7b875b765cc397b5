"""What dk-uxnet and plain uxnet share: the 3D UX-Net encoder and the residual decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from dkuxnet.core.types import NetworkShape, Output
from dkuxnet.models.networks.residual_decoder import ResidualDecoder
from dkuxnet.models.networks.uxnet import UXNetEncoder

Width = Annotated[int, Field(ge=1, le=8192)]
Depth = Annotated[int, Field(ge=0, le=128)]


@dataclass(frozen=True)
class UXNetOptions:
    """Sizes of the encoder and the decoder; the defaults are those of the papers.

    widths: channels of the encoder's stages at strides 2, 4, 8, 16. depths: blocks of each stage.
    drop_rate: of stochastic depth, in the deepest block. layer_scale: initial scale of the
    residuals. recompute: less memory in training for more time, see `ResidualDecoder`.
    """

    widths: tuple[Width, Width, Width, Width] = (48, 96, 192, 384)
    depths: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2)
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layer_scale: Annotated[float, Field(allow_inf_nan=False)] = 1e-6
    recompute: bool = False


class UXNetBackbone(nn.Module):
    """Encoder and decoder; a subclass puts its head on the decoder's feature maps in `decode`.

    X, Y, Z of the image must be divisible by 16.
    """

    def __init__(self, shape: NetworkShape, options: UXNetOptions):
        super().__init__()
        self.voxel_channels = options.widths[0]
        self.encoder = UXNetEncoder(
            shape.in_channels,
            options.widths,
            options.depths,
            options.drop_rate,
            options.layer_scale,
        )
        self.decoder = ResidualDecoder(shape.in_channels, options.widths, options.recompute)

    def forward(self, image: Tensor) -> Output:
        """(B, C, X, Y, Z) -> Output."""
        return self.decode(image, self.encoder(image))

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output:
        """The image (B, C, X, Y, Z) and what the encoder made of it -> Output."""
        raise NotImplementedError
