"""Regions that overlap, and the parts of them that do not.

The network learns a softmax over the parts, and a region's probability is the sum of its parts'. So
a region that lies in another one by its definition does so in every prediction; of sigmoids, one a
region as in nnU-Net, nothing would hold that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dkuxnet.core.errors import UserError

ORDER = "regions_class_order"
Values = Mapping[str, Sequence[int]]  # region -> values in label files


def disjoint_parts(
    regions: Values, order: Any
) -> tuple[dict[str, int], dict[str, tuple[int, ...]], dict[int, int]]:
    """(part -> the value that is written for it, region -> its values, value -> its part's).

    A part holds all values that are in the same regions. As in nnU-Net the regions are written one
    over the other, each with its value in `order`: a part has that of its last one. A region's own
    value comes first of its values. The third has only values that are not their part's own. Raises
    UserError where the order does not fit, or what would be written means something else.
    """
    own = _own_values(regions, order)
    within: dict[frozenset[str], list[int]] = {}
    for value in sorted({value for values in regions.values() for value in values}):
        inside = frozenset(name for name, values in regions.items() if value in values)
        within.setdefault(inside, []).append(value)
    labels: dict[str, int] = {}
    same: dict[int, int] = {}
    for inside, values in within.items():
        last = [name for name in regions if name in inside][-1]
        written = own[last]
        if written not in values:
            raise UserError(
                f"'{ORDER}' would write {written} for what has {values[0]} in the label files, and "
                f"{written} means something else there; order the regions from the outermost to "
                "the innermost, each with a value that it alone has"
            )
        part = last if set(values) == set(regions[last]) else f"rest of {last}"
        labels[part] = written
        same |= {value: written for value in values if value != written}
    ordered = {
        name: (own[name], *(value for value in values if value != own[name]))
        for name, values in regions.items()
    }
    return dict(sorted(labels.items(), key=lambda item: item[1])), ordered, same


def _own_values(regions: Values, order: Any) -> dict[str, int]:
    """Region -> the value that is written for it."""
    everywhere = [value for values in regions.values() for value in values]
    if order is None and len(set(everywhere)) == len(everywhere):
        return {name: min(values) for name, values in regions.items()}
    if order is None:
        raise UserError(
            f"regions of 'labels' overlap, but there is no '{ORDER}'; give the values in which "
            "they are written, the outermost region first"
        )
    numbers = isinstance(order, list) and all(type(value) is int and value > 0 for value in order)
    if not numbers or len(order) != len(regions):
        raise UserError(
            f"expected '{ORDER}' to have a value for each of the {len(regions)} regions "
            f"({', '.join(regions)}), got {str(order)[:80]}; correct it"
        )
    if twice := next((value for value in order if order.count(value) > 1), None):
        raise UserError(f"'{ORDER}' has {twice} twice; give each region a value of its own")
    for (name, values), value in zip(regions.items(), order, strict=True):
        if value in everywhere and value not in values:
            raise UserError(
                f"'{ORDER}' gives '{name}' {value}, which is not among its values {[*values]}; "
                "correct it"
            )
    return dict(zip(regions, order, strict=True))
