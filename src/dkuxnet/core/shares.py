"""A batch of patches that several processes share: which are this one's, and what crosses it.

Process r of N has the patches r, r + N, r + 2 N, ... of every batch. What a method computes from
them is a mean over patches, or a function of `batch_sum`s: the mean of such losses over the
processes is the loss of the whole batch, and so are the gradients. The rows of what is drawn at
random are those that one process would have drawn for the same patches, see `draw_own`.

Where nobody took a share (`machine.distributed` does), the batch is one process's, and each
function here gives back what it gets.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dkuxnet.core.errors import UserError


@dataclass(frozen=True)
class Share:
    """Number `index` of `count`. total: of a tensor of each share, the sum, the same in all."""

    index: int = 0
    count: int = 1
    total: Callable[[Tensor], Tensor] = lambda part: part


WHOLE = Share()
_taken = [WHOLE]  # the last one holds


@contextmanager
def taking(share: Share) -> Iterator[None]:
    """This process has that share of every batch in this block."""
    _taken.append(share)
    try:
        yield
    finally:
        _taken.pop()


def own_patches(count: int) -> range:
    """The numbers of this process's patches in a batch of `count`.

    Raises UserError where the processes cannot have equally many.
    """
    share = _taken[-1]
    if count % share.count:
        raise UserError(
            f"a batch of {count} patches cannot be shared by {share.count} processes alike: "
            "choose train.labelled_batch and train.unlabelled_batch as multiples of their number"
        )
    return range(share.index, count, share.count)


def draw_own(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """The rows of this process's `count` patches of what `draw` draws for those of all processes.

    draw: number of rows -> tensor of so many. The patches may be of several batches, one after
    another.
    """
    share = _taken[-1]
    return draw(count * share.count)[share.index :: share.count]


def draw_uniform(
    count: int, *shape: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draws from [-1, 1), (count, *shape), as `draw_own` has them."""
    return draw_own(
        lambda rows: 2 * torch.rand((rows, *shape), generator=generator, device=device) - 1, count
    )


def batch_sum(part: Tensor) -> Tensor:
    """The sum over the whole batch, where `part` is that over this process's patches.

    Several sums cross faster in one tensor. What follows must be the same in every process.
    """
    if _taken[-1].count == 1:
        return part
    whole: Tensor = _BatchSum.apply(part)  # type: ignore[no-untyped-call]  # torch's
    return whole


def batch_mean(part: Tensor) -> Tensor:
    """The mean over the whole batch, where `part` is that over this process's patches."""
    return batch_sum(part) / _taken[-1].count


class _BatchSum(torch.autograd.Function):
    """Each process's loss depends on it, and their mean is what is learnt from.

    The gradient of that mean is what every process has here, and its own part's is `count` times
    its share of it.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.count = _taken[-1].count
        return _taken[-1].total(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        whole: Tensor = grad * ctx.count
        return whole
