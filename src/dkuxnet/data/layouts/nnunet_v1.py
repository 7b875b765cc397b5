"""nnU-Net v1: the Decathlon's dataset.json, but a file for each channel."""

import os
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import Faults, UserError
from dkuxnet.core.types import Source
from dkuxnet.data.formats import READABLE, longest_suffix, stem, suffix
from dkuxnet.data.layouts.dataset_json import found_cases
from dkuxnet.data.layouts.files import channel_names, field, read_dataset_json
from dkuxnet.data.layouts.label_map import label_values


def is_nnunet_v1(folder: Path, fields: dict[str, Any]) -> bool:
    """Whether the first of `training` is there as CASE_0000 and not as CASE itself."""
    image = _first_image(fields)
    if image is None or not longest_suffix(image, READABLE) or os.path.isfile(folder / image):
        return False
    return (folder / "imagesTr" / f"{stem(image)}_0000{suffix(image)}").is_file()


def nnunet_v1(folder: Path) -> Source:
    """imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz of the cases in `training`, sorted.

    `training` names CASE.nii.gz, which is not there. Cases of imagesUn are unlabelled.
    """
    fields = read_dataset_json(folder)
    channels = channel_names(folder, fields, "modality")
    labels = label_values(folder, fields)
    names = {_name(folder, entry) for entry in field(folder, fields, "training", list)}
    ending = suffix(_first_image(fields) or ".nii.gz")
    faults = Faults()
    found = found_cases(folder, "imagesTr", "labelsTr", ending, len(channels), faults)
    for name in sorted(names - {case.name for case in found if case.label}):
        faults.add(
            f"{folder / 'dataset.json'}: case '{name}' in 'training': expected "
            f"imagesTr/{name}_0000{ending} and labelsTr/{name}{ending}, but one of them is "
            "missing; add it or take the case off the list"
        )
    cases = [case for case in found if case.name in names]
    cases += found_cases(folder, "imagesUn", None, ending, len(channels), faults)
    faults.tell()
    return Source("nnunet-v1", folder, tuple(cases), channels, labels)


def _first_image(fields: dict[str, Any]) -> str | None:
    """The path of the image in the first entry of `training`, if that is one."""
    entries = fields.get("training")
    first = entries[0] if isinstance(entries, list) and entries else None
    image = first.get("image") if isinstance(first, dict) else None
    return image if isinstance(image, str) else None


def _name(folder: Path, entry: Any) -> str:
    image = _first_image({"training": [entry]})
    if image is None:
        raise UserError(
            f"{folder / 'dataset.json'}: expected entries of 'training' like "
            '{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, '
            f"got {str(entry)[:80]!r}; correct it"
        )
    return stem(image)
