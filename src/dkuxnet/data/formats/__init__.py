"""Scans and label maps in files: one module per format behind `read` and `write`.

To add a format: its module, with an object that has the two methods of `Format`, and its line in
`FORMATS`.
"""

import os
import uuid
from pathlib import Path
from typing import Literal, Protocol

from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import reason, storable

Kind = Literal["image", "label"]

FORMATS: dict[str, str] = {
    ".nii.gz": "dkuxnet.data.formats.nifti:NIFTI",
    ".nii": "dkuxnet.data.formats.nifti:NIFTI",
    ".nrrd": "dkuxnet.data.formats.nrrd:NRRD",
    ".mha": "dkuxnet.data.formats.mha:MHA",
    ".h5": "dkuxnet.data.formats.h5:H5",
}
DICOM = (".dcm", ".zip")  # read only, as folders of slices are; dkuxnet.export writes DICOM


class Format(Protocol):
    """What an entry of `FORMATS` offers.

    `write` may leave half a file: the `write` below makes it whole or nothing.
    """

    def read(self, path: Path, kind: Kind = "image") -> Volume: ...

    def write(self, volume: Volume, path: Path) -> None: ...


def suffix(path: str | Path) -> str:
    """The key of `FORMATS` that `path` ends with, the longest that fits, in any case.

    Raises UserError where none.
    """
    name = Path(path).name.lower()
    fits = [known for known in FORMATS if name.endswith(known)]
    if not fits:
        raise UserError(
            f"{path}: expected a file that ends with {', '.join(FORMATS)}; convert it to one of "
            "these"
        )
    return max(fits, key=len)


def is_dicom(path: str | Path) -> bool:
    """Whether `path` is read as DICOM: a folder, a zip or a .dcm file, by its name alone."""
    path, name = Path(path), Path(path).name.lower()
    return not name.endswith(tuple(FORMATS)) and (name.endswith(DICOM) or path.is_dir())


def says_how_it_lies(path: str | Path) -> bool:
    """Whether a scan's file says how large its voxels are and how the patient lies.

    All formats do, but of h5 only files with an affine. Raises UserError for a broken h5.
    """
    if not str(path).lower().endswith(".h5"):
        return True
    from dkuxnet.data.formats.h5 import H5

    return H5.has_affine(Path(path))


def stem(path: str | Path) -> str:
    """The name of the file without its folder and format suffix: 'a/b.nii.gz' -> 'b'; a DICOM
    folder keeps its whole name.
    """
    path = Path(path)
    if is_dicom(path):
        return path.absolute().name if path.is_dir() else path.stem
    return path.name[: -len(suffix(path))]


def read(path: str | Path, kind: Kind = "image", series_uid: str | None = None) -> Volume:
    """Read a scan or, with `kind="label"`, a label map. series_uid: which one, in a DICOM folder
    or zip of several series.

    Returns the array in the file's own axis order, (X, Y, Z) or (C, X, Y, Z), in the file's own
    number type (in native byte order), and the affine to RAS+ mm. A label map is (X, Y, Z) of
    integers: whole numbers stored as floats become the smallest integer type that holds them.
    Voxels that are NaN or infinite pass: `prepare` judges them.

    Raises UserError, and nothing else, for whatever is wrong with the file.
    """
    path = Path(path)
    if is_dicom(path):
        from dkuxnet.data.dicom.read import read_scan  # pydicom takes its time to import

        if kind == "label":
            raise UserError(
                f"{path}: expected a label map in {', '.join(FORMATS)}, but it is DICOM; convert it"
            )
        return read_scan(path, series_uid)
    return lookup(FORMATS, suffix(path), "format").read(path, kind)


def write(volume: Volume, path: str | Path) -> None:
    """Write `volume` in the format that the suffix of `path` names: the whole file or, on any
    error, no file.

    The array keeps its number type (uint16 too), but bool becomes uint8 and float16 float32: not
    all formats have them. One channel, (1, X, Y, Z), is written as (X, Y, Z). The folder must
    exist. In h5, integers are written as `label`.

    Raises UserError where the folder cannot be written or the format cannot hold the volume.
    """
    path = Path(path)
    ending = suffix(path)
    volume = storable(volume, path)
    if not path.parent.is_dir():
        raise UserError(
            f"{path}: cannot be written: expected the folder {path.parent} to exist; create it"
        )
    beside = path.with_name(f".{uuid.uuid4().hex}{ending}")
    form = lookup(FORMATS, ending, "format")
    try:
        form.write(volume, beside)
        os.replace(beside, path)
    except Exception as error:  # each library raises types of its own
        raise UserError(
            f"{path}: cannot be written: {reason(error)}; check the folder's rights and space"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
