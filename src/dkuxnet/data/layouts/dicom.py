"""DICOM as a source: a tree of series as scanners write it, and scans in a plain folder."""

from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Case, Source
from dkuxnet.data.dicom.tree import holds_dicom, is_zip
from dkuxnet.data.formats import is_dicom
from dkuxnet.data.layouts.files import labels_of
from dkuxnet.data.layouts.label_map import channels_and_labels


def dicom_tree(folder: Path) -> Source:
    """Every series of the tree is a case, see `dicom.series.find_scans` for their names.

    Labels are in folder/labels under these names; else they are the DICOM SEG or RT Structure Set
    that was drawn on the series, see `dicom.labels.find_labels`. The channel is named after the
    modality, so that CT is normalised as CT. A dataset.json may name "labels" and "channel_names"
    as nnU-Net does.
    """
    from dkuxnet.data.dicom.labels import find_labels  # importing pydicom is slow
    from dkuxnet.data.dicom.series import find_scans

    scans = find_scans(folder)
    given = labels_of(scans, folder / "labels")
    others = {name: series for name, series in scans.items() if name not in given}
    labels = given | find_labels(folder, others)
    cases = tuple(
        Case(name, (series.home,), labels.get(name), series.uid)
        for name, series in sorted(scans.items())
    )
    modalities = {series.images[0].modality for series in scans.values()}
    channels = tuple(modalities) if len(modalities) == 1 else ("image",)
    return Source("dicom", folder, cases, *channels_and_labels(folder, channels))


def dicom_in(folder: Path) -> list[Path]:
    """The DICOM scans directly in `folder`, sorted: subfolders of slices, zips, multi-frame files.

    A subfolder "labels" is none.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    shown = (path for path in paths if not path.name.startswith("."))
    return [path for path in shown if is_dicom(path) and _is_scan(path)]


def _is_scan(path: Path) -> bool:
    if path.is_dir():
        return path.name != "labels" and holds_dicom(path)
    if is_zip(path):
        return True
    from dkuxnet.data.dicom.series import is_multi_frame

    try:
        return is_multi_frame(path)
    except UserError:  # damaged: reading it will raise, and the other scans can be used
        return True
