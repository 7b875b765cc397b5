"""Parts of the network whose training is fast and small on a CPU: forward and backward written
out, float32.

On a CPU a large map costs by how often it is read, written and kept. Composed of torch's
operations, a residual block keeps five maps for its backward pass and the pointwise half of a UX
block nine; here they keep four and one, and compute the others again: sums and products, never a
3x3x3 or 7x7x7 convolution.

Tensors are (B, C, X, Y, Z) in channels-last memory. None of these can be differentiated twice.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dkuxnet.models.networks.cpu import winograd

SLOPE = 0.01  # of the leaky ReLU
EPSILON = 1e-5  # of the instance norm
CHUNK = 4096  # voxels


def applies(x: Tensor) -> bool:
    """Whether the parts here may stand in for torch's operations."""
    return (
        x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    )


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1x1 convolution as a product of matrices: torch's own takes five times as long in
    channels-last memory, which it copies into the other layout. weight: (C', C, 1, 1, 1).
    """
    return F.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


class DepthwiseConv(torch.autograd.Function):
    """(x, weight, bias) -> a depthwise convolution of odd kernel that keeps the size.

    torch's own backward of a 7x7x7 depthwise kernel takes 25 times as long as its forward. Both
    gradients are themselves depthwise convolutions, and computed as such they take twice the
    forward: a fifth of the tiny network's step less.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        batch, channels, *size = x.shape
        reach = weight.shape[-1] // 2
        flipped = weight.flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
        grad_x = F.conv3d(grad, flipped, padding=reach, groups=channels)
        # each sample's channel, correlated with its gradient as if that were the kernel
        grad_weight = F.conv3d(
            x.reshape(1, batch * channels, *size),
            grad.reshape(batch * channels, 1, *size),
            padding=reach,
            groups=batch * channels,
        )
        return grad_x, grad_weight.view(batch, *weight.shape).sum(dim=0), grad.sum(dim=(0, 2, 3, 4))


class PointwiseExpansion(torch.autograd.Function):
    """(x, weight (E C, 1, ...), bias (E C,), weight (C, E, ...), bias (C,)) -> each channel
    expanded to E, GELU, back to one.

    The E maps are made one after another, in both passes: none is kept.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor, project_bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, expand, expand_bias, project)
        rows = x.permute(0, 2, 3, 4, 1)  # (B, X, Y, Z, C)
        result = project_bias.expand_as(rows).clone(memory_format=torch.contiguous_format)
        for weight, bias, back in _columns(expand, expand_bias, project):
            result.addcmul_(F.gelu(torch.addcmul(bias, rows, weight)), back)
        return result.permute(0, 4, 1, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        x, expand, expand_bias, project = ctx.saved_tensors
        rows, grad = x.permute(0, 2, 3, 4, 1), grad.permute(0, 2, 3, 4, 1).contiguous()
        grad_x = torch.zeros_like(rows)
        sums = []
        for weight, bias, back in _columns(expand, expand_bias, project):
            hidden = torch.addcmul(bias, rows, weight)
            grad_back = total(F.gelu(hidden).mul_(grad))
            grad_hidden = torch.ops.aten.gelu_backward(grad * back, hidden)
            grad_x.addcmul_(grad_hidden, weight)
            sums.append((total(grad_hidden * rows), total(grad_hidden), grad_back))
        weights, biases, backs = (
            torch.stack(parts, dim=1) for parts in zip(*sums, strict=True)
        )  # (C, E) each
        return (
            grad_x.permute(0, 4, 1, 2, 3),
            weights.reshape(expand.shape),
            biases.reshape(expand_bias.shape),
            backs.reshape(project.shape),
            total(grad),
        )


def _columns(expand: Tensor, expand_bias: Tensor, project: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Weight, bias and weight back of each of the E maps, (C,) each."""
    channels = len(project)
    tables = (expand.view(channels, -1), expand_bias.view(channels, -1), project.view(channels, -1))
    return zip(*(table.T.contiguous() for table in tables), strict=True)


def total(rows: Tensor) -> Tensor:
    """(..., C) -> (C,): as a product of matrices, several times as fast as torch's sum over other
    than the last axis.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    return flat.new_ones(1, len(flat)).mm(flat).squeeze(0)


class ResidualBlock(torch.autograd.Function):
    """(inputs, weight1, gain1, bias1, weight2, gain2, bias2[, weight3, gain3, bias3]) -> two 3x3x3
    convolutions with instance norms and leaky ReLUs, and a residual, through a 1x1x1
    convolution and a norm where there is a third.

    Of several inputs the block is that of their channels joined; that map is not made where the
    convolution can do without.
    """

    @staticmethod
    def forward(ctx, number: int, *inputs_and_parameters: Tensor) -> Tensor:
        inputs, parameters = inputs_and_parameters[:number], inputs_and_parameters[number:]
        first, second, *third = zip(*[iter(parameters)] * 3, strict=True)
        ctx.split = [x.shape[1] for x in inputs]
        if number > 1 and not winograd.pays(inputs[0], first[0]):
            inputs = (torch.cat(inputs, dim=1),)
        raw1 = conv(inputs, first[0])
        y, *stats1 = normed(raw1, *first[1:])
        raw2 = conv((F.leaky_relu_(y, SLOPE),), second[0])
        del y
        result, *stats2 = normed(raw2, *second[1:])
        stats3: list[Tensor] = []
        if third:
            residual, *stats3 = normed(project(inputs, third[0][0]), *third[0][1:])
        result = F.leaky_relu_(result.add_(residual if third else inputs[0]), SLOPE)
        ctx.save_for_backward(raw1, raw2, result, *inputs, *stats1, *stats2, *stats3, *parameters)
        ctx.numbers = [3, len(inputs), 2, 2, len(stats3), len(parameters)]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        (raw1, raw2, result), inputs, stats1, stats2, stats3, parameters = (
            list(islice(saved, n)) for n in ctx.numbers
        )
        first, second, *third = zip(*[iter(parameters)] * 3, strict=True)
        grad = torch.ops.aten.leaky_relu_backward.grad_input(
            grad, result, SLOPE, True, grad_input=torch.empty_like(result)
        )
        grad2, *norm2 = norm_backward(grad, raw2, stats2, second[1])
        y = F.leaky_relu_(normed_again(raw1, stats1, *first[1:]), SLOPE)
        (grad_y,), weight2 = conv_backward(grad2, (y,), second[0], True)
        torch.ops.aten.leaky_relu_backward.grad_input(grad_y, y, SLOPE, True, grad_input=grad_y)
        del y
        grad1, *norm1 = norm_backward(grad_y, raw1, stats1, first[1])
        del grad_y
        if third:  # in the memory of what the second convolution gave, which nothing needs any more
            grad, *norm3 = norm_backward(
                grad, project(inputs, third[0][0], out=raw2), stats3, third[0][1]
            )
        wanted = any(ctx.needs_input_grad[1 : 1 + len(ctx.split)])
        grads, weight1 = conv_backward(grad1, inputs, first[0], wanted)
        found = [weight1, *norm1, weight2, *norm2]
        if third:
            found += [project_backward(grad, inputs, third[0][0], grads), *norm3]
        elif wanted:
            grads[0].add_(grad)
        if not wanted:
            grads = [None] * len(ctx.split)
        elif len(grads) < len(ctx.split):
            grads = grads[0].split(ctx.split, dim=1)
        return None, *grads, *found


def project(inputs: Sequence[Tensor], weight: Tensor, out: Tensor | None = None) -> Tensor:
    """`pointwise` of the inputs' channels joined, written over `out` where that is given."""
    batch, _, *size = inputs[0].shape
    result = by_voxel(
        inputs[0].new_empty(batch, *size, len(weight)).permute(0, 4, 1, 2, 3)
        if out is None
        else out
    )
    for number, (x, part) in enumerate(zip(inputs, split(weight, inputs), strict=True)):
        result.baddbmm_(
            by_voxel(x), part.flatten(1).T.expand(batch, -1, -1), beta=float(number > 0)
        )
    return result.unflatten(1, size).permute(0, 4, 1, 2, 3)


def project_backward(
    grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, onto: Sequence[Tensor]
) -> Tensor:
    """The gradient of `project` by its weight; that by the inputs is added to `onto`, if to
    anything.
    """
    rows = by_voxel(grad)
    for each, part in zip(onto, split(weight, inputs), strict=False):
        by_voxel(each).baddbmm_(rows, part.flatten(1).expand(len(grad), -1, -1))
    return torch.cat(
        [torch.einsum("bvd,bvc->dc", rows, by_voxel(x)) for x in inputs], dim=1
    ).view_as(weight)


def split(weight: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The part of a convolution's weight that belongs to each of its inputs."""
    return weight.split([x.shape[1] for x in inputs], dim=1)


def conv(inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """A dense 3x3x3 convolution that keeps the size, of one input or, where `winograd.pays`, of
    several joined.

    Of a single patch torch computes small maps (its rule is below) by another algorithm, forwards
    and backwards, which takes up to five times as long as the usual one; beside a patch of zeros it
    takes the usual one. A process that shares a small batch gets such single patches, and so does a
    teacher of one.
    """
    if winograd.pays(inputs[0], weight):
        return winograd.conv(inputs, weight)
    (x,) = inputs
    if is_slow(x):
        return F.conv3d(torch.cat([x, torch.zeros_like(x)]), weight, padding=1)[:1]
    return F.conv3d(x, weight, padding=1)


def is_slow(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and len(x) == 1
        and x[..., 0].numel() <= 20480
        and x[0, 0].numel() > 128
    )


def conv_backward(
    grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, with_inputs: bool
) -> tuple[list[Tensor], Tensor]:
    """Gradients of `conv` by its inputs, where wanted, and by its weight."""
    if winograd.pays(inputs[0], weight):
        grads = [
            winograd.conv((grad,), part.flip(2, 3, 4).transpose(0, 1))
            for part in split(weight, inputs)
            if with_inputs
        ]
        return grads, torch.cat([winograd.weight_gradient(x, grad) for x in inputs], dim=1)
    (x,) = inputs
    grad, beside = (
        torch.cat([part, torch.zeros_like(part)]) if is_slow(x) else part for part in (grad, x)
    )
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        beside,
        weight,
        None,
        [1] * 3,
        [1] * 3,
        [1] * 3,
        False,
        [0] * 3,
        1,
        [with_inputs, True, False],
    )
    return [grad_x[: len(x)]] if with_inputs else [], grad_weight


def normed(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Instance norm: the result, the means and the reciprocal deviations, (B C,) each."""
    batch, channels, *size = x.shape
    voxels = size[0] * size[1] * size[2]
    return torch.ops.aten.native_group_norm(
        x, gain, bias, batch, channels, voxels, channels, EPSILON
    )


def normed_again(x: Tensor, stats: list[Tensor], gain: Tensor, bias: Tensor) -> Tensor:
    """The result of `normed`, in one pass."""
    mean, scale = (part.view(len(x), 1, -1) for part in stats)
    scale = scale * gain
    return torch.addcmul(bias - mean * scale, by_voxel(x), scale).permute(0, 2, 1).view_as(x)


def norm_backward(
    grad: Tensor, x: Tensor, stats: list[Tensor], gain: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `normed` by its input, gain and bias, in a third of the time of torch's own.
    The first is written over `x`, which autograd notices where somebody wants to use it again.
    """
    mean, scale = (part.view(len(x), 1, -1) for part in stats)  # (B, 1, C)
    rows, grads = by_voxel(x), by_voxel(grad)
    voxels, slope = rows.shape[1], scale * gain
    ones = x.new_ones(len(x), 1, voxels)
    sums = ones.bmm(grads)
    products = sum(
        ones[:, :, : part.shape[1]].bmm(part * other)  # in parts that stay in the processor's cache
        for part, other in zip(rows.split(CHUNK, 1), grads.split(CHUNK, 1), strict=True)
    )
    products = (products - mean * sums) * scale  # of the gradient and the normed map
    turn = -slope * scale * products / voxels
    result = torch.addcmul(-slope * sums / voxels - turn * mean, rows, turn, out=rows).addcmul_(
        grads, slope
    )
    return result.permute(0, 2, 1).view_as(x), products.sum(dim=(0, 1)), sums.sum(dim=(0, 1))


def by_voxel(x: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (B, V, C), a view of channels-last memory."""
    return x.permute(0, 2, 3, 4, 1).flatten(1, 3)
