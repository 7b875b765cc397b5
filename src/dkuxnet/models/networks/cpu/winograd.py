"""Dense 3x3x3 convolutions with half of the multiplications, and their gradients: Winograd's F(4,
3) along the first axis.

Four slices of a result come of six slices of the input, by 4 x 3 convolutions of a slice with a
slice of the kernel. Instead, six sums of the input's slices are each convolved with one sum of the
kernel's slices, and four sums of these six are the result (Lavin and Gray, arXiv 1509.09308, for
one axis of three). The sums are products with small matrices, which take a tenth of the time, slab
by slab in memory that stays in the cache and is used again. On large maps this takes 0.5 to 0.8 of
the time of torch's own 3x3x3 convolution; rounding errors are 2 to 7 times as large.

Tensors are (B, C, X, Y, Z) in channels-last memory, X a multiple of 4.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

SLAB = 4 << 20  # numbers in the six sums of a slab: 16 MiB
# At the points 0, 1, -1, 2, -2 and infinity: sums of six slices of the input, of three of the
# kernel, of six products.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


@cache
def matrix(rows: tuple, dtype: torch.dtype) -> Tensor:
    """One of the tables above, made once."""
    return torch.tensor(rows, dtype=dtype)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of `x` should be computed here: in full precision, no gradient
    recorded, and the map large enough. Of a slice of 20480 numbers or fewer torch computes a
    convolution by a slow algorithm where the slice is alone.
    """
    usual = (
        x.device.type == "cpu" and x.dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu")
    )
    large = x[:, 0].numel() >= 4096 and x[0, 0, 0].numel() * min(weight.shape[:2]) > 20480
    return usual and large and x.shape[2] % 4 == 0 and not torch.is_grad_enabled()


def conv(inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """F.conv3d(x, weight, padding=1), x being the inputs joined by their channels, of which each
    has as many.
    """
    batch, channels, length, *plane = inputs[0].shape
    width, voxels = len(weight), plane[0] * plane[1]
    kernels = [
        kernel.contiguous(memory_format=torch.channels_last)
        for part in weight.split(channels, dim=1)
        for kernel in torch.einsum("kx,oixyz->koiyz", matrix(KERNEL, weight.dtype), part)
    ]
    gather = matrix(OUTPUT, weight.dtype).repeat(1, len(inputs))
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


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of `conv` by its weight, (C', C, 3, 3, 3), where `grad` is that by its result."""
    channels, width, plane = x.shape[1], grad.shape[1], x.shape[3:]
    kernel = x.new_empty(width, channels, 3, 3)  # torch asks for its shape alone
    fours = _rows(grad).view(-1, 4, plane[0] * plane[1] * width)
    total, memory = x.new_zeros(6, *kernel.shape), None
    for first, sums in _slabs(x):
        tiles = sums.shape[1]
        if memory is None:
            memory = x.new_empty(6, tiles, fours.shape[2])
        spread = memory[:, :tiles]
        for into, four in zip(spread.unbind(1), fours[first:], strict=False):
            torch.mm(matrix(OUTPUT, x.dtype).T, four, out=into)
        for part, other, onto in zip(sums, spread, total, strict=True):
            onto += _plane_weight_gradient(
                part.view(tiles, *plane, channels).permute(0, 3, 1, 2),
                other.view(tiles, *plane, width).permute(0, 3, 1, 2),
                kernel,
            )
    return torch.einsum("kx,koiyz->oixyz", matrix(KERNEL, x.dtype), total)


def _plane_weight_gradient(x: Tensor, grad: Tensor, kernel: Tensor) -> Tensor:
    return torch.ops.aten.convolution_backward(
        grad, x, kernel, None, [1] * 2, [1] * 2, [1] * 2, False, [0] * 2, 1, [False, True, False]
    )[1]


def _slabs(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Tiles of four slices, in slabs of as many as fit in the cache: the number of a slab's first
    tile and its sums of the input, (6, tiles, Y Z C). The memory of a slab is that of the next
    one.
    """
    rows = _rows(x).flatten(2)  # (B, X, Y Z C)
    batch, length, numbers = rows.shape
    tiles = batch * length // 4
    slabs = -(-tiles * 6 * numbers // SLAB)
    size = -(-tiles // slabs)
    memory = x.new_empty(6, size, numbers)
    mix = matrix(INPUT, x.dtype)
    for first in range(0, tiles, size):
        sums = memory[:, : min(size, tiles - first)]
        for tile, into in enumerate(sums.unbind(1), first):
            sample, start = divmod(4 * tile, length)
            low, high = max(start - 1, 0), min(start + 5, length)  # beyond are zeros
            torch.mm(mix[:, low - start + 1 : high - start + 1], rows[sample, low:high], out=into)
        yield first, sums


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1).contiguous()
