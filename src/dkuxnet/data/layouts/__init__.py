"""Which files of a folder belong to which case: the layouts that the field's data sets have."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dkuxnet.core.documents import names_a_file
from dkuxnet.core.errors import Faults, UserError
from dkuxnet.core.lookup import lookup, unknown
from dkuxnet.core.types import Case, Source
from dkuxnet.data.dicom.tree import holds_dicom
from dkuxnet.data.layouts.atrial import BENCHMARK_FOLDER
from dkuxnet.data.layouts.dicom import dicom_in
from dkuxnet.data.layouts.files import images_in, read_dataset_json, short_list
from dkuxnet.data.layouts.label_map import label_map
from dkuxnet.data.layouts.nnunet_v1 import is_nnunet_v1
from dkuxnet.data.outlined import not_labelled

LAYOUTS: dict[str, str] = {
    "nnunet": "dkuxnet.data.layouts.dataset_json:nnunet",
    "nnunet-v1": "dkuxnet.data.layouts.nnunet_v1:nnunet_v1",
    "msd": "dkuxnet.data.layouts.dataset_json:msd",
    "la-h5": "dkuxnet.data.layouts.atrial:la_h5",
    "la-challenge": "dkuxnet.data.layouts.atrial:la_challenge",
    "dicom": "dkuxnet.data.layouts.dicom:dicom_tree",
    "folder": "dkuxnet.data.layouts.folder:plain_folder",
}


def find_source(folder: str | Path, layout: str = "auto", channels: int | None = None) -> Source:
    """The cases of `folder`; no voxel is read.

    layout: a key of `LAYOUTS`, or "auto" to decide by what is there. channels: that a plain folder
    is looked at for, see `plain_folder`. The names of cases are unique and can name files. Raises
    UserError where the folder, the layout or a file that the folder's own lists name is missing or
    not as the layout has it; gives a DataWarning that names what is left out.
    """
    folder = Path(folder)
    if layout != "auto" and layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    if not folder.exists():
        raise UserError(f"{folder}: expected a folder of scans, but there is none; check the path")
    if not folder.is_dir():
        raise UserError(
            f"{folder}: expected a folder of scans, but this is a file; give the folder that holds "
            "it"
        )
    name = detect(folder) if layout == "auto" else layout
    given = {"channels": channels} if name == "folder" and channels is not None else {}
    source: Source = lookup(LAYOUTS, name, "layout")(folder, **given)
    if not source.cases:
        raise UserError(
            f"{folder}: expected scans in the layout {source.layout}, but it holds none; add scans"
        )
    _check_names(folder, source.cases)
    return _with_label_map(source)


def detect(folder: Path) -> str:
    """The layout that `folder` looks like. Raises UserError where it looks like none."""
    if (folder / "dataset.json").is_file():
        fields = read_dataset_json(folder)
        if "training" in fields and "file_ending" not in fields:
            return "nnunet-v1" if is_nnunet_v1(folder, fields) else "msd"
        if "dataset" in fields or (folder / "imagesTr").is_dir():
            return "nnunet"
    if (folder / BENCHMARK_FOLDER).is_dir() or any(folder.glob("*/mri_norm2.h5")):
        return "la-h5"
    if any(folder.glob("*/lgemri.nrrd")):
        return "la-challenge"
    images = folder / "images"
    if images_in(images) or dicom_in(images) or images_in(folder):
        return "folder"
    if holds_dicom(folder):
        return "dicom"
    if images.is_dir():
        return "folder"
    found = short_list(path.name for path in folder.iterdir())
    raise UserError(
        f"{folder}: expected scans in one of the layouts {', '.join(LAYOUTS)}, but it holds "
        f"{found}; give the folder of the data set itself"
    )


def _with_label_map(source: Source) -> Source:
    """The source with what its dataset.json says of labels beside the classes."""
    folder = source.folder
    fields = read_dataset_json(folder) if (folder / "dataset.json").is_file() else {}
    left_out = not_labelled(folder, fields)
    if "labels" not in fields or source.labels is None:
        return replace(source, not_labelled=left_out)
    found = label_map(folder, fields)
    return replace(
        source,
        ignore=found.ignore,
        not_labelled=left_out,
        regions=dict(found.regions),  # what other processes get must be plain
        same=dict(found.same),
    )


def _check_names(folder: Path, cases: Iterable[Case]) -> None:
    """Check that each name is used once and can name a file: outputs are named after the case."""
    seen: dict[str, Case] = {}
    faults = Faults()
    for case in cases:
        if not names_a_file(case.name):
            faults.add(
                f"{folder}: expected a case name without slash or leading dot, got {case.name!r}; "
                "rename it"
            )
        if case.name in seen:
            first, second = seen[case.name].images[0].name, case.images[0].name
            faults.add(
                f"{folder}: expected one case named '{case.name}', got two ({first}, {second}); "
                "rename one"
            )
        seen[case.name] = case
    faults.tell()
