"""Parts of the network that train fast and small on a CPU: forward and backward written out.

On a CPU a large feature map costs by how often it is read, written and kept. Composed of torch's
operations, a residual block keeps five maps for its backward pass and the pointwise half of a UX
block nine; here they keep four and one, and compute the others again: sums and products, never a
3x3x3 or 7x7x7 convolution.

Tensors are (B, C, X, Y, Z) float32 in channels-last memory; V is XYZ. None of these functions can
be differentiated twice.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from dkuxnet.models.networks.cpu import winograd

SLOPE = 0.01  # of the leaky ReLU
EPSILON = 1e-5  # of the instance norm
CHUNK = 4096  # voxels


def applies(x: Tensor) -> bool:
    """Whether the functions here may stand in for torch's operations."""
    return (
        x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    )


def half(edges: Sequence[int]) -> tuple[int, int, int]:
    """How far a kernel of odd edges (X, Y, Z) reaches: the padding that keeps the size."""
    x, y, z = (edge // 2 for edge in edges)
    return x, y, z


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depthwise convolution of odd kernel that keeps the size, (B, C, X, Y, Z) -> same.

    weight: (C, 1, k, k, k), or 1 along flat axes. bias: (C,).
    """
    return _apply(_DepthwiseConv, x, weight, bias)


def pointwise_expansion(x: Tensor, expand: Sequence[Tensor], project: Sequence[Tensor]) -> Tensor:
    """Each channel expanded to E, GELU, and projected back to one, (B, C, X, Y, Z) -> same.

    expand: weight (E C, 1, 1, 1, 1) and bias (E C,). project: weight (C, E, 1, 1, 1) and bias (C,).
    """
    return _apply(_PointwiseExpansion, x, *expand, *project)


def residual_block(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Two 3x3x3 convolutions with instance norms and leaky ReLUs, and a residual.

    inputs: maps whose channels are joined; the joined map is only made where the convolution cannot
    do without. parameters: weight, gain and bias of both convolutions and their norms, and of the
    1x1x1 convolution of the residual if it has one. -> (B, C', X, Y, Z).
    """
    return _apply(_ResidualBlock, len(inputs), *inputs, *parameters)


def _apply(function: type[Function], *inputs: Any) -> Tensor:
    result: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]  # torch's has no types
    return result


def conv1x1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1x1 convolution by a product of matrices, (B, C, X, Y, Z) -> (B, C', X, Y, Z).

    torch's own copies channels-last memory into the other layout. weight: (C', C, 1, 1, 1).
    """
    return F.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


class _DepthwiseConv(Function):
    """See `depthwise_conv`.

    Both gradients of a depthwise convolution are themselves depthwise convolutions; computed as
    such they are much faster than torch's own backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, bias, padding=half(weight.shape[2:]), groups=weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        batch, channels, *size = x.shape
        reach = half(weight.shape[2:])
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


class _PointwiseExpansion(Function):
    """See `pointwise_expansion`. The E maps are made one by one in both passes; none is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        expand: Tensor,
        expand_bias: Tensor,
        project: Tensor,
        project_bias: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, expand, expand_bias, project)
        rows = x.permute(0, 2, 3, 4, 1)  # (B, X, Y, Z, C)
        result = project_bias.expand_as(rows).clone(memory_format=torch.contiguous_format)
        for weight, bias, back in _columns(expand, expand_bias, project):
            result.addcmul_(F.gelu(torch.addcmul(bias, rows, weight)), back)
        return result.permute(0, 4, 1, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, expand, expand_bias, project = ctx.saved_tensors
        rows, grad = x.permute(0, 2, 3, 4, 1), grad.permute(0, 2, 3, 4, 1).contiguous()
        grad_x = torch.zeros_like(rows)
        sums = []
        for weight, bias, back in _columns(expand, expand_bias, project):
            hidden = torch.addcmul(bias, rows, weight)
            grad_back = _sum_rows(F.gelu(hidden).mul_(grad))
            grad_hidden = torch.ops.aten.gelu_backward(grad * back, hidden)
            grad_x.addcmul_(grad_hidden, weight)
            sums.append((_sum_rows(grad_hidden * rows), _sum_rows(grad_hidden), grad_back))
        # (C, E) each
        weights, biases, backs = (torch.stack(parts, dim=1) for parts in zip(*sums, strict=True))
        return (
            grad_x.permute(0, 4, 1, 2, 3),
            weights.reshape(expand.shape),
            biases.reshape(expand_bias.shape),
            backs.reshape(project.shape),
            _sum_rows(grad),
        )


def _columns(expand: Tensor, expand_bias: Tensor, project: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Weight, bias and weight back of each of the E maps, (C,) each."""
    channels = len(project)
    tables = (expand.view(channels, -1), expand_bias.view(channels, -1), project.view(channels, -1))
    return zip(*(table.T.contiguous() for table in tables), strict=True)


def _sum_rows(rows: Tensor) -> Tensor:
    """(..., C) -> (C,), by a product of matrices: torch's sum is slow over leading axes."""
    flat = rows.reshape(-1, rows.shape[-1])
    return flat.new_ones(1, len(flat)).mm(flat).squeeze(0)


class _ResidualBlock(Function):
    """See `residual_block`. number: how many of the tensors are inputs."""

    @staticmethod
    def forward(ctx: Any, number: int, *inputs_and_parameters: Tensor) -> Tensor:
        inputs, parameters = inputs_and_parameters[:number], inputs_and_parameters[number:]
        first, second, *third = by_layer(parameters)
        ctx.split = [x.shape[1] for x in inputs]
        if number > 1 and not winograd.is_faster(inputs[0], first[0]):
            inputs = (torch.cat(inputs, dim=1),)
        raw1 = conv3x3x3(inputs, first[0])
        y, *stats1 = _instance_norm(raw1, *first[1:])
        raw2 = conv3x3x3((F.leaky_relu_(y, SLOPE),), second[0])
        del y
        result, *stats2 = _instance_norm(raw2, *second[1:])
        stats3: list[Tensor] = []
        residual = inputs[0]
        if third:
            residual, *stats3 = _instance_norm(joined_conv1x1x1(inputs, third[0][0]), *third[0][1:])
        result = F.leaky_relu_(result.add_(residual), SLOPE)
        ctx.save_for_backward(raw1, raw2, result, *inputs, *stats1, *stats2, *stats3, *parameters)
        ctx.numbers = [3, len(inputs), 2, 2, len(stats3), len(parameters)]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        (raw1, raw2, result), inputs, stats1, stats2, stats3, parameters = (
            list(islice(saved, n)) for n in ctx.numbers
        )
        first, second, *third = by_layer(parameters)
        grad = _leaky_relu_backward(grad, result, torch.empty_like(result))
        grad2, *norm2 = _instance_norm_backward(grad, raw2, stats2, second[1])
        y = F.leaky_relu_(_instance_norm_again(raw1, stats1, *first[1:]), SLOPE)
        (grad_y,), weight2 = conv3x3x3_backward(grad2, (y,), second[0], True)
        _leaky_relu_backward(grad_y, y, grad_y)
        del y
        grad1, *norm1 = _instance_norm_backward(grad_y, raw1, stats1, first[1])
        del grad_y
        if third:  # raw2 holds the gradient of the second convolution, which is used up: overwrite
            raw3 = joined_conv1x1x1(inputs, third[0][0], out=raw2)
            grad, *norm3 = _instance_norm_backward(grad, raw3, stats3, third[0][1])
        wanted = any(ctx.needs_input_grad[1 : 1 + len(ctx.split)])
        grads, weight1 = conv3x3x3_backward(grad1, inputs, first[0], wanted)
        found = [weight1, *norm1, weight2, *norm2]
        if third:
            found += [_joined_conv1x1x1_backward(grad, inputs, third[0][0], grads), *norm3]
        elif wanted:
            grads[0].add_(grad)
        if not wanted:
            return None, *[None] * len(ctx.split), *found
        if len(grads) < len(ctx.split):
            grads = list(torch.split(grads[0], ctx.split, dim=1))
        return None, *grads, *found


def by_layer(parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Weight, gain and bias of each convolution and its norm, of all of them in a row."""
    return zip(*[iter(parameters)] * 3, strict=True)


def joined_conv1x1x1(inputs: Sequence[Tensor], weight: Tensor, out: Tensor | None = None) -> Tensor:
    """`conv1x1x1` of the inputs' channels joined, written over `out` where that is given."""
    batch, _, *size = inputs[0].shape
    if out is None:
        out = inputs[0].new_empty(batch, *size, len(weight)).permute(0, 4, 1, 2, 3)
    rows = by_voxel(out)
    for number, (x, part) in enumerate(zip(inputs, _split_by_input(weight, inputs), strict=True)):
        rows.baddbmm_(by_voxel(x), part.flatten(1).T.expand(batch, -1, -1), beta=float(number > 0))
    return torch.unflatten(rows, 1, size).permute(0, 4, 1, 2, 3)


def _joined_conv1x1x1_backward(
    grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, onto: Sequence[Tensor]
) -> Tensor:
    """The gradient by the weight; the gradients by the inputs are added to `onto`, if any."""
    rows = by_voxel(grad)
    for each, part in zip(onto, _split_by_input(weight, inputs), strict=False):
        by_voxel(each).baddbmm_(rows, part.flatten(1).expand(len(grad), -1, -1))
    return torch.cat(
        [torch.einsum("bvd,bvc->dc", rows, by_voxel(x)) for x in inputs], dim=1
    ).view_as(weight)


def _split_by_input(weight: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The part of a convolution's weight that belongs to each of its inputs."""
    return torch.split(weight, [x.shape[1] for x in inputs], dim=1)


def conv3x3x3(inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """A dense 3x3x3 convolution without bias that keeps the size, (B, C, X, Y, Z) -> (B, C', ...).

    inputs: one map, or several to join where `winograd.is_faster`.

    For small maps of a single patch torch takes a slow algorithm (see `_is_slow_in_torch`); beside
    a patch of zeros it takes the usual one. A process that shares a small batch gets such single
    patches, and so does a teacher of one.
    """
    if winograd.is_faster(inputs[0], weight):
        return winograd.winograd_conv3x3x3(inputs, weight)
    (x,), reach = inputs, half(weight.shape[2:])
    if _is_slow_in_torch(x):
        return F.conv3d(torch.cat([x, torch.zeros_like(x)]), weight, padding=reach)[:1]
    return F.conv3d(x, weight, padding=reach)


def _is_slow_in_torch(x: Tensor) -> bool:
    """torch's own rule for when it leaves oneDNN."""
    return (
        x.device.type == "cpu"
        and len(x) == 1
        and x[..., 0].numel() <= 20480
        and x[0, 0].numel() > 128
    )


def conv3x3x3_backward(
    grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, with_inputs: bool
) -> tuple[list[Tensor], Tensor]:
    """Gradients of `conv3x3x3` by its inputs, where wanted, and by its weight."""
    if winograd.is_faster(inputs[0], weight):
        grads = [
            winograd.winograd_conv3x3x3((grad,), part.flip(2, 3, 4).transpose(0, 1))
            for part in _split_by_input(weight, inputs)
            if with_inputs
        ]
        return grads, torch.cat([winograd.winograd_weight_grad(x, grad) for x in inputs], dim=1)
    (x,) = inputs
    grad, beside = (
        torch.cat([part, torch.zeros_like(part)]) if _is_slow_in_torch(x) else part
        for part in (grad, x)
    )
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        beside,
        weight,
        None,
        [1] * 3,
        half(weight.shape[2:]),
        [1] * 3,
        False,
        [0] * 3,
        1,
        [with_inputs, True, False],
    )
    return [grad_x[: len(x)]] if with_inputs else [], grad_weight


def _leaky_relu_backward(grad: Tensor, result: Tensor, out: Tensor) -> Tensor:
    """The gradient by the input of a leaky ReLU that was done in place, written to `out`."""
    torch.ops.aten.leaky_relu_backward.grad_input(grad, result, SLOPE, True, grad_input=out)
    return out


def _instance_norm(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normed map, the means and the reciprocal deviations, (B C,) each."""
    batch, channels, *size = x.shape
    voxels = size[0] * size[1] * size[2]
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm(
        x, gain, bias, batch, channels, voxels, channels, EPSILON
    )
    return result


def _instance_norm_again(x: Tensor, stats: list[Tensor], gain: Tensor, bias: Tensor) -> Tensor:
    """The normed map of `_instance_norm` from the statistics that it gave, in one pass."""
    mean, scale = (part.view(len(x), 1, -1) for part in stats)
    scale = scale * gain
    return torch.addcmul(bias - mean * scale, by_voxel(x), scale).permute(0, 2, 1).view_as(x)


def _instance_norm_backward(
    grad: Tensor, x: Tensor, stats: list[Tensor], gain: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `_instance_norm` by its input, gain and bias.

    The first is written over `x`, which autograd notices if `x` is needed again.
    """
    mean, scale = (part.view(len(x), 1, -1) for part in stats)  # (B, 1, C)
    rows, grads = by_voxel(x), by_voxel(grad)
    voxels, slope = rows.shape[1], scale * gain
    ones = x.new_ones(len(x), 1, voxels)
    sums = ones.bmm(grads)
    chunks = zip(torch.split(rows, CHUNK, 1), torch.split(grads, CHUNK, 1), strict=True)
    products = reduce(  # in parts that stay in the processor's cache
        add, (ones[:, :, : part.shape[1]].bmm(part * other) for part, other in chunks)
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
