"""DICOM as a source: a tree of series as it left the scanner or archive, and scans among those of
a plain folder.
"""

from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Case, Source
from dkuxnet.data.dicom.tree import holds_dicom
from dkuxnet.data.formats import is_dicom
from dkuxnet.data.layouts.files import (
    by_stem,
    channel_names,
    images_in,
    label_values,
    read_dataset_json,
)


def dicom_tree(folder: Path) -> Source:
    """Every series of the tree is a case: see `dicom.series.find_scans` for their names.

    Labels in folder/labels by these.

    The channel is called as the modality, so that CT is normalised as CT. A dataset.json may name
    "labels" and "channel_names", as nnU-Net has them.
    """
    from dkuxnet.data.dicom.series import find_scans  # pydicom takes its time to import

    scans = find_scans(folder)
    labels = by_stem(images_in(folder / "labels"))
    for name, path in labels.items():
        if name not in scans:
            raise UserError(
                f"{path}: expected a scan of the same name, '{name}', but there are "
                f"{', '.join(sorted(scans))}; "
                "rename it"
            )
    cases = tuple(
        Case(name, (series.home,), labels.get(name), series.uid)
        for name, series in sorted(scans.items())
    )
    modalities = {series.images[0].modality for series in scans.values()}
    channels = tuple(modalities) if len(modalities) == 1 else ("image",)
    fields = read_dataset_json(folder) if (folder / "dataset.json").is_file() else {}
    if "channel_names" in fields:
        channels = channel_names(folder, fields, "channel_names")
    return Source(
        "dicom",
        folder,
        cases,
        channels,
        label_values(folder, fields) if "labels" in fields else None,
    )


def dicom_in(folder: Path) -> list[Path]:
    """The scans that lie in `folder` itself as DICOM, sorted: subfolders of slices, zips,
    multi-frame files. Not "labels".
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        path
        for path in paths
        if is_dicom(path) and not path.name.startswith(".") and _is_scan(path)
    ]


def _is_scan(path: Path) -> bool:
    if path.is_dir():
        return path.name != "labels" and holds_dicom(path)
    if path.suffix.lower() == ".zip":
        return True
    from dkuxnet.data.dicom.series import is_multi_frame

    try:
        return is_multi_frame(path)
    except UserError:  # damaged: whoever reads it is told, and the other scans are well
        return True
