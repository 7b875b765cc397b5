"""A plain folder of scans, for data in none of the field's layouts."""

from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Case, Source
from dkuxnet.data.formats import has_own_label, is_dicom, stem, suffix
from dkuxnet.data.layouts.channels import group_channels
from dkuxnet.data.layouts.dicom import dicom_in
from dkuxnet.data.layouts.files import (
    SEGMENTATION,
    images_in,
    label_files,
    labels_of,
    warn_left_out,
)
from dkuxnet.data.layouts.label_map import channels_and_labels

UNNAMED = ("image",)


def plain_folder(folder: Path, channels: int | None = None) -> Source:
    """Scans in folder/images or in `folder` itself, labels of the same name in folder/labels.

    3D Slicer's NAME.seg.nrrd may stand beside the scan.

    Cases are sorted by name. A scan may be a subfolder, zip or multi-frame file of DICOM. An h5
    file may hold its own label. A dataset.json may name "labels" and "channel_names" as nnU-Net
    does. channels: of a model that predicts, which needs no labels; None: as many as dataset.json
    names, or one. Raises UserError where dataset.json names another number.
    """
    names, values = channels_and_labels(folder, UNNAMED)
    if channels and names != UNNAMED and len(names) != channels:
        raise UserError(
            f"{folder / 'dataset.json'}: expected a scan of {channels} channel(s), as the model "
            f"takes, but it names {len(names)} ({', '.join(names)}); give scans of those channels"
        )
    inside = folder / "images" if (folder / "images").is_dir() else folder
    beside = [path for path in images_in(inside) if suffix(path) == SEGMENTATION]
    files = [path for path in images_in(inside) if path not in beside] + dicom_in(inside)
    labelled = [stem(path) for path in [*label_files(folder / "labels"), *beside]]
    images = group_channels(files, len(names) if channels is None else channels, labelled)
    labels = labels_of(images, folder / "labels", beside) if channels is None else {}
    warn_left_out(inside, [*files, *beside])
    cases = tuple(
        Case(name, paths, labels.get(name) or _own_label(paths))
        for name, paths in sorted(images.items())
    )
    return Source("folder", folder, cases, names, values)


def _own_label(paths: tuple[Path, ...]) -> Path | None:
    single = len(paths) == 1 and not is_dicom(paths[0])
    return paths[0] if single and has_own_label(paths[0]) else None
