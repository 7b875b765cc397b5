"""Networks of others to compare with, taken from MONAI and wrapped so that they return `Output`.

MONAI takes seconds to import: the builders import it when they are called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from dkuxnet.core.lookup import parse_options
from dkuxnet.core.types import NetworkShape, Output


class LogitsNetwork(nn.Module):
    """Wraps a network whose forward returns bare logits (B, K, X, Y, Z)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Output:
        return Output(logits=self.network(image))


Width = Annotated[int, Field(ge=1, le=8192)]


@dataclass(frozen=True)
class VNetOptions:
    """dropout: probability in the deep stages and on the skips."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


@dataclass(frozen=True)
class UNetOptions:
    """channels: width of each level, one more than there are downsamplings. residual_units:
    convolutions a level.
    """

    channels: Annotated[tuple[Width, ...], Field(min_length=2, max_length=8)] = (16, 32, 64, 128)
    residual_units: Annotated[int, Field(ge=0, le=128)] = 2


@dataclass(frozen=True)
class SegResNetOptions:
    """width: channels of the first level, doubled at each of three downsamplings."""

    width: Width = 16


class VNet(nn.Module):
    """MONAI's V-Net as an encoder and a decoder.

    It tiles its input to 16 channels and so needs a divisor of 16: other numbers of channels go
    through a 1x1x1 convolution first.
    """

    voxel_channels = 32

    def __init__(self, in_channels: int, classes: int, dropout: float):
        from monai.networks.nets import VNet as Whole

        super().__init__()
        fits = 16 % in_channels == 0
        whole = Whole(
            in_channels=in_channels if fits else 16,
            out_channels=classes,
            dropout_prob_down=dropout,
            dropout_prob_up=(dropout, dropout),
        )
        adapt = nn.Identity() if fits else nn.Conv3d(in_channels, 16, 1)
        downs = (whole.down_tr32, whole.down_tr64, whole.down_tr128, whole.down_tr256)
        self.encoder = VNetEncoder([nn.Sequential(adapt, whole.in_tr), *downs])
        self.ups = nn.ModuleList([whole.up_tr256, whole.up_tr128, whole.up_tr64, whole.up_tr32])
        for up in self.ups:
            up.dropout2.p = dropout  # of the skips; MONAI leaves it at 0.5 in the last two
        self.head = whole.out_tr

    def forward(self, image: Tensor) -> Output:
        return self.decode(image, self.encoder(image))

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output:
        *skips, x = features
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip)
        return Output(logits=self.head(x), features=x)


class VNetEncoder(nn.Module):
    """(B, C, X, Y, Z) -> five maps at strides 1, 2, 4, 8, 16 with 16, 32, 64, 128, 256 channels."""

    def __init__(self, stages: Sequence[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        features, x = [], image
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def vnet(shape: NetworkShape, options: dict) -> VNet:
    """V-Net (Milletari et al., 2016), the field's usual backbone on the left atrium."""
    return VNet(
        shape.in_channels,
        shape.classes,
        parse_options(VNetOptions, options, "network.vnet").dropout,
    )


def unet(shape: NetworkShape, options: dict) -> nn.Module:
    """MONAI's residual U-Net with instance norms (Kerfoot et al., 2018)."""
    from monai.networks.nets import UNet

    chosen = parse_options(UNetOptions, options, "network.unet")
    return LogitsNetwork(
        UNet(
            spatial_dims=3,
            in_channels=shape.in_channels,
            out_channels=shape.classes,
            channels=chosen.channels,
            strides=(2,) * (len(chosen.channels) - 1),
            num_res_units=chosen.residual_units,
        )
    )


def segresnet(shape: NetworkShape, options: dict) -> nn.Module:
    """SegResNet (Myronenko, 2018) without its autoencoder branch."""
    from monai.networks.nets import SegResNet

    chosen = parse_options(SegResNetOptions, options, "network.segresnet")
    return LogitsNetwork(
        SegResNet(
            spatial_dims=3,
            init_filters=chosen.width,
            in_channels=shape.in_channels,
            out_channels=shape.classes,
        )
    )
