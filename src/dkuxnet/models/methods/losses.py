"""The terms of the losses, in three sections: segmentation, query, consistency.

Every loss is a mean, so that no weight depends on the size of a patch, and is computed in float32.
What is no mean over patches alike is a function of `batch_sum`s, see `core.shares`.
L_seg, L_qd, L_segc and L_qdc are the terms of Wu, Li, Zhang (ISBI 2024, arXiv 2311.12364).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from dkuxnet.core.shares import batch_mean, batch_sum
from dkuxnet.core.types import Group, Output

# added inside every logarithm of a probability: bounds a voxel's loss and, unlike a clamp, keeps
# its gradient
FLOOR = 1e-6


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape, of one at least."""
    return reduce(add, terms)


# --- segmentation -------------------------------------------------------------------------------


def soft_dice_loss(prob: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - soft Dice, mean over the foreground classes.

    Intersections and sizes are summed over the whole batch, as nnU-Net's batch Dice does, so that a
    patch without the organ does not count as a failure. A class that no patch of the batch has adds
    a constant and, where a thousandth of a voxel or more is predicted, next to no gradient: that it
    is not there is for the cross-entropy to teach.

    prob, target: (B, K, X, Y, Z), target one-hot or soft. mask: (B, X, Y, Z), voxels that count.
    """
    prob, target = prob[:, 1:].float(), target[:, 1:].float()
    if mask is not None:
        prob, target = prob * mask.unsqueeze(1), target * mask.unsqueeze(1)
    dims = (0, 2, 3, 4)
    sums = [(prob * target).sum(dims), prob.sum(dims) + target.sum(dims)]
    overlap, sizes = batch_sum(torch.stack(sums)).unbind()
    return 1 - ((2 * overlap + 1e-5) / (sizes + 1e-5)).mean()


@dataclass(frozen=True)
class LossForm:
    """See `LossSettings`. weights: of the classes, background first; without any all are 1."""

    weights: tuple[float, ...] = ()
    focal: float = 0.0
    tversky: float = 0.5


PLAIN = LossForm()


def segmentation_loss(
    logits: Tensor, label: Tensor, mask: Tensor | None = None, form: LossForm = PLAIN
) -> Tensor:
    """L_seg: soft Dice + cross-entropy.

    logits: (B, K, X, Y, Z). label: (B, X, Y, Z) int64 in 0 .. K - 1. mask: (B, X, Y, Z), voxels
    that count: both terms are then over these alone; without any, the loss is 0.
    """
    if form != PLAIN:
        return formed_loss(logits, label, mask, form)
    logits = logits.float()
    dice = soft_dice_loss(logits.softmax(dim=1), one_hot(label, logits.shape[1]), mask)
    if mask is None:
        return dice + F.cross_entropy(logits, label)
    return dice + masked_mean(F.cross_entropy(logits, label, reduction="none"), mask)


def formed_loss(logits: Tensor, label: Tensor, mask: Tensor | None, form: LossForm) -> Tensor:
    """As `segmentation_loss`, in a form that is not plain: weighted means over classes and voxels.

    With all weights 1, focal 0 and tversky 0.5 the same but for rounding.
    """
    logs = logits.float().log_softmax(dim=1)
    weights = logs.new_tensor(form.weights or [1.0] * logs.shape[1])
    counts = torch.ones_like(label, dtype=logs.dtype) if mask is None else mask.to(logs.dtype)
    prob, target = (
        each[:, 1:] * counts.unsqueeze(1) for each in (logs.exp(), one_hot(label, logs.shape[1]))
    )
    dims = (0, 2, 3, 4)
    sums = [(prob * target).sum(dims), prob.sum(dims), target.sum(dims)]
    both, found, there = batch_sum(torch.stack(sums)).unbind()
    too_much, missed = found - both, there - both
    apart = (1 - form.tversky) * too_much + form.tversky * missed
    index = (both + 5e-6) / (both + apart + 5e-6)  # of Tversky
    overlap = 1 - (weights[1:] * index).sum() / weights[1:].sum()
    log = logs.gather(1, label.unsqueeze(1)).squeeze(1)
    if form.focal:
        log = log * (1 - log.exp()).clamp_min(FLOOR).pow(form.focal)
    counts = counts * weights[label]
    summed, count = batch_sum(torch.stack([(log * counts).sum(), counts.sum()])).unbind()
    return overlap - summed / count.clamp_min(FLOOR)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` over the voxels that count, same shapes; 0 where none does."""
    summed, count = batch_sum(torch.stack([(values * mask).sum(), mask.sum()])).unbind()
    return summed / count.clamp_min(1)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """(B, X, Y, Z) int64 -> (B, classes, X, Y, Z) float32."""
    return F.one_hot(label, classes).movedim(-1, 1).float()


# --- query --------------------------------------------------------------------------------------


def group_probabilities(output: Output) -> Tensor:
    """The grouped assignment in float32, (B, G, X, Y, Z). Raises ValueError without queries."""
    if output.group_prob is None:
        raise ValueError("this network has no queries, and so no grouped assignment")
    return output.group_prob.float()


def merge_label(
    label: Tensor, groups: Sequence[Group], unions: Sequence[Sequence[int]] = ()
) -> Tensor:
    """Class indices -> group indices, (B, X, Y, Z) int64 -> same shape.

    unions: for each label value after the classes, the groups that it may be of; several get an
    index of their own, after the groups. Raises ValueError for a class that is in no group.
    """
    table = torch.full((256,), -1, dtype=torch.int64, device=label.device)
    for index, group in enumerate(groups):
        table[list(group.classes)] = index
    classes = sum(len(group.classes) for group in groups)
    for index, union in enumerate(unions):
        table[classes + index] = union[0] if len(union) == 1 else len(groups) + index
    merged = table[label]
    # on a GPU this check would halt the stream; prepared labels are checked
    if label.device.type == "cpu" and (merged < 0).any():
        raise ValueError(
            f"label holds class {int(label[merged < 0][0])}, which is in no group of {groups}"
        )
    return merged


def query_loss(group_prob: Tensor, target: Tensor) -> Tensor:
    """L_qd: -mean over voxels of log G_{g(Y)}.

    group_prob: (B, G, x, y, z) at any scale that divides the label's. target: (B, G, X, Y, Z),
    one-hot or shares. At a coarser scale it becomes the share of each group in the voxel's block,
    so that a small organ is not lost to sampling.
    """
    x, y, z = group_prob.shape[2:]
    if target.shape[2:] != (x, y, z):
        target = F.adaptive_avg_pool3d(target, (x, y, z))
    return -(target * (group_prob.float() + FLOOR).log()).sum(dim=1).mean()


def query_loss_all(
    output: Output,
    label: Tensor,
    groups: Sequence[Group],
    mask: Tensor | None = None,
    merged: Sequence[Sequence[int]] = (),
) -> Tensor:
    """L_qd of the final assignment plus the mean of L_qd over the kMaX layers.

    The mask heads of the layers learn from nothing else.

    label: (B, X, Y, Z) int64. mask: (B, X, Y, Z), voxels whose label counts; a coarse voxel counts
    by their share in its block. merged: see `NetworkShape`; the probabilities of the groups that a
    voxel may be of are summed.
    """
    unions = [
        [i for i, group in enumerate(groups) if {*group.classes} & {*classes}] for classes in merged
    ]

    def with_unions(prob: Tensor) -> Tensor:
        sums = [prob[:, union].sum(dim=1, keepdim=True) for union in unions]
        return torch.cat([prob, *sums], dim=1) if sums else prob

    target = one_hot(merge_label(label, groups, unions), len(groups) + len(unions))
    if mask is not None:
        target = target * mask.unsqueeze(1)
    loss = query_loss(with_unions(group_probabilities(output)), target)
    if output.layer_group_prob:
        layers = [query_loss(with_unions(layer), target) for layer in output.layer_group_prob]
        loss = loss + torch.stack(layers).mean()
    return loss if mask is None else loss / batch_mean(mask.float().mean()).clamp_min(FLOOR)


# --- consistency --------------------------------------------------------------------------------
# Each form maps (student, target, mask): distributions (B, K, X, Y, Z) and the voxels that count
# (B, X, Y, Z), to a scalar.


def squared_error(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error between the probabilities, as for mean teachers."""
    return ((student - target).square().mean(dim=1) * mask).mean()


def kl_divergence(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """KL(target || student) in nats; its mean over both directions is the symmetric KL."""
    ratio = (target + FLOOR).log() - (student + FLOOR).log()
    return ((target * ratio).sum(dim=1) * mask).mean()


def pseudo_label_cross_entropy(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy against the target's hard label.

    Source: cross pseudo supervision, Chen et al., arXiv 2106.01226.
    """
    chosen = student.gather(1, hard_label(target).unsqueeze(1)).squeeze(1)
    return (-(chosen + FLOOR).log() * mask).mean()


def pseudo_label_dice(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice against the target's hard label: a small organ weighs as much as a large one."""
    return soft_dice_loss(student, one_hot(hard_label(target), target.shape[1]), mask)


def pseudo_label_both(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy and soft Dice against the target's hard label: L_seg with a pseudo-label."""
    return pseudo_label_cross_entropy(student, target, mask) + pseudo_label_dice(
        student, target, mask
    )


def hard_label(prob: Tensor) -> Tensor:
    """The most likely class of every voxel, (B, K, X, Y, Z) -> (B, X, Y, Z) int64."""
    return prob.max(dim=1).indices  # on a CPU much faster than argmax


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "kl": kl_divergence,
    "pseudo": pseudo_label_cross_entropy,
    "pseudo-dice": pseudo_label_dice,
    "pseudo-both": pseudo_label_both,
}


def consistency_loss(
    strong: Tensor, weak: Tensor, form: str = "mse", gradient: str = "both", threshold: float = 0.0
) -> Tensor:
    """Disagreement between two distributions: L_segc on classes, L_qdc on groups.

    strong, weak: (B, K or G, X, Y, Z), from the branch with the strong view and from the one with
    the weak view. form: a key of FORMS. gradient: "both" branches learn (the paper's double arrow),
    or only the "strong" one, the weak being its teacher. threshold: a voxel counts where the
    target's largest probability reaches it.
    """
    strong, weak = strong.float(), weak.float()

    def one_way(student: Tensor, target: Tensor) -> Tensor:
        mask = (target.detach().amax(dim=1) >= threshold).float()
        return FORMS[form](student, target, mask)

    if gradient == "strong":
        return one_way(strong, weak.detach())
    return (one_way(strong, weak) + one_way(weak, strong)) / 2
