"""Boxes for methods that mix patches: copy-paste and CutMix.

Random places come from torch's own generator.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dkuxnet.core.shares import draw_own


def random_boxes(
    count: int, size: Sequence[int], edge_share: float, device: torch.device
) -> Tensor:
    """One box in each patch, `edge_share` of every edge, anywhere inside: (count, 1, X, Y, Z) bool.

    size: X, Y, Z of a patch.
    """
    boxes = torch.zeros(count, 1, *size, dtype=torch.bool, device=device)
    edges = [max(1, round(edge_share * n)) for n in size]
    free = [n - edge + 1 for n, edge in zip(size, edges, strict=True)]

    def draw(rows: int) -> Tensor:
        return torch.tensor([[int(torch.randint(n, ())) for n in free] for _ in range(rows)])

    for box, starts in zip(boxes[:, 0], draw_own(draw, count).tolist(), strict=True):
        x, y, z = (slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
        box[x, y, z] = True
    return boxes


def paste(inside: Tensor, outside: Tensor, boxes: Tensor) -> Tensor:
    """`inside` where the box is, `outside` elsewhere.

    Both are images (B, C, X, Y, Z) or labels (B, X, Y, Z); boxes: (B, 1, X, Y, Z) bool.
    """
    return torch.where(boxes if inside.ndim == boxes.ndim else boxes[:, 0], inside, outside)


def before(patches: Tensor) -> Tensor:
    """For each patch the one before it in the batch, for the first the last; of any shape.

    Where N processes share the batch, the one N before it: a process has no other's patches.
    """
    return patches.roll(1, 0)


def cutmix(patches: Tensor, boxes: Tensor) -> Tensor:
    """Each patch with the box of the one `before` it; shapes as for `paste`."""
    return paste(before(patches), patches, boxes)
