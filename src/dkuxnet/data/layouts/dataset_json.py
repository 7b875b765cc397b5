"""The layouts that a dataset.json describes: nnU-Net v2 and the Medical Segmentation Decathlon."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from dkuxnet.core.errors import DataWarning, Faults, UserError
from dkuxnet.core.types import Case, Source
from dkuxnet.data.formats import stem, suffix
from dkuxnet.data.layouts.channels import channels_wrong
from dkuxnet.data.layouts.files import (
    SEGMENTATION,
    by_stem,
    channel_names,
    check_label_files,
    field,
    images_in,
    listed_file,
    read_dataset_json,
    warn_left_out,
)
from dkuxnet.data.layouts.label_map import label_values


def nnunet(folder: Path) -> Source:
    """imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz, or the cases of `dataset` in its order.

    nnU-Net has no place for unlabelled scans. Here they are the cases without a label file and
    those of imagesUn.
    """
    fields = read_dataset_json(folder)
    channels = channel_names(folder, fields, "channel_names")
    labels = label_values(folder, fields)
    ending = suffix(field(folder, fields, "file_ending", str))
    faults = Faults()
    if "dataset" in fields:
        cases = _listed_cases(folder, field(folder, fields, "dataset", dict), len(channels), faults)
    else:
        cases = found_cases(folder, "imagesTr", "labelsTr", ending, len(channels), faults)
        _check_count(folder, fields, cases, faults)
    taken = {image for case in cases for image in case.images}
    unlabelled = found_cases(folder, "imagesUn", None, ending, len(channels), faults)
    faults.tell()
    cases += [case for case in unlabelled if not taken.issuperset(case.images)]
    return Source("nnunet", folder, tuple(cases), channels, labels)


def msd(folder: Path) -> Source:
    """`training` of dataset.json, [{"image": .., "label": ..}], and MONAI's `unlabeled`.

    A file holds all channels.
    """
    fields = read_dataset_json(folder)
    channels = channel_names(folder, fields, "modality")
    labels = label_values(folder, fields)
    entries = [e for e in field(folder, fields, "training", list) if not _is_shadow(e)]
    unlabelled = field(folder, fields, "unlabeled", list) if "unlabeled" in fields else []
    faults = Faults()
    cases = []
    for entry in (*entries, *map(_image_only, unlabelled)):
        with faults.noting():
            cases += [] if _is_shadow(entry) else [_msd_case(folder, entry)]
    _check_count(folder, fields, cases[: len(entries)], faults)
    faults.tell()
    used = {path for case in cases for path in (*case.images, case.label)}
    for name in ("imagesTr", "labelsTr"):
        warn_left_out(folder / name, used, "dataset.json does not list them")
    return Source("msd", folder, tuple(cases), channels, labels)


def _check_count(
    folder: Path, fields: dict[str, Any], cases: Sequence[Case], faults: Faults
) -> None:
    """Compare with `numTraining`, which may count the labelled cases or all for training."""
    count, labelled = fields.get("numTraining"), sum(case.label is not None for case in cases)
    if type(count) is not int or count in (len(cases), labelled) or faults.messages:
        return
    told = (
        f"{folder / 'dataset.json'}: numTraining is {count}, but there are {len(cases)} cases for "
        f"training, {labelled} of them with a label"
    )
    if count > len(cases):
        faults.add(f"{told}; add the files that are missing, or correct numTraining")
    else:
        warnings.warn(told, DataWarning, stacklevel=2)


def _listed_cases(
    folder: Path, listed: dict[str, Any], channels: int, faults: Faults
) -> list[Case]:
    cases = []
    for name, entry in listed.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if isinstance(images, list) and len(images) in (1, channels):
            with faults.noting():
                cases.append(_listed_case(folder, name, images, entry.get("label")))
        else:
            faults.add(
                f"{folder / 'dataset.json'}: case '{name}' in 'dataset': expected \"images\" to "
                f"list {channels} files, one for each channel, or one file of all channels; "
                "correct it"
            )
    return cases


def _listed_case(folder: Path, name: str, images: list[Any], label: Any) -> Case:
    return Case(
        normalize("NFC", name),
        tuple(listed_file(folder, name, image) for image in images),
        None if label is None else listed_file(folder, name, label),
    )


def found_cases(
    folder: Path, images: str, labels: str | None, ending: str, channels: int, faults: Faults
) -> list[Case]:
    """Cases of the folder `images`, sorted by name; unlabelled where `labels` holds no file."""
    scans = _with_suffix(folder / images, ending)
    groups = _group_channels(folder / images, scans, ending, channels, faults)
    other = f"the file_ending of dataset.json is {ending}"
    warn_left_out(folder / images, scans, other)
    if labels is None:
        return [Case(name, files) for name, files in sorted(groups.items())]
    endings = dict.fromkeys((ending, SEGMENTATION))
    files = [path for each in endings for path in _with_suffix(folder / labels, each)]
    found = by_stem(files)
    for name in sorted(found.keys() - groups.keys()):
        faults.add(
            f"{found[name]}: expected a scan '{name}' in {folder / images}, but there is none; "
            "add it"
        )
    check_label_files(folder / labels, files, groups.keys() - found.keys(), faults, other)
    return [Case(name, paths, found.get(name)) for name, paths in sorted(groups.items())]


def _group_channels(
    folder: Path, files: list[Path], ending: str, channels: int, faults: Faults
) -> dict[str, tuple[Path, ...]]:
    """CASE_0000.nii.gz, CASE_0001.nii.gz, ... as name of the case -> files in channel order.

    Stricter than `group_channels`, since dataset.json says what is right.
    """
    groups: dict[str, dict[int, Path]] = {}
    for path in files:
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
        if match:
            groups.setdefault(match[1], {})[int(match[2])] = path
        else:
            faults.add(
                f"{path}: expected a name with its channel, like CASE_0000{ending}; rename it"
            )
    for name, group in groups.items():
        if set(group) != set(range(channels)):
            faults.add(str(channels_wrong(name, group, channels, " by dataset.json")))
    return {name: tuple(group[i] for i in sorted(group)) for name, group in groups.items()}


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
