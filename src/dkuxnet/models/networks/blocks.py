"""The small parts that the boxes of the figure are built of. Tensors are (B, C, X, Y, Z)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dkuxnet.core.shares import draw_own
from dkuxnet.core.types import NOT_FLAT, Flat, Stride
from dkuxnet.models.networks.cpu import fused, predicting
from dkuxnet.models.networks.cpu.fused import half


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The parameters of a norm or of a convolution with a bias."""
    weight, bias = layer.parameters()
    return weight, bias


def kernel_edges(size: int, flat: Flat) -> tuple[int, int, int]:
    """The edges (X, Y, Z) of a kernel that does not look along flat axes."""
    x, y, z = (1 if each else size for each in flat)
    return x, y, z


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of every voxel, (B, C, X, Y, Z) -> same.

    Independent of batch mates and patch size.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # in channels-last memory this permutation is a view, and the norm reads contiguous channels
        return super().forward(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class InstanceNorm(nn.GroupNorm):
    """Instance norm with gain and bias, (B, C, X, Y, Z) -> same.

    It works at batch 1, and no device needs another's batch. Unlike torch's it accepts a single
    voxel (a patch of 16 voxels at stride 16), which it maps to the bias.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, fused.EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class DepthwiseConv3d(nn.Conv3d):
    """A depthwise convolution of odd kernel that keeps the size, (B, C, X, Y, Z) -> same."""

    def __init__(self, channels: int, kernel: int, flat: Flat = NOT_FLAT):
        edges = kernel_edges(kernel, flat)
        super().__init__(channels, channels, edges, padding=half(edges), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if fused.applies(x):
            return fused.depthwise_conv(x, *weight_and_bias(self))
        return super().forward(x)


class Conv1x1x1(nn.Conv3d):
    """The same linear map at every voxel, (B, C, X, Y, Z) -> (B, C', X, Y, Z)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return fused.conv1x1x1(x, self.weight, self.bias)


class Conv3x3x3(nn.Conv3d):
    """A dense 3x3x3 convolution without bias that keeps the size, (B, C, X, Y, Z) -> same."""

    def __init__(self, in_channels: int, out_channels: int, flat: Flat = NOT_FLAT):
        edges = kernel_edges(3, flat)
        super().__init__(in_channels, out_channels, edges, padding=half(edges), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return fused.conv3x3x3((x,), self.weight) if self.training else super().forward(x)


class StochasticDepth(nn.Module):
    """Drops a residual branch (B, C, X, Y, Z) for whole samples while training.

    rate: probability of a drop. Source: Huang et al., "Deep Networks with Stochastic Depth" (2016).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        drawn = draw_own(lambda rows: torch.rand(rows, 1, 1, 1, 1, device=x.device), len(x))
        return x * (drawn >= self.rate) / (1 - self.rate)


class UXBlock(nn.Module):
    """3D UX-Net's block, (B, C, X, Y, Z) -> same.

    A large depthwise kernel, then a depthwise expansion x4 and back, in a scaled residual.

    Source: Lee et al., "3D UX-Net" (arXiv 2209.15076), Figure 2: the pointwise convolutions have
    groups = channels.
    """

    def __init__(
        self,
        channels: int,
        drop_rate: float = 0.0,
        layer_scale: float = 1e-6,
        flat: Flat = NOT_FLAT,
    ):
        super().__init__()
        self.depthwise = DepthwiseConv3d(channels, 7, flat)
        self.norm = ChannelLayerNorm(channels)
        self.expand = nn.Conv3d(channels, 4 * channels, 1, groups=channels)
        self.project = nn.Conv3d(4 * channels, channels, 1, groups=channels)
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1, 1), layer_scale))
        self.drop = StochasticDepth(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depthwise(x)
        norm, expand, project = map(weight_and_bias, (self.norm, self.expand, self.project))
        if not self.training and predicting.applies(y):
            return predicting.ux_block_tail(x, y, norm, expand, project, self.scale)
        y = self.norm(y)
        if fused.applies(y):
            y = fused.pointwise_expansion(y, expand, project)
        else:
            y = self.project(F.gelu(self.expand(y)))  # (B, C, ...) -> (B, 4C, ...) -> (B, C, ...)
        residual: Tensor = self.drop(self.scale * y)
        return x + residual


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norms in a residual, (B, C, X, Y, Z) -> (B, C', ...).

    Where the width changes, the residual goes through a 1x1x1 convolution and a norm.
    """

    def __init__(self, in_channels: int, out_channels: int, flat: Flat = NOT_FLAT):
        super().__init__()
        self.conv1 = Conv3x3x3(in_channels, out_channels, flat)
        self.norm1 = InstanceNorm(out_channels)
        self.conv2 = Conv3x3x3(out_channels, out_channels, flat)
        self.norm2 = InstanceNorm(out_channels)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Sequential(
                Conv1x1x1(in_channels, out_channels, bias=False), InstanceNorm(out_channels)
            )

    def forward(self, *parts: Tensor) -> Tensor:
        """parts: maps (B, C, X, Y, Z), whose channels are joined."""
        # the parameters are in the order of their layers: a weight, a gain and a bias each
        if fused.applies(parts[0]):
            return fused.residual_block(parts, list(self.parameters()))
        if not self.training and predicting.applies(parts[0]):
            return predicting.residual_block(parts, list(self.parameters()))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        y = self.norm1(self.conv1(x))
        y = F.leaky_relu(y, fused.SLOPE, inplace=True)  # no gradient needs the norm's result
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + self.skip(x), fused.SLOPE, inplace=True)


class UpBlock(nn.Module):
    """Undoes a reduction, concatenates the skip, and mixes both in a residual block.

    stride: of the reduction along (X, Y, Z).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, flat: Flat = NOT_FLAT):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, stride, stride, bias=False)
        self.mix = ResidualBlock(2 * out_channels, out_channels, flat)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, x, y, z) and the skip (B, C', X, Y, Z) -> as the skip."""
        mixed: Tensor = self.mix(self.up(x), skip)
        return mixed
