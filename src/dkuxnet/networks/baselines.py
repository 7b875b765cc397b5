"""Networks of others to compare with, taken from MONAI and wrapped so that they return `Output`.

MONAI takes seconds to import: the builders import it when they are called.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from dkuxnet.lookup import parse_options
from dkuxnet.types import NetworkShape, Output


class LogitsNetwork(nn.Module):
    """Wraps a network whose forward returns bare logits (B, K, X, Y, Z)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Output:
        return Output(logits=self.network(image))


@dataclass(frozen=True)
class VNetOptions:
    """dropout: probability in the deep stages, down and up."""

    dropout: float = 0.5


@dataclass(frozen=True)
class UNetOptions:
    """channels: width of each level, one more than there are downsamplings. residual_units: convolutions a level."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    residual_units: int = 2


@dataclass(frozen=True)
class SegResNetOptions:
    """width: channels of the first level, doubled at each of three downsamplings."""

    width: int = 16


def vnet(shape: NetworkShape, options: dict) -> nn.Module:
    """V-Net (Milletari et al., 2016), the field's usual backbone on the left atrium. MONAI's V-Net tiles its input to 16
    channels and so needs a divisor of 16: other numbers of channels go through a 1x1x1 convolution first."""
    from monai.networks.nets import VNet

    chosen = parse_options(VNetOptions, options, "network.vnet")
    adapt = 16 % shape.in_channels != 0
    network = VNet(
        in_channels=16 if adapt else shape.in_channels,
        out_channels=shape.classes,
        dropout_prob_down=chosen.dropout,
        dropout_prob_up=(chosen.dropout, chosen.dropout),
    )
    return LogitsNetwork(nn.Sequential(nn.Conv3d(shape.in_channels, 16, 1), network) if adapt else network)


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
            spatial_dims=3, init_filters=chosen.width, in_channels=shape.in_channels, out_channels=shape.classes
        )
    )
