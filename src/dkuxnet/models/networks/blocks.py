"""The small parts that the boxes of the figure are built of. Tensors are (B, C, X, Y, Z)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dkuxnet.models.networks.cpu import fused, predicting


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of every voxel, (B, C, X, Y, Z) -> same.

    Independent of batch mates and patch size.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # in channels-last memory this permutation is a view, and the norm reads contiguous channels
        x = F.layer_norm(
            x.permute(0, 2, 3, 4, 1), self.weight.shape, self.weight, self.bias, eps=1e-6
        )
        return x.permute(0, 4, 1, 2, 3)


class InstanceNorm(nn.Module):
    """Instance norm with gain and bias, (B, C, X, Y, Z) -> same.

    Holds at batch 1, and no device needs another's batch.

    Unlike `nn.InstanceNorm3d` it accepts a single voxel (a 16-voxel patch at stride 16), which it
    maps to the bias.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, x.shape[1], self.weight, self.bias, fused.EPSILON)


class DepthwiseConv3d(nn.Conv3d):
    """A depthwise convolution of odd kernel that keeps the size, (B, C, X, Y, Z) -> same."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return (
            fused.DepthwiseConv.apply(x, self.weight, self.bias)
            if fused.applies(x)
            else super().forward(x)
        )


class Conv1x1x1(nn.Conv3d):
    """Each voxel's channels, mapped alike: (B, C, X, Y, Z) -> (B, C', X, Y, Z)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return fused.pointwise(x, self.weight, self.bias)


class Conv3x3x3(nn.Conv3d):
    """A dense 3x3x3 convolution without bias that keeps the size, (B, C, X, Y, Z) -> same."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return fused.conv((x,), self.weight) if self.training else super().forward(x)


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole samples with probability `rate` while training (Huang et
    al., 2016).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, 1, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class UXBlock(nn.Module):
    """3D UX-Net's block: large depthwise kernel, then a depthwise expansion x4 and back, in a
    scaled residual.

    Source: Lee et al., "3D UX-Net" (arXiv 2209.15076), Figure 2: the pointwise convolutions have
    groups = channels.
    """

    def __init__(self, channels: int, drop_rate: float = 0.0, layer_scale: float = 1e-6):
        super().__init__()
        self.depthwise = DepthwiseConv3d(channels, 7)
        self.norm = ChannelLayerNorm(channels)
        self.expand = nn.Conv3d(channels, 4 * channels, 1, groups=channels)
        self.project = nn.Conv3d(4 * channels, channels, 1, groups=channels)
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1, 1), layer_scale))
        self.drop = StochasticDepth(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        if not self.training and predicting.applies(y):
            pairs = ((part.weight, part.bias) for part in (self.norm, self.expand, self.project))
            return predicting.ux_tail(x, y, *pairs, self.scale)
        y = self.norm(y)
        if fused.applies(y):
            y = fused.PointwiseExpansion.apply(
                y, self.expand.weight, self.expand.bias, self.project.weight, self.project.bias
            )
        else:
            y = self.project(F.gelu(self.expand(y)))  # (B, C, ...) -> (B, 4C, ...) -> (B, C, ...)
        return x + self.drop(self.scale * y)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norms and a residual, which is projected where the
    width changes.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = Conv3x3x3(in_channels, out_channels)
        self.norm1 = InstanceNorm(out_channels)
        self.conv2 = Conv3x3x3(out_channels, out_channels)
        self.norm2 = InstanceNorm(out_channels)
        self.skip = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Sequential(
                Conv1x1x1(in_channels, out_channels, bias=False), InstanceNorm(out_channels)
            )

    def forward(self, *parts: Tensor) -> Tensor:
        """parts: maps (B, C, X, Y, Z), whose channels are joined."""
        third = [] if isinstance(self.skip, nn.Identity) else self.skip
        pairs = [(self.conv1, self.norm1), (self.conv2, self.norm2), *([third] if third else [])]
        parameters = [p for conv, norm in pairs for p in (conv.weight, norm.weight, norm.bias)]
        if fused.applies(parts[0]):
            return fused.ResidualBlock.apply(len(parts), *parts, *parameters)
        if not self.training and predicting.applies(parts[0]):
            return predicting.residual_block(parts, *parameters)
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        y = F.leaky_relu(
            self.norm1(self.conv1(x)), fused.SLOPE, inplace=True
        )  # no gradient needs what the norm gave
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + self.skip(x), fused.SLOPE, inplace=True)


class UpBlock(nn.Module):
    """Doubles the resolution, concatenates the skip, and mixes both in a residual block."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2, bias=False)
        self.mix = ResidualBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.mix(self.up(x), skip)  # (B, out, 2x, 2y, 2z) each -> the same
