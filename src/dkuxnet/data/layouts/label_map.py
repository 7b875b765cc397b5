"""What the values of label files mean, by a dataset.json: classes, and what nobody labelled."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import IGNORE
from dkuxnet.data.layouts.files import MAX_LABEL, channel_names, field, read_dataset_json, shortened
from dkuxnet.data.outlined import not_labelled


class LabelMap(NamedTuple):
    """labels: class name -> value, background first. The others: see `core.types.Source`."""

    labels: dict[str, int]
    ignore: int | None = None
    not_labelled: Mapping[str, tuple[str, ...]] = MappingProxyType({})


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

    Reads {"LA": 1} as well as MSD's {"1": "LA"}. "ignore", as in nnU-Net, is no class.
    """
    path, table = folder / "dataset.json", field(folder, fields, "labels", dict)
    if any(isinstance(value, list) for value in table.values()):
        raise UserError(
            f"{path}: 'labels' has regions (lists of values): not supported; give one value a class"
        )
    found = dict(_label(name, value) for name, value in table.items())
    labels = {name: value for name, value in found.items() if value is not None}
    values = set(labels.values())
    if len(values) < len(table) or min(values, default=None) != 0:
        raise UserError(
            f"{path}: expected 'labels' to give each class its own whole number, background 0, as "
            f'in {{"background": 0, "LA": 1}}, got {shortened(table)}; correct it'
        )
    ignore = labels.pop(IGNORE, None)
    if ignore is not None and ignore != max(values):
        highest = next(name for name, value in labels.items() if value == max(values))
        raise UserError(
            f"{path}: expected '{IGNORE}' to have the highest value of 'labels', but it has "
            f"{ignore} and '{highest}' has {max(values)}; renumber them, here and in the label "
            "files"
        )
    ordered = dict(sorted(labels.items(), key=lambda item: item[1]))
    return LabelMap(ordered, ignore, not_labelled(folder, fields))


def _label(name: str, value: Any) -> tuple[str, int | None]:
    """Class name and value; the value is None where neither is a whole number."""
    if isinstance(value, str) and name.isdecimal():
        return value, int(name) if len(name) < 10 else None
    return name, value if type(value) is int and abs(value) <= MAX_LABEL else None
