"""A plain folder of scans, for data in none of the field's layouts."""

from pathlib import Path

from dkuxnet.core.types import Case, Source
from dkuxnet.data.formats import has_own_label, is_dicom, stem
from dkuxnet.data.layouts.channels import group_channels
from dkuxnet.data.layouts.dicom import dicom_in
from dkuxnet.data.layouts.files import channels_and_labels, images_in, labels_of, warn_left_out


def plain_folder(folder: Path, channels: int | None = None) -> Source:
    """Scans in folder/images or in `folder` itself, labels of the same name in folder/labels.

    Cases are sorted by name. A scan may be a subfolder, zip or multi-frame file of DICOM. An h5
    file may hold its own label. A dataset.json may name "labels" and "channel_names" as nnU-Net
    does. channels: see `group_channels`; None: as many as dataset.json names, or one.
    """
    names, values = channels_and_labels(folder, ("image",))
    inside = folder / "images" if (folder / "images").is_dir() else folder
    files = images_in(inside) + dicom_in(inside)
    labelled = [stem(path) for path in images_in(folder / "labels")]
    images = group_channels(files, len(names) if channels is None else channels, labelled)
    labels = labels_of(images, folder / "labels")
    warn_left_out(inside, files)
    cases = tuple(
        Case(name, paths, labels.get(name) or _own_label(paths))
        for name, paths in sorted(images.items())
    )
    return Source("folder", folder, cases, names, values)


def _own_label(paths: tuple[Path, ...]) -> Path | None:
    single = len(paths) == 1 and not is_dicom(paths[0])
    return paths[0] if single and has_own_label(paths[0]) else None
