"""Dense 3x3x3 convolutions and their gradients by Winograd's F(4, 3) along the first axis.

Four slices of the result depend on six slices of the input, and take 4 x 3 convolutions of a slice
with a slice of the kernel. Winograd's algorithm takes six: the input transform makes six sums of
the input's slices, the kernel transform six sums of the kernel's; each pair is convolved, and the
output transform makes four sums of the six results (Lavin and Gray, arXiv 1509.09308, there for two
axes). The transforms are products with small matrices, done slab by slab in memory that stays in
the cache and is used again. Rounding errors are 2 to 7 times those of the direct convolution.

Tensors are (B, C, X, Y, Z) in channels-last memory, X a multiple of 4. A tile is four slices of the
result; a slab is as many tiles as fit in the cache.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

SLAB = 4 << 20  # numbers in the six sums of a slab: 16 MiB
# the transforms for the interpolation points 0, 1, -1, 2, -2 and infinity
INPUT_TRANSFORM = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT_TRANSFORM = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


@cache
def _matrix(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    """One of the tables above, made once."""
    return torch.tensor(rows, dtype=dtype)


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of `x` (B, C, X, Y, Z) with `weight` (C', C, 3, 3, 3) belongs here.

    It does on large maps in full precision where no gradient is recorded. The slices' own
    convolutions would be slow where a single one has 20480 numbers or fewer: see
    `fused.conv3x3x3`.
    """
    usual = (
        x.device.type == "cpu" and x.dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu")
    )
    large = x[:, 0].numel() >= 4096 and x[0, 0, 0].numel() * min(weight.shape[:2]) > 20480
    cubic = weight.shape[2:] == (3, 3, 3)
    return cubic and usual and large and x.shape[2] % 4 == 0 and not torch.is_grad_enabled()


def winograd_conv3x3x3(inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """`F.conv3d(torch.cat(inputs, dim=1), weight, padding=1)` -> (B, C', X, Y, Z).

    inputs: of the same number of channels each. weight: (C', C, 3, 3, 3).
    """
    batch, channels, length, *plane = inputs[0].shape
    width, voxels = len(weight), plane[0] * plane[1]
    kernels = [
        kernel.contiguous(memory_format=torch.channels_last)
        for part in torch.split(weight, channels, dim=1)
        for kernel in torch.einsum("kx,oixyz->koiyz", _matrix(KERNEL_TRANSFORM, weight.dtype), part)
    ]
    gather = _matrix(OUTPUT_TRANSFORM, weight.dtype).repeat(1, len(inputs))
    result = inputs[0].new_empty(batch, length, *plane, width)
    fours = result.view(-1, 4, voxels * width)
    memory = None
    for slabs in zip(*map(_slabs, inputs), strict=True):
        sums = [
            part.view(-1, *plane, channels).permute(0, 3, 1, 2)
            for _, slab in slabs
            for part in slab
        ]
        if memory is None:
            memory = result.new_empty(len(sums[0]), len(sums), voxels * width)
        products = memory[: len(sums[0])]
        for part, kernel, into in zip(sums, kernels, products.unbind(1), strict=True):
            into.copy_(F.conv2d(part, kernel, padding=1).permute(0, 2, 3, 1).flatten(1))
        for product, four in zip(products, fours[slabs[0][0] :], strict=False):
            torch.mm(gather, product, out=four)
    return result.permute(0, 4, 1, 2, 3)


def winograd_weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a convolution by its weight, (C', C, 3, 3, 3).

    x: (B, C, X, Y, Z), its input. grad: (B, C', X, Y, Z), the gradient by its result.
    """
    channels, width, plane = x.shape[1], grad.shape[1], x.shape[3:]
    kernel = x.new_empty(width, channels, 3, 3)
    fours = _rows(grad).view(-1, 4, plane[0] * plane[1] * width)
    total, memory = x.new_zeros(6, *kernel.shape), None
    for first, sums in _slabs(x):
        tiles = sums.shape[1]
        if memory is None:
            memory = x.new_empty(6, tiles, fours.shape[2])
        spread = memory[:, :tiles]
        for into, four in zip(spread.unbind(1), fours[first:], strict=False):
            torch.mm(_matrix(OUTPUT_TRANSFORM, x.dtype).T, four, out=into)
        for part, other, onto in zip(sums, spread, total, strict=True):
            onto += _slice_weight_grad(
                part.view(tiles, *plane, channels).permute(0, 3, 1, 2),
                other.view(tiles, *plane, width).permute(0, 3, 1, 2),
                kernel,
            )
    return torch.einsum("kx,koiyz->oixyz", _matrix(KERNEL_TRANSFORM, x.dtype), total)


def _slice_weight_grad(x: Tensor, grad: Tensor, kernel: Tensor) -> Tensor:
    """The gradient of a 3x3 convolution of slices by its kernel, whose shape alone is read."""
    weight_grad: Tensor
    _, weight_grad, _ = torch.ops.aten.convolution_backward(
        grad, x, kernel, None, [1] * 2, [1] * 2, [1] * 2, False, [0] * 2, 1, [False, True, False]
    )
    return weight_grad


def _slabs(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each slab's first tile and its transformed input, (6, tiles, Y Z C).

    The memory of a slab is used again for the next one.
    """
    rows = _rows(x).flatten(2)  # (B, X, Y Z C)
    batch, length, numbers = rows.shape
    tiles = batch * length // 4
    slabs = -(-tiles * 6 * numbers // SLAB)
    size = -(-tiles // slabs)
    memory = x.new_empty(6, size, numbers)
    transform = _matrix(INPUT_TRANSFORM, x.dtype)
    for first in range(0, tiles, size):
        sums = memory[:, : min(size, tiles - first)]
        for tile, into in enumerate(sums.unbind(1), first):
            sample, start = divmod(4 * tile, length)
            low, high = max(start - 1, 0), min(start + 5, length)  # beyond are zeros
            columns = transform[:, low - start + 1 : high - start + 1]
            torch.mm(columns, rows[sample, low:high], out=into)
        yield first, sums


def _rows(x: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (B, X, Y, Z, C)."""
    return x.permute(0, 2, 3, 4, 1).contiguous()
