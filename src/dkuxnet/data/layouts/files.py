"""What the layouts share: listing scans, reading dataset.json field by field, and paths that stay
in the folder.
"""

import json
import os
from pathlib import Path
from typing import Any

from dkuxnet.core.documents import read_json
from dkuxnet.core.errors import UserError
from dkuxnet.data.formats import FORMATS, stem, suffix

MAX_LABEL = 2**31 - 1


def images_in(folder: Path) -> list[Path]:
    """The files of `folder` in a known format, sorted by name; hidden ones ("._scan.nii.gz" of
    macOS) are left out.
    """
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.name.lower().endswith(tuple(FORMATS)))
    return sorted(path for path in files if not path.name.startswith(".") and path.is_file())


def by_stem(files: list[Path]) -> dict[str, Path]:
    """File name without suffix -> file.

    Raises UserError where two files (a.nii.gz, a.nrrd) come to one name.
    """
    found: dict[str, Path] = {}
    for path in files:
        name = stem(path)
        if name in found:
            raise UserError(
                f"{path.parent}: expected one file named '{name}', got {found[name].name} and "
                f"{path.name}; remove one"
            )
        found[name] = path
    return found


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """The fields of folder/dataset.json. Raises UserError where it is missing or no JSON object."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{path}: expected a description of the data, but there is none; add it or use layout "
            "'folder'"
        )
    fields = read_json(path, f"{path}: expected JSON")
    if not isinstance(fields, dict):
        raise UserError(
            f"{path}: expected a JSON object, but it is a {type(fields).__name__}; repair the file"
        )
    return fields


def field(folder: Path, fields: dict[str, Any], key: str, form: type) -> Any:
    """fields[key]. Raises UserError naming file and key where it is missing or not a `form`."""
    what = {dict: "an object", list: "a list", str: "a text"}[form]
    if key not in fields:
        raise UserError(
            f"{folder / 'dataset.json'}: expected the key '{key}' ({what}), but there is none; add "
            "it"
        )
    if not isinstance(fields[key], form):
        raise UserError(
            f"{folder / 'dataset.json'}: expected '{key}' to be {what}, got {_short(fields[key])}; "
            "fix it"
        )
    return fields[key]


def channel_names(folder: Path, fields: dict[str, Any], key: str) -> tuple[str, ...]:
    """{"0": "MRI", "1": "CT"} under `key` as ("MRI", "CT")."""
    table = field(folder, fields, key, dict)
    names = [table.get(str(index)) for index in range(len(table))]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{folder / 'dataset.json'}: expected '{key}' to count channels from '0', as in "
            '{"0": "MRI"}, '
            f"got {_short(table)}; correct it"
        )
    return tuple(names)


def label_values(folder: Path, fields: dict[str, Any]) -> dict[str, int]:
    """`labels` as name -> value by value, background (0) first.

    Understands {"LA": 1} and MSD's {"1": "LA"}.
    """
    path, table = folder / "dataset.json", field(folder, fields, "labels", dict)
    if any(isinstance(value, list) for value in table.values()):
        raise UserError(
            f"{path}: 'labels' has regions (lists of values): not supported; give one value a class"
        )
    if any("ignore" in (name, value) for name, value in table.items()):
        raise UserError(
            f"{path}: 'labels' has an 'ignore' label: not supported; leave such cases unlabelled"
        )
    labels = dict(_label(name, value) for name, value in table.items())
    values = set(labels.values())
    if None in values or min(values, default=None) != 0 or len(values) < len(table):
        raise UserError(
            f"{path}: expected 'labels' to give each class its own whole number, background 0, as "
            "in "
            f'{{"background": 0, "LA": 1}}, got {_short(table)}; correct it'
        )
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _label(name: str, value: Any) -> tuple[str, int | None]:
    """(class name, value), the value None where there is no whole number in either place."""
    if isinstance(value, str) and name.isdecimal():
        return value, int(name) if len(name) < 10 else None
    return name, value if type(value) is int and abs(value) <= MAX_LABEL else None


def listed_file(folder: Path, case: str, entry: Any) -> Path:
    """The file in `folder` that dataset.json names for `case`.

    Raises UserError where it is missing or elsewhere.
    """
    where = f"{folder / 'dataset.json'}: case '{case}'"
    if not isinstance(entry, str) or not entry:
        raise UserError(f"{where}: expected the path of a file, got {_short(entry)}; correct it")
    relative = os.path.normpath(entry)
    # Links are followed, as people link to their data; a path that climbs out of the folder is a
    # mistake or an attack.
    if os.path.isabs(entry) or relative.split(os.sep)[0] == "..":
        raise UserError(
            f"{where}: expected a path inside the folder, got '{entry}'; move or link the file "
            "into it"
        )
    suffix(relative)
    path = folder / relative
    if not os.path.isfile(path):
        raise UserError(
            f"{where}: expected the file {path}, but there is none; add it or take it off the list"
        )
    return path


def _short(value: Any, most: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + " ..."
