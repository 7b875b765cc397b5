"""MC-Net+ (Wu et al., Medical Image Analysis 2022, arXiv 2109.09960): one encoder, decoders that
differ, mutual consistency.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape, Output
from dkuxnet.models.methods.base import (
    Method,
    Positive,
    Steps,
    Weight,
    all_patches,
    mean_output,
    probabilities,
    ramp_up,
)


class MCNetPlus(Method):
    """L_seg + w_qd L_qd of every decoder + r(t) w (squared error of each decoder to every other's
    sharpened probabilities).

    The decoders' upsampling differs: transposed convolutions, then trilinear, then nearest
    interpolation, each followed by a convolution. The paper has Dice alone as L_seg; here it is the
    recipe's. The mean of the decoders predicts.
    """

    branches = 3

    @dataclass(frozen=True)
    class Options:
        """w: weight of the mutual consistency. temperature: of the sharpening. ramp_up_steps: see
        `base.ramp_up`. w_qd: weight of the query loss.
        """

        w: Weight = 1.0
        temperature: Positive = 0.1
        ramp_up_steps: Steps = 400
        w_qd: Weight = 0.1

    def __init__(self, networks: Sequence[nn.Module], options: Options, shape: NetworkShape):
        super().__init__(networks, options, shape)
        if not all(hasattr(network, "decode") for network in networks):
            raise ValueError(
                "this network's decoder cannot share an encoder; dk-uxnet, uxnet and vnet networks "
                "can"
            )
        for network, mode in zip(self.networks[1:], ("trilinear", "nearest"), strict=True):
            network.encoder = None
            interpolate_upsampling(network, mode)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        outputs = self(all_patches(batch, "strong"))
        losses = self.supervision(outputs, batch.labelled.label, self.options.w_qd)
        soft = [probabilities(output) for output in outputs]
        sharp = [sharpen(prob.detach(), self.options.temperature) for prob in soft]
        errors = [
            (soft[i] - sharp[j]).square().mean() for i, j in permutations(range(len(outputs)), 2)
        ]
        return losses | {
            "mutual": self.options.w * ramp_up(step, self.options.ramp_up_steps) * sum(errors)
        }

    def forward(self, image: Tensor) -> list[Output]:
        """One output a decoder."""
        features = self.networks[0].encoder(image)
        return [network.decode(image, features) for network in self.networks]

    def predictor(self) -> nn.Module:
        return MeanOfDecoders(self)


class MeanOfDecoders(nn.Module):
    """The mean of the decoders' probabilities, with their disagreement: see `base.mean_output`."""

    def __init__(self, method: MCNetPlus):
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> Output:
        return mean_output(self.method(image))


def sharpen(prob: Tensor, temperature: float) -> Tensor:
    """p^(1/T) over its sum, (B, K, X, Y, Z): near a hard decision for a small T."""
    return (prob.clamp_min(1e-30).log() / temperature).softmax(
        dim=1
    )  # powers themselves would underflow to 0 / 0


def interpolate_upsampling(network: nn.Module, mode: str) -> None:
    """Put interpolation and a 3x3x3 convolution in the place of every transposed convolution that
    doubles a map.
    """
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ConvTranspose3d):
                convolution = nn.Conv3d(
                    child.in_channels, child.out_channels, 3, padding=1, bias=child.bias is not None
                )
                setattr(
                    module, name, nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), convolution)
                )
