"""The small parts that the boxes of the figure are built of. Tensors are (B, C, X, Y, Z)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of every voxel, (B, C, X, Y, Z) -> same. Independent of batch mates and patch size."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # in channels-last memory this permutation is a view, and the norm reads contiguous channels
        x = F.layer_norm(x.permute(0, 2, 3, 4, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 4, 1, 2, 3)


class InstanceNorm(nn.Module):
    """Instance norm with gain and bias, (B, C, X, Y, Z) -> same. Holds at batch 1, and no device needs another's batch.

    Unlike `nn.InstanceNorm3d` it accepts a single voxel (a 16-voxel patch at stride 16), which it maps to the bias.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, x.shape[1], self.weight, self.bias, 1e-5)


class DepthwiseConv3d(nn.Conv3d):
    """A depthwise convolution of odd kernel that keeps the size, (B, C, X, Y, Z) -> same, whose training is fast on a CPU.

    torch's own backward of a 7x7x7 depthwise kernel takes 25 times as long as its forward there. Both gradients are themselves
    depthwise convolutions, and computed as such they take twice the forward: a fifth of the tiny network's step less.
    """

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            return _DepthwiseOnCPU.apply(x, self.weight, self.bias)
        return super().forward(x)


class _DepthwiseOnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        batch, channels, *size = x.shape
        reach = weight.shape[-1] // 2
        flipped = weight.flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
        grad_x = F.conv3d(grad, flipped, padding=reach, groups=channels)
        # each sample's channel, correlated with its gradient as if that were the kernel
        grad_weight = F.conv3d(x.reshape(1, batch * channels, *size), grad.reshape(batch * channels, 1, *size),
                               padding=reach, groups=batch * channels)
        return grad_x, grad_weight.view(batch, *weight.shape).sum(dim=0), grad.sum(dim=(0, 2, 3, 4))


class Conv3x3x3(nn.Conv3d):
    """A dense 3x3x3 convolution without bias that keeps the size, (B, C, X, Y, Z) -> same, whose training is fast on a CPU.

    Of a single patch torch computes small maps (its rule is below) by another algorithm, forwards and backwards, which takes
    up to five times as long as the usual one. Beside a patch of zeros it takes the usual one. A process that shares a small
    batch gets such single patches, and so does a teacher of one unlabelled patch.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and len(x) == 1 and x[..., 0].numel() <= 20480 and x[0, 0].numel() > 128:
            return super().forward(torch.cat([x, torch.zeros_like(x)]))[:1]
        return super().forward(x)


class Projection(nn.Conv3d):
    """A 1x1x1 convolution without bias, (B, C, X, Y, Z) -> (B, C', X, Y, Z).

    In inference and in channels-last memory it is a product of matrices: on a CPU torch's convolution takes three times as
    long at full resolution, and answers in another layout, which is turned round afterwards.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.is_contiguous(memory_format=torch.channels_last_3d)
        if x.device.type != "cpu" or not torch.is_inference_mode_enabled() or not channels_last:
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 4, 1), self.weight.flatten(1)).permute(0, 4, 1, 2, 3)


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole samples with probability `rate` while training (Huang et al., 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, 1, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class UXBlock(nn.Module):
    """3D UX-Net's block: large depthwise kernel, then a depthwise expansion x4 and back, in a scaled residual.

    Source: Lee et al., "3D UX-Net" (arXiv 2209.15076), Figure 2: the pointwise convolutions have groups = channels.
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
        y = self.norm(self.depthwise(x))
        y = self.project(F.gelu(self.expand(y)))  # (B, C, ...) -> (B, 4C, ...) -> (B, C, ...)
        return x + self.drop(self.scale * y)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norms and a residual, which is projected where the width changes."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = Conv3x3x3(in_channels, out_channels)
        self.norm1 = InstanceNorm(out_channels)
        self.conv2 = Conv3x3x3(out_channels, out_channels)
        self.norm2 = InstanceNorm(out_channels)
        self.skip = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Sequential(Projection(in_channels, out_channels), InstanceNorm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01, inplace=True)  # no gradient needs what the norm gave
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + self.skip(x), 0.01, inplace=True)


class UpBlock(nn.Module):
    """Doubles the resolution, concatenates the skip, and mixes both in a residual block."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2, bias=False)
        self.mix = ResidualBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.mix(torch.cat([self.up(x), skip], dim=1))  # (B, 2 out, 2x, 2y, 2z) -> (B, out, ...)
