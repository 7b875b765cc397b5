"""Labels that do not say all: a voxel may be of one class of several, or of any.

The classes that a voxel may be of are merged there, and their probabilities summed, so that no loss
knows of it: the marginal loss of Shi et al. ("Marginal loss and exclusion loss for partially
supervised multi-organ segmentation", Medical Image Analysis 2021); Fang and Yan (IEEE TMI 2020).
"""

import torch
from torch import Tensor

from dkuxnet.core.types import NetworkShape

NEVER = -1e9  # a logit of probability 0; infinity would make NaN of 0 times it


def merge_classes(
    logits: Tensor, label: Tensor, shape: NetworkShape, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, label and mask in which every voxel has one class.

    Where the label names several (`NetworkShape.merged`), the first of these gets the sum of their
    probabilities, and the others 0. logits: (B, K, X, Y, Z); label: (B, X, Y, Z) int64; mask: see
    `said`.
    """
    if not shape.merged:
        return logits, label, mask
    logits = logits.float()
    table = torch.zeros(shape.classes + len(shape.merged), shape.classes, dtype=torch.bool)
    table[: shape.classes] = torch.eye(shape.classes, dtype=torch.bool)
    for value, classes in enumerate(shape.merged, shape.classes):
        table[value, list(classes)] = True
    # (B, K, X, Y, Z): whether a voxel may be of a class
    possible = table.to(label.device)[label].movedim(-1, 1)
    first = table.to(torch.uint8).argmax(dim=1).to(label.device)[label]
    summed = logits.masked_fill(~possible, NEVER).logsumexp(dim=1, keepdim=True)
    merged = logits.masked_fill(possible, NEVER).scatter(1, first.unsqueeze(1), summed)
    return merged, first, said(label, shape, mask)


def said(label: Tensor, shape: NetworkShape, mask: Tensor | None = None) -> Tensor | None:
    """(B, X, Y, Z): the voxels that count of those whose label says anything; None for all.

    mask: (B, X, Y, Z), those that count.
    """
    for value, classes in enumerate(shape.merged, shape.classes):
        if len(classes) == shape.classes:
            said = (label != value).float()
            mask = said if mask is None else mask * said
    return mask
