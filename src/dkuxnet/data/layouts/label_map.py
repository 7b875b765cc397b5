"""What the values of label files mean, by a dataset.json: classes, and what nobody labelled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import IGNORE
from dkuxnet.data.layouts.files import MAX_LABEL, channel_names, field, read_dataset_json, shortened
from dkuxnet.data.layouts.regions import disjoint_parts
from dkuxnet.data.outlined import not_labelled


class LabelMap(NamedTuple):
    """labels: class name -> value, background first. The others: see `core.types.Source`.

    With regions the classes are the disjoint parts of these.
    """

    labels: dict[str, int]
    ignore: int | None = None
    not_labelled: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    regions: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    same: Mapping[int, int] = MappingProxyType({})

    @property
    def scored(self) -> dict[str, int | tuple[int, ...]]:
        """What is scored -> its values: regions, or else the classes; background first."""
        background = dict(list(self.labels.items())[:1])
        return {**background, **self.regions} if self.regions else {**self.labels}


def channels_and_labels(
    folder: Path, channels: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, int] | None]:
    """Channel names and labels by a dataset.json that may be there; else `channels` and None."""
    fields = read_dataset_json(folder) if (folder / "dataset.json").is_file() else {}
    if "channel_names" in fields:
        channels = channel_names(folder, fields, "channel_names")
    return channels, label_values(folder, fields) if "labels" in fields else None


def label_values(folder: Path, fields: dict[str, Any]) -> dict[str, int]:
    """The classes of `label_map` alone."""
    return label_map(folder, fields).labels


def label_map(folder: Path, fields: dict[str, Any]) -> LabelMap:
    """`labels` of a dataset.json, sorted by value, background (0) first.

    Reads {"LA": 1} as well as MSD's {"1": "LA"}. "ignore", as in nnU-Net, is no class. Lists of
    values are regions, whose parts become the classes, see `data.layouts.regions`.
    """
    path, table = folder / "dataset.json", field(folder, fields, "labels", dict)
    left_out = not_labelled(folder, fields)
    if any(isinstance(value, list) for value in table.values()):
        return _regions(path, table, fields.get("regions_class_order"), left_out)
    found = dict(_label(name, value) for name, value in table.items())
    labels = {name: value for name, value in found.items() if value is not None}
    values = set(labels.values())
    if len(values) < len(table) or min(values, default=None) != 0:
        raise UserError(
            f"{path}: expected 'labels' to give each class its own whole number, background 0, as "
            f'in {{"background": 0, "LA": 1}}, got {shortened(table)}; correct it'
        )
    ignore = labels.pop(IGNORE, None)
    _check_ignore(path, ignore, {name: (value,) for name, value in labels.items()})
    ordered = dict(sorted(labels.items(), key=lambda item: item[1]))
    return LabelMap(ordered, ignore, left_out)


def _check_ignore(path: Path, ignore: int | None, values: Mapping[str, Sequence[int]]) -> None:
    if ignore is None:
        return
    for name, each in values.items():
        if ignore in each:
            raise UserError(
                f"{path}: '{name}' holds {ignore}, the value of '{IGNORE}': what nobody labelled "
                "is in no region; take it out"
            )
        if max(each) > ignore:
            raise UserError(
                f"{path}: expected '{IGNORE}' to have the highest value of 'labels', but it has "
                f"{ignore} and '{name}' has {max(each)}; renumber them, here and in the label files"
            )


def _regions(
    path: Path, table: dict[str, Any], order: Any, left_out: Mapping[str, tuple[str, ...]]
) -> LabelMap:
    """The map of a `labels` that has lists of values."""
    values: dict[str, tuple[int, ...]] = {}
    for name, value in table.items():
        each = value if isinstance(value, list) else [value]
        if not each or not all(type(v) is int and 0 <= v <= MAX_LABEL for v in each):
            raise UserError(
                f"{path}: expected a value or a list of values for '{name}' in 'labels', got "
                f"{shortened(value)}; correct it"
            )
        values[name] = tuple(dict.fromkeys(each))
    background = [name for name, each in values.items() if each == (0,)]
    if len(background) != 1 or sum(0 in each for each in values.values()) != 1:
        raise UserError(
            f"{path}: expected one class of 'labels' to be 0, the background, and 0 in no region, "
            f"got {shortened(table)}; correct it"
        )
    ignore = values.pop(IGNORE, (None,))[0]
    regions = {name: each for name, each in values.items() if each != (0,)}
    _check_ignore(path, ignore, regions)
    try:
        labels, regions, same = disjoint_parts(regions, order)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return LabelMap({background[0]: 0} | labels, ignore, left_out, regions, same)


def _label(name: str, value: Any) -> tuple[str, int | None]:
    """Class name and value; the value is None where neither is a whole number."""
    if isinstance(value, str) and name.isdecimal():
        return value, int(name) if len(name) < 10 else None
    return name, value if type(value) is int and abs(value) <= MAX_LABEL else None
