"""Networks of others to compare with, taken from MONAI and wrapped to return `Output`.

MONAI comes with the extra `baselines` and takes long to import: it is imported where a network is
built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from dkuxnet.core.extras import require
from dkuxnet.core.lookup import parse_options
from dkuxnet.core.types import NetworkShape, Output
from dkuxnet.models.networks.uxnet import Depth, Width


@dataclass(frozen=True)
class VNetOptions:
    """dropout: probability in the deep stages and on the skips."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


@dataclass(frozen=True)
class UNetOptions:
    """channels: width of each level, one more than there are down-samplings.

    residual_units: convolutions of each level.
    """

    channels: Annotated[tuple[Width, ...], Field(min_length=2, max_length=8)] = (16, 32, 64, 128)
    residual_units: Depth = 2


@dataclass(frozen=True)
class SegResNetOptions:
    """width: channels of the first level, doubled at each of three down-samplings."""

    width: Width = 16


class LogitsNetwork(nn.Module):
    """Wraps a network whose forward returns bare logits (B, K, X, Y, Z)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Output:
        return Output(logits=self.network(image))


class VNet(nn.Module):
    """MONAI's V-Net as an encoder and a decoder: (B, C, X, Y, Z) -> Output.

    MONAI's tiles its input to 16 channels and so needs a divisor of 16: other numbers of channels
    go through a 1x1x1 convolution first.
    """

    voxel_channels = 32

    def __init__(self, in_channels: int, classes: int, dropout: float):
        from monai.networks.nets.vnet import VNet as MonaiVNet

        super().__init__()
        fits = 16 % in_channels == 0
        whole = MonaiVNet(
            in_channels=in_channels if fits else 16,
            out_channels=classes,
            dropout_prob_down=dropout,
            dropout_prob_up=(dropout, dropout),
        )
        adapt = nn.Identity() if fits else nn.Conv3d(in_channels, 16, 1)
        downs = (whole.down_tr32, whole.down_tr64, whole.down_tr128, whole.down_tr256)
        self.encoder = VNetEncoder([nn.Sequential(adapt, whole.in_tr), *downs])
        ups = (whole.up_tr256, whole.up_tr128, whole.up_tr64, whole.up_tr32)
        self.ups = nn.ModuleList(ups)
        for up in ups:
            up.dropout2.p = dropout  # of the skips; MONAI leaves it at 0.5 in the last two
        self.head = whole.out_tr

    def forward(self, image: Tensor) -> Output:
        return self.decode(image, self.encoder(image))

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output:
        """The image, which is not read, and the encoder's five maps -> Output."""
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


def vnet(shape: NetworkShape, options: dict[str, Any]) -> VNet:
    """V-Net (Milletari et al., 2016), the field's usual backbone on the left atrium."""
    chosen = parse_options(VNetOptions, options, "network.vnet")
    require("baselines", "monai")
    return VNet(shape.in_channels, shape.classes, chosen.dropout)


def unet(shape: NetworkShape, options: dict[str, Any]) -> LogitsNetwork:
    """MONAI's residual U-Net with instance norms (Kerfoot et al., 2018)."""
    chosen = parse_options(UNetOptions, options, "network.unet")
    require("baselines", "monai")
    from monai.networks.nets.unet import UNet

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


def segresnet(shape: NetworkShape, options: dict[str, Any]) -> LogitsNetwork:
    """SegResNet (Myronenko, 2018) without its autoencoder branch."""
    chosen = parse_options(SegResNetOptions, options, "network.segresnet")
    require("baselines", "monai")
    from monai.networks.nets.segresnet import SegResNet

    return LogitsNetwork(
        SegResNet(
            spatial_dims=3,
            init_filters=chosen.width,
            in_channels=shape.in_channels,
            out_channels=shape.classes,
        )
    )
