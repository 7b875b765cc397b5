"""A plain folder of scans, for data in none of the field's layouts."""

from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.core.types import Case, Source
from dkuxnet.data.formats import FORMATS, is_dicom, suffix
from dkuxnet.data.layouts.dicom import dicom_in
from dkuxnet.data.layouts.files import (
    by_stem,
    channel_names,
    images_in,
    label_values,
    read_dataset_json,
)


def plain_folder(folder: Path) -> Source:
    """Scans in folder/images or in `folder` itself, labels of the same name in folder/labels,
    sorted by name.

    A scan may be a subfolder, zip or multi-frame file of DICOM. An h5 file may hold its own label.
    A dataset.json may name "labels" and "channel_names", as nnU-Net has them.
    """
    inside = folder / "images" if (folder / "images").is_dir() else folder
    images = by_stem(images_in(inside) + dicom_in(inside))
    labels = by_stem(images_in(folder / "labels"))
    for name, path in labels.items():
        if name not in images:
            raise UserError(
                f"{path}: expected a scan of the same name, '{name}', but there is none; add or "
                "rename it"
            )
    cases = tuple(
        Case(name, (path,), labels.get(name) or _own_label(path))
        for name, path in sorted(images.items())
    )
    fields = read_dataset_json(folder) if (folder / "dataset.json").is_file() else {}
    channels = (
        channel_names(folder, fields, "channel_names") if "channel_names" in fields else ("image",)
    )
    return Source(
        "folder",
        folder,
        cases,
        channels,
        label_values(folder, fields) if "labels" in fields else None,
    )


def _own_label(path: Path) -> Path | None:
    return (
        path
        if not is_dicom(path)
        and suffix(path) == ".h5"
        and lookup(FORMATS, ".h5", "format").has_label(path)
        else None
    )
