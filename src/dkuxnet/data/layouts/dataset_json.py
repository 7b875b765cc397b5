"""The layouts that a dataset.json describes: nnU-Net v2 and the Medical Segmentation Decathlon."""

import re
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Case, Source
from dkuxnet.data.formats import stem, suffix
from dkuxnet.data.layouts.files import (
    SEGMENTATION,
    by_stem,
    channel_names,
    field,
    images_in,
    label_values,
    listed_file,
    read_dataset_json,
)


def nnunet(folder: Path) -> Source:
    """imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz, or the cases of `dataset` in its order.

    nnU-Net has no place for unlabelled scans. Here they are the cases without a label file and
    those of imagesUn.
    """
    fields = read_dataset_json(folder)
    channels = channel_names(folder, fields, "channel_names")
    labels = label_values(folder, fields)
    ending = suffix(field(folder, fields, "file_ending", str))
    if "dataset" in fields:
        cases = _listed_cases(folder, field(folder, fields, "dataset", dict), len(channels))
    else:
        cases = found_cases(folder, "imagesTr", "labelsTr", ending, len(channels))
    taken = {image for case in cases for image in case.images}
    unlabelled = found_cases(folder, "imagesUn", None, ending, len(channels))
    cases += [case for case in unlabelled if not taken.issuperset(case.images)]
    return Source("nnunet", folder, tuple(cases), channels, labels)


def msd(folder: Path) -> Source:
    """`training` of dataset.json, [{"image": .., "label": ..}], and MONAI's `unlabeled`.

    A file holds all channels.
    """
    fields = read_dataset_json(folder)
    channels = channel_names(folder, fields, "modality")
    labels = label_values(folder, fields)
    entries = field(folder, fields, "training", list)
    if "unlabeled" in fields:
        unlabelled = field(folder, fields, "unlabeled", list)
        entries = entries + [_image_only(entry) for entry in unlabelled]
    cases = [_msd_case(folder, entry) for entry in entries if not _is_shadow(entry)]
    return Source("msd", folder, tuple(cases), channels, labels)


def _listed_cases(folder: Path, listed: dict[str, Any], channels: int) -> list[Case]:
    cases = []
    for name, entry in listed.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, list) or len(images) not in (1, channels):
            raise UserError(
                f"{folder / 'dataset.json'}: case '{name}' in 'dataset': expected \"images\" to "
                f"list {channels} files, one for each channel, or one file of all channels; "
                "correct it"
            )
        cases.append(_listed_case(folder, name, images, entry.get("label")))
    return cases


def _listed_case(folder: Path, name: str, images: list[Any], label: Any) -> Case:
    return Case(
        name,
        tuple(listed_file(folder, name, image) for image in images),
        None if label is None else listed_file(folder, name, label),
    )


def found_cases(
    folder: Path, images: str, labels: str | None, ending: str, channels: int
) -> list[Case]:
    """Cases of the folder `images`, sorted by name; unlabelled where `labels` holds no file."""
    groups = _group_channels(folder / images, ending, channels)
    found = {}
    if labels:
        files = _with_suffix(folder / labels, ending) + _with_suffix(folder / labels, SEGMENTATION)
        found = by_stem(files)
    for name in found:
        if name not in groups:
            raise UserError(
                f"{found[name]}: expected a scan '{name}' in {folder / images}, but there is none; "
                "add it"
            )
    return [Case(name, files, found.get(name)) for name, files in sorted(groups.items())]


def _group_channels(folder: Path, ending: str, channels: int) -> dict[str, tuple[Path, ...]]:
    """CASE_0000.nii.gz, CASE_0001.nii.gz, ... as name of the case -> files in channel order."""
    groups: dict[str, dict[int, Path]] = {}
    for path in _with_suffix(folder, ending):
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
        if not match:
            raise UserError(
                f"{path}: expected a name with its channel, like CASE_0000{ending}; rename it"
            )
        groups.setdefault(match[1], {})[int(match[2])] = path
    for name, files in groups.items():
        wrong = sorted(set(files) ^ set(range(channels)))
        if wrong:
            state = "is too many" if wrong[0] in files else "is missing"
            raise UserError(
                f"{folder}: case '{name}': expected {channels} channel files by dataset.json, but "
                f"{name}_{wrong[0]:04d}{ending} {state}; correct one or the other"
            )
    return {
        name: tuple(files[index] for index in range(channels)) for name, files in groups.items()
    }


def _with_suffix(folder: Path, ending: str) -> list[Path]:
    return [path for path in images_in(folder) if suffix(path) == ending]


def _msd_case(folder: Path, entry: Any) -> Case:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise UserError(
            f"{folder / 'dataset.json'}: expected entries of 'training' like "
            '{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, '
            f"got {entry!r}; correct it"
        )
    return _listed_case(folder, stem(entry["image"]), [entry["image"]], entry.get("label"))


def _image_only(entry: Any) -> Any:
    """An entry of `unlabeled`, a path or {"image": path}, as one of `training` without a label."""
    return {"image": entry.get("image") if isinstance(entry, dict) else entry}


def _is_shadow(entry: Any) -> bool:
    """Whether the entry names a "._" file, which macOS leaves in archives."""
    return isinstance(entry, dict) and Path(str(entry.get("image"))).name.startswith("._")
