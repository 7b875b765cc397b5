"""MC-Net+: one encoder, decoders that differ, mutual consistency.

Source: Wu et al., Medical Image Analysis 2022, arXiv 2109.09960.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import cast

from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape, Output
from dkuxnet.models.methods.base import (
    EncoderDecoder,
    Method,
    all_patches,
    mean_output,
    probabilities,
    ramp_up,
)
from dkuxnet.models.methods.losses import total
from dkuxnet.models.methods.options import MethodOptions, Positive, Steps, Weight


@dataclass(frozen=True)
class MCNetPlusOptions(MethodOptions):
    """w: weight of the mutual consistency; the paper's is 1 beside half of the Dice loss.

    temperature: of the sharpening. ramp_up_steps: see `base.ramp_up`.
    """

    w: Weight = 2.0
    temperature: Positive = 0.1
    ramp_up_steps: Steps = 400


class MCNetPlus(Method[MCNetPlusOptions]):
    """L_seg + w_qd L_qd of every decoder + r(t) w L_mutual.

    L_mutual: the squared error of each decoder to every other's sharpened probabilities. The
    decoders' up-sampling differs: transposed convolutions, then trilinear, then nearest
    interpolation, each followed by a convolution. The paper has Dice alone as L_seg; here it is the
    same as for all methods. The mean of the decoders predicts.
    """

    branches = 3
    Options = MCNetPlusOptions

    def __init__(
        self, networks: Sequence[nn.Module], options: MCNetPlusOptions, shape: NetworkShape
    ):
        super().__init__(networks, options, shape)
        if not all(hasattr(network, "decode") for network in networks):
            raise ValueError(
                "this network's decoder cannot share an encoder; dk-uxnet, uxnet and vnet networks "
                "can"
            )
        for network, mode in zip(self.networks[1:], ("trilinear", "nearest"), strict=True):
            network.register_module("encoder", None)
            interpolate_upsampling(network, mode)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        outputs = self(all_patches(batch, "strong"))
        losses = self.supervision(outputs, batch.label)
        soft = [probabilities(output) for output in outputs]
        sharp = [sharpen(prob.detach(), self.options.temperature) for prob in soft]
        pairs = permutations(range(len(outputs)), 2)
        error = total((soft[i] - sharp[j]).square().mean() for i, j in pairs)
        weight = self.options.w * ramp_up(step, self.options.ramp_up_steps)
        return losses | {"mutual": weight * error}

    def forward(self, image: Tensor) -> list[Output]:
        """(B, C, X, Y, Z) -> one output of each decoder."""
        first, *others = (cast(EncoderDecoder, network) for network in self.networks)
        features = first.encoder(image)
        return [network.decode(image, features) for network in (first, *others)]

    def predictor(self) -> nn.Module:
        return DecoderEnsemble(self)


class DecoderEnsemble(nn.Module):
    """The mean of the decoders' probabilities and their disagreement: see `base.mean_output`."""

    def __init__(self, method: MCNetPlus):
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> Output:
        return mean_output(self.method(image))


def sharpen(prob: Tensor, temperature: float) -> Tensor:
    """p^(1/T) over its sum, (B, K, X, Y, Z) -> same: near a hard label for a small T."""
    # powers themselves would underflow to 0 / 0
    return (prob.clamp_min(1e-30).log() / temperature).softmax(dim=1)


def interpolate_upsampling(network: nn.Module, mode: str) -> None:
    """Replace each transposed convolution by interpolation and a 3x3x3 convolution."""
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ConvTranspose3d):
                convolution = nn.Conv3d(
                    child.in_channels, child.out_channels, 3, padding=1, bias=child.bias is not None
                )
                upsample = nn.Upsample(scale_factor=tuple(map(float, child.stride)), mode=mode)
                setattr(module, name, nn.Sequential(upsample, convolution))
