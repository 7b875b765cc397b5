"""Inference on a CPU: the results of torch's operations in fewer passes over large maps.

A window of 112 x 112 x 80 is a million voxels: a map of 8 channels has 32 MB, which is read and
written at a few GB/s. What can be done chunk by chunk in the processor's cache is done there.

Tensors are (B, C, X, Y, Z) float32 in channels-last memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dkuxnet.models.networks.cpu.fused import (
    EPSILON,
    SLOPE,
    by_layer,
    by_voxel,
    half,
    joined_conv1x1x1,
)

CHUNK = 2**16  # numbers: 256 kB, which stay in the cache
NARROW = 8  # channels that fill half of a processor's vector
LARGEST_EXPONENT = 80.0  # exp of more comes close to what float32 can hold


def applies(x: Tensor) -> bool:
    """Whether the functions here may stand in for torch's operations.

    Not under autocast, nor where a graph is recorded, which would hold the sizes of one window.
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch's
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and onednn
        and not torch.is_grad_enabled()
        and not traced
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def onednn_conv3x3x3(parts: Sequence[Tensor], weight: Tensor, activate: bool = False) -> Tensor:
    """A dense 3x3x3 convolution without bias of the joined maps, -> (B, C', X, Y, Z).

    activate: convolve the maps' leaky ReLU, which may be written over them.

    oneDNN is called by name: for small maps of one window, and for those of one channel, torch
    would take a slower algorithm.
    """
    cubic = weight.shape[2:] == (3, 3, 3)
    if cubic and len(weight) <= NARROW and parts[0].shape[-1] % 2 == 0:
        return _conv_voxel_pairs(parts, weight, activate)
    x = parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)
    x = F.leaky_relu_(x, SLOPE) if activate else x
    result: Tensor = torch.ops.aten.mkldnn_convolution(
        x, weight, None, half(weight.shape[2:]), [1] * 3, [1] * 3, 1
    )
    return result


def _conv_voxel_pairs(parts: Sequence[Tensor], weight: Tensor, activate: bool) -> Tensor:
    """The same for few channels, from pairs of voxels to pairs of voxels.

    Two neighbours along z with C channels lie in memory as one voxel with 2 C. The results of a
    pair depend on four voxels along z, which are two pairs that begin one voxel before it: a 3x3x2
    kernel does. A quarter of it is zeros, for which full vectors more than make up.
    """
    batch, _, *size = parts[0].shape
    wide, depth = weight.shape[1], size[2]
    x = parts[0].new_empty(batch, *size[:2], depth + 2, wide)
    x[..., 0, :] = x[..., -1, :] = 0
    place = 0
    for part in parts:
        rows, target = part.permute(0, 2, 3, 4, 1), x[..., 1:-1, place : place + part.shape[1]]
        if activate:
            torch.ops.aten.leaky_relu.out(rows, SLOPE, out=target)
        else:
            target.copy_(rows)
        place += part.shape[1]
    pairs = x.view(batch, *size[:2], depth // 2 + 1, 2 * wide).permute(0, 4, 1, 2, 3)
    result: Tensor = torch.ops.aten.mkldnn_convolution(
        pairs, _pair_kernel(weight), None, [1, 1, 0], [1] * 3, [1] * 3, 1
    )
    return result.permute(0, 2, 3, 4, 1).reshape(batch, *size, len(weight)).permute(0, 4, 1, 2, 3)


def _pair_kernel(weight: Tensor) -> Tensor:
    """The kernel for pairs of voxels, (C', C, 3, 3, 3) -> (2 C', 2 C, 3, 3, 2)."""
    out, wide = weight.shape[:2]
    taps = weight.new_zeros(2, out, wide, 3, 3, 4)
    taps[0, ..., :3], taps[1, ..., 1:] = weight, weight
    # (2, C', 2, C, 3, 3, 2)
    kernel = torch.unflatten(taps, -1, (2, 2)).permute(0, 1, 6, 2, 3, 4, 5)
    return kernel.reshape(2 * out, 2 * wide, 3, 3, 2).contiguous(
        memory_format=torch.channels_last_3d
    )


def residual_block(parts: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """`fused.residual_block` without what a backward pass needs."""
    first, second, *third = by_layer(parameters)
    y = instance_norm_(onednn_conv3x3x3(parts, first[0]), *first[1:])
    result = instance_norm_(onednn_conv3x3x3([y], second[0], activate=True), *second[1:])
    if not third:
        result.add_(parts[0])
    elif len(parts) == 1 and parts[0].shape[1] == 1:
        _add_single_channel_skip(result, parts[0], *third[0])
    else:
        result.add_(instance_norm_(joined_conv1x1x1(parts, third[0][0]), *third[0][1:]))
    return F.leaky_relu_(result, SLOPE)


def instance_norm_(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Instance norm of (B, C, X, Y, Z), written over x, which is returned.

    Every number of a row along z counts as a channel of its own, and the moments of these are
    combined at the end: vectors are full, and rounding errors far smaller than those of torch's
    norm.
    """
    batch, channels, _, _, depth = x.shape
    x = x.contiguous(memory_format=torch.channels_last_3d)
    for rows in x.permute(0, 2, 3, 4, 1).view(batch, -1, depth * channels):
        mean, variance = (
            part.view(depth, channels)
            for part in torch.batch_norm_update_stats(rows, None, None, 0.0)
        )
        whole = mean.mean(dim=0)
        slope = gain * (variance + (mean - whole).square()).mean(dim=0).add(EPSILON).rsqrt()
        torch.addcmul((bias - whole * slope).repeat(depth), rows, slope.repeat(depth), out=rows)
    return x


def _add_single_channel_skip(
    result: Tensor, x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor
) -> None:
    """Add the instance norm of the 1x1x1 convolution of a single channel to `result`.

    The convolution gives multiples of x (B, 1, X, Y, Z), whose norms follow from the mean and the
    variance of x.
    """
    variance, mean = torch.var_mean(x.flatten(1), dim=1, correction=0)
    factor = weight.flatten()
    slope = gain * factor * torch.rsqrt(variance[:, None] * factor.square() + EPSILON)  # (B, C)
    rows = by_voxel(result)
    for row, single, factors, m in zip(rows, by_voxel(x), slope, mean, strict=True):
        row.addmm_(single.reshape(-1, 1), factors[None]).add_(bias - m * factors)


def ux_block_tail(
    x: Tensor,
    y: Tensor,
    norm: Sequence[Tensor],
    expand: Sequence[Tensor],
    project: Sequence[Tensor],
    scale: Tensor,
) -> Tensor:
    """x + scale * project(GELU(expand(norm(y)))) of a UX block, some rows along z at a time.

    x, y: (B, C, X, Y, Z). norm, expand, project: weight and bias of each. scale: (1, C, 1, 1, 1).
    """
    channels, depth = x.shape[1], x.shape[4]
    scale = scale.flatten()
    weight, bias, back = (table.view(channels, -1).T for table in (*expand, project[0]))  # (E, C)
    tables = (weight, bias, back * scale, (project[1] * scale)[None])
    # as long as a row, so that vectors are full
    weight, bias, back, offset = (table.repeat(1, depth) for table in tables)
    result = torch.empty_like(x, memory_format=torch.channels_last_3d)
    length = max(CHUNK // (depth * channels), 1)
    rows = (
        torch.split(part.permute(0, 2, 3, 4, 1).reshape(-1, depth * channels), length)
        for part in (x, y, result)
    )
    for start, middle, end in zip(*rows, strict=True):
        voxels = torch.unflatten(middle, 1, (depth, channels))
        normed = F.layer_norm(voxels, (channels,), norm[0], norm[1], eps=1e-6).flatten(1)
        torch.add(start, offset, out=end)
        for one_weight, one_bias, one_back in zip(weight, bias, back, strict=True):
            end.addcmul_(F.gelu(torch.addcmul(one_bias, normed, one_weight)), one_back)
    return result


def assigned_sums(
    features: Tensor, masks: Tensor, weight: Tensor, bias: Tensor, table: Tensor
) -> Tensor:
    """Sums over the queries' rows of `table`, weighted by each voxel's assignment.

    features: (B, C', X, Y, Z). masks: mask embeddings (B, N, C), as long as the gain. weight
    (C, C'), bias (C,): of the voxels' projection. table: (B, N, T). -> (B, T, X, Y, Z).

    The assignment is the softmax of `kmax.MaskLogits`; the maps of N queries, and of C channels,
    are never whole in memory.
    """
    batch, _, *size = features.shape
    gram, linear, square = weight.T @ weight, 2 * (bias @ weight), bias.square().sum()
    ones = weight.new_ones(weight.shape[1], 1)  # sums by a product of matrices: a row is short
    safe = float(masks.norm(dim=2).max()) < LARGEST_EXPONENT
    # a last row of ones sums the exponentials of the softmax
    table = torch.cat([table, torch.ones_like(table[..., :1])], dim=2)
    table = table.transpose(1, 2).contiguous()  # (B, T + 1, N)
    voxels = by_voxel(features)
    result = features.new_empty(batch, table.shape[1], voxels.shape[1])
    length = max(CHUNK // masks.shape[1], 1)
    for all_rows, all_out, mask, own_table in zip(voxels, result, masks, table, strict=True):
        keys, offset = (mask @ weight).T.contiguous(), mask @ bias
        chunks = zip(torch.split(all_rows, length), torch.split(all_out, length, 1), strict=True)
        for rows, out in chunks:
            squares = (rows * torch.addmm(linear, rows, gram)).mm(ones).add_(square)
            logits = torch.addmm(offset, rows, keys)
            logits.mul_(squares.clamp_min_(0).add_(1e-6).rsqrt_())
            shares = logits.exp_() if safe else logits.softmax(dim=1)
            torch.mm(own_table, shares.T, out=out)
            out[:-1] /= out[-1:]
    return torch.unflatten(result[:, :-1], 2, size)
