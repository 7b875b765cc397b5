"""A plain folder of scans, for data in none of the field's layouts."""

from pathlib import Path

from dkuxnet.core.types import Case, Source
from dkuxnet.data.formats import has_own_label, is_dicom, suffix
from dkuxnet.data.layouts.dicom import dicom_in
from dkuxnet.data.layouts.files import (
    SEGMENTATION,
    by_stem,
    channels_and_labels,
    images_in,
    labels_of,
)


def plain_folder(folder: Path) -> Source:
    """Scans in folder/images or in `folder` itself, labels of the same name in folder/labels.

    3D Slicer's NAME.seg.nrrd may stand beside the scan.

    Cases are sorted by name. A scan may be a subfolder, zip or multi-frame file of DICOM. An h5
    file may hold its own label. A dataset.json may name "labels" and "channel_names" as nnU-Net
    does.
    """
    inside = folder / "images" if (folder / "images").is_dir() else folder
    files = images_in(inside)
    segmentations = [path for path in files if suffix(path) == SEGMENTATION]
    images = by_stem([path for path in files if path not in segmentations] + dicom_in(inside))
    labels = labels_of(images, folder / "labels", segmentations)
    cases = tuple(
        Case(name, (path,), labels.get(name) or _own_label(path))
        for name, path in sorted(images.items())
    )
    return Source("folder", folder, cases, *channels_and_labels(folder, ("image",)))


def _own_label(path: Path) -> Path | None:
    return path if not is_dicom(path) and has_own_label(path) else None
