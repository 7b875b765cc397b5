"""What the network's parts do on a CPU where nothing learns: torch's results in fewer passes over
large maps.

A window of 112 x 112 x 80 is a million voxels: a map of 8 channels has 32 MB, which is read and
written at a few GB/s. What can be done part by part in the processor's cache is.

Tensors are (B, C, X, Y, Z) float32 in channels-last memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dkuxnet.models.networks.cpu.fused import EPSILON, SLOPE, by_voxel, project

CHUNK = 2**16  # numbers: 256 kB, which stay in the cache
NARROW = 8  # channels that fill half of a processor's vector
STEEP = 80.0  # exp of more comes close to what float32 can hold


def applies(x: Tensor) -> bool:
    """Whether the parts here may stand in for torch's operations: not under autocast, nor where a
    graph is recorded, which would hold the sizes of one window.
    """
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not recorded
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def conv(parts: Sequence[Tensor], weight: Tensor, activated: bool = False) -> Tensor:
    """A dense 3x3x3 convolution of the maps, joined, that keeps their size; of their leaky ReLU
    where that is asked for, which may be written over them.

    oneDNN is asked by name: of one window torch would compute small maps, and those of one channel,
    by another algorithm in twice to five times the time.
    """
    if len(weight) <= NARROW and parts[0].shape[-1] % 2 == 0:
        return _conv_of_pairs(parts, weight, activated)
    x = parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)
    x = F.leaky_relu_(x, SLOPE) if activated else x
    return torch.ops.aten.mkldnn_convolution(x, weight, None, [1] * 3, [1] * 3, [1] * 3, 1)


def _conv_of_pairs(parts: Sequence[Tensor], weight: Tensor, activated: bool) -> Tensor:
    """The same for few channels, from pairs of voxels to pairs of voxels: two neighbours along z
    with C channels lie in memory as one voxel with 2 C. A pair needs its four neighbours, two
    pairs that begin one voxel before it, so that a 3x3x2 kernel does, a quarter of which is
    zeros; full vectors make up for more than that: 16 to 8 channels take 0.6 of the time.
    """
    batch, _, *size = parts[0].shape
    wide, depth = weight.shape[1], size[2]
    x = parts[0].new_empty(batch, *size[:2], depth + 2, wide)
    x[..., 0, :] = x[..., -1, :] = 0
    place = 0
    for part in parts:
        rows, target = part.permute(0, 2, 3, 4, 1), x[..., 1:-1, place : place + part.shape[1]]
        torch.ops.aten.leaky_relu.out(rows, SLOPE, out=target) if activated else target.copy_(rows)
        place += part.shape[1]
    pairs = x.view(batch, *size[:2], depth // 2 + 1, 2 * wide).permute(0, 4, 1, 2, 3)
    result = torch.ops.aten.mkldnn_convolution(
        pairs, _kernel_of_pairs(weight), None, [1, 1, 0], [1] * 3, [1] * 3, 1
    )
    return result.permute(0, 2, 3, 4, 1).reshape(batch, *size, len(weight)).permute(0, 4, 1, 2, 3)


def _kernel_of_pairs(weight: Tensor) -> Tensor:
    """(C', C, 3, 3, 3) -> (2 C', 2 C, 3, 3, 2)."""
    out, wide = weight.shape[:2]
    taps = weight.new_zeros(2, out, wide, 3, 3, 4)
    taps[0, ..., :3], taps[1, ..., 1:] = weight, weight
    kernel = taps.unflatten(-1, (2, 2)).permute(0, 1, 6, 2, 3, 4, 5)  # (2, C', 2, C, 3, 3, 2)
    return kernel.reshape(2 * out, 2 * wide, 3, 3, 2).contiguous(
        memory_format=torch.channels_last_3d
    )


def residual_block(parts: Sequence[Tensor], *parameters: Tensor) -> Tensor:
    """`fused.ResidualBlock` of the maps, joined, without what a backward pass needs."""
    first, second, *third = zip(*[iter(parameters)] * 3, strict=True)
    y = norm_(conv(parts, first[0]), *first[1:])
    result = norm_(conv([y], second[0], activated=True), *second[1:])
    if not third:
        result.add_(parts[0])
    elif len(parts) == 1 and parts[0].shape[1] == 1:
        _add_normed_copies(result, parts[0], *third[0])
    else:
        result.add_(norm_(project(parts, third[0][0]), *third[0][1:]))
    return F.leaky_relu_(result, SLOPE)


def norm_(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Instance norm, written over x, which is returned.

    Every number of a row along z counts as a channel of its own, whose moments are added up at the
    end: vectors are full, half of the time of torch's norm, and a thousandth of its rounding.
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


def _add_normed_copies(
    result: Tensor, x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor
) -> None:
    """Adds the instance norm of the 1x1x1 convolution of a single channel: copies of it by a
    factor, whose norms follow from its own mean and variance.
    """
    variance, mean = torch.var_mean(x.flatten(1), dim=1, correction=0)
    factor = weight.flatten()
    slope = gain * factor * torch.rsqrt(variance[:, None] * factor.square() + EPSILON)  # (B, C)
    rows = by_voxel(result)
    for row, single, its, m in zip(rows, by_voxel(x), slope, mean, strict=True):
        row.addmm_(single.reshape(-1, 1), its[None]).add_(bias - m * its)


def ux_tail(
    x: Tensor,
    y: Tensor,
    norm: Sequence[Tensor],
    expand: Sequence[Tensor],
    back: Sequence[Tensor],
    scale: Tensor,
) -> Tensor:
    """x + scale * back(GELU(expand(norm(y)))) of a UX block, some rows along z at a time; each
    pair is (weight, bias).
    """
    channels, depth = x.shape[1], x.shape[4]
    scale = scale.flatten()
    weight, bias, turned = (table.view(channels, -1).T for table in (*expand, back[0]))  # (E, C)
    tables = (weight, bias, turned * scale, (back[1] * scale)[None])
    weight, bias, turned, offset = (
        table.repeat(1, depth) for table in tables
    )  # as long as a row, so that vectors are full
    result = torch.empty_like(x, memory_format=torch.channels_last_3d)
    split = max(CHUNK // (depth * channels), 1)
    rows = (
        part.permute(0, 2, 3, 4, 1).reshape(-1, depth * channels).split(split)
        for part in (x, y, result)
    )
    for start, middle, end in zip(*rows, strict=True):
        middle = F.layer_norm(
            middle.unflatten(1, (depth, channels)), (channels,), *norm, eps=1e-6
        ).flatten(1)
        torch.add(start, offset, out=end)
        for each in zip(weight, bias, turned, strict=True):
            end.addcmul_(F.gelu(torch.addcmul(each[1], middle, each[0])), each[2])
    return result


def assigned(
    features: Tensor, masks: Tensor, weight: Tensor, bias: Tensor, table: Tensor
) -> Tensor:
    """Voxel features (B, C', X, Y, Z) -> sums of what queries stand for, weighted by their
    softmax: (B, T, X, Y, Z).

    masks: (B, N, C), what the voxels' projections P (weight (C, C'), bias (C,)) are compared with
    by cosine times a gain, the length of a mask. table: (B, N, T). The maps of N queries, and of C
    channels, are never whole: see `kmax.MaskLogits`, whose sums these are.
    """
    batch, _, *size = features.shape
    gram, turn, square = weight.T @ weight, 2 * (bias @ weight), bias.square().sum()
    ones = weight.new_ones(weight.shape[1], 1)  # sums by a product of matrices: a row is short
    safe = float(masks.norm(dim=2).max()) < STEEP
    table = (
        torch.cat([table, torch.ones_like(table[..., :1])], dim=2).transpose(1, 2).contiguous()
    )  # (B, T + 1, N)
    voxels = by_voxel(features)
    result = features.new_empty(batch, table.shape[1], voxels.shape[1])
    split = max(CHUNK // masks.shape[1], 1)
    for rows, planes, mask, its in zip(voxels, result, masks, table, strict=True):
        keys, offset = (mask @ weight).T.contiguous(), mask @ bias
        for row, plane in zip(rows.split(split), planes.split(split, dim=1), strict=True):
            lengths = (
                (row * torch.addmm(turn, row, gram)).mm(ones).add_(square).clamp_min_(0).add_(1e-6)
            )
            logits = torch.addmm(offset, row, keys).mul_(lengths.rsqrt_())
            shares = (
                logits.exp_() if safe else logits.softmax(dim=1)
            )  # the last row of the table sums them
            torch.mm(its, shares.T, out=plane)
            plane[:-1] /= plane[-1:]
    return result[:, :-1].unflatten(2, size)
