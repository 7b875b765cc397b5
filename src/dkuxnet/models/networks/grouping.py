"""Groups of queries: background, organ, tumour in the paper; here what the classes ask for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Group

TUMOUR_WORDS = ("tumour", "tumor", "lesion", "cancer", "metasta", "nodule")


def default_groups(class_names: Sequence[str], queries: int) -> tuple[Group, ...]:
    """Groups for the classes of a data set, background first.

    Classes named like a tumour form the group "tumour", all other foreground the group "organ"; a
    group without a class is left out, so that no query is dead. The background gets half of the
    queries, the other groups share the rest. Raises UserError where there are too few queries for
    every group to get one, or no foreground class.
    """
    tumour = [
        k
        for k, name in enumerate(class_names)
        if k and any(word in name.lower() for word in TUMOUR_WORDS)
    ]
    organ = [k for k in range(1, len(class_names)) if k not in tumour]
    foreground = [
        (name, classes) for name, classes in (("organ", organ), ("tumour", tumour)) if classes
    ]
    if not foreground:
        raise UserError("the data set has no class but the background: nothing to segment")
    shares = [queries // 2 // len(foreground)] * len(foreground)
    if min(shares) < 1:
        raise UserError(
            f"queries is {queries}: {len(foreground) + 1} groups need at least "
            f"{2 * len(foreground)}"
        )
    groups = [Group("background", (0,), queries - sum(shares))]
    groups += [
        Group(name, tuple(classes), share)
        for (name, classes), share in zip(foreground, shares, strict=True)
    ]
    return tuple(groups)


def check_groups(groups: Sequence[Group], classes: int) -> None:
    """Raise UserError unless the groups split the classes 0 .. classes - 1 and each has queries."""
    for group in groups:
        if group.queries < 1 or not group.classes:
            raise UserError(
                f"group '{group.name}' has {group.queries} queries and classes "
                f"{list(group.classes)}: a group needs at least one of each"
            )
    listed = sorted(k for group in groups for k in group.classes)
    if listed != list(range(classes)):
        raise UserError(
            f"the groups hold the classes {listed}: each of {list(range(classes))} must stand in "
            "one group"
        )


def grouped_assignment(assignment: Tensor, groups: Sequence[Group]) -> Tensor:
    """Sum the assignment over the queries of each group: (B, N, x, y, z) -> (B, G, x, y, z).

    `assignment` is a softmax over the queries, so that the result is a distribution over the groups
    at every voxel.

    Source: MaxQuery's query-distribution loss (arXiv 2304.00212), Equation 3, on groups of settable
    size.
    """
    parts = torch.split(assignment, [group.queries for group in groups], dim=1)
    return torch.stack([part.sum(dim=1) for part in parts], dim=1)
