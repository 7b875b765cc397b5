"""Scans and label maps in files: one module per format behind `peek`, `read` and `write`.

To add a format: its module, with an object that has the three methods of `Format`, and its line in
`FORMATS`.
"""

import os
from collections import ChainMap
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol
from unicodedata import normalize

from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import Header, reason, storable
from dkuxnet.data.dicom.tree import tree_name
from dkuxnet.machine.files import atomically

Kind = Literal["image", "label"]

FORMATS: dict[str, str] = {
    ".nii.gz": "dkuxnet.data.formats.nifti:NIFTI",
    ".nii": "dkuxnet.data.formats.nifti:NIFTI",
    ".nrrd": "dkuxnet.data.formats.nrrd:NRRD",
    ".mha": "dkuxnet.data.formats.mha:MHA",
    ".h5": "dkuxnet.data.formats.h5:H5",
}
PLACE_BYTES = 540  # of `Volume.nifti`, at most
# Read only, as others write them; of one scan in two files, these name the header.
READ_ONLY = {
    ".mgz": "dkuxnet.data.formats.mgh:MGH",
    ".mgh": "dkuxnet.data.formats.mgh:MGH",
    ".mhd": "dkuxnet.data.formats.mha:MHD",
    ".hdr": "dkuxnet.data.formats.nifti:NIFTI",
}
READABLE = ChainMap(FORMATS, READ_ONLY)
VOXEL_FILES = {".raw": ".mhd", ".zraw": ".mhd", ".img": ".hdr"}  # ending -> that of its header
DICOM = (".dcm", ".zip")  # read only, as folders of slices are; dkuxnet.data.dicom writes DICOM SEG


class Format(Protocol):
    """What an entry of `FORMATS` offers."""

    def peek(self, path: Path, kind: Kind = "image") -> Header:
        """Read the header and no voxel."""

    def read(self, path: Path, kind: Kind = "image") -> Volume:
        """Read the volume, whose size is that of the header which `peek` gives."""

    def write(self, volume: Volume, path: Path) -> None:
        """Write the volume. Half a file may be left: `write` below makes it whole or nothing."""


def longest_suffix(name: str, known: Iterable[str]) -> str | None:
    """The longest of the `known` suffixes that `name` ends with, in any case; None without one."""
    return max((each for each in known if name.lower().endswith(each)), key=len, default=None)


def suffix(path: str | Path) -> str:
    """The key of `READABLE` that `path` ends with. Raises UserError where it ends with none."""
    found = longest_suffix(Path(path).name, READABLE)
    if found is None:
        header = VOXEL_FILES.get(Path(path).suffix.lower())
        what = f"give its header, {header}, instead" if header else "convert it to one of these"
        raise UserError(f"{path}: expected a file that ends with {', '.join(READABLE)}; {what}")
    return found


def is_dicom(path: str | Path) -> bool:
    """Whether `path` is read as DICOM: a folder, a zip or a .dcm file, by its name alone."""
    name = Path(path).name
    if longest_suffix(name, READABLE):
        return False
    return longest_suffix(name, DICOM) is not None or os.path.isdir(path)  # False for a bad name


def has_geometry(path: str | Path) -> bool:
    """Whether a scan's file says how large its voxels are and how the patient lies.

    All formats do, except h5 without an affine. Raises UserError for a broken h5.
    """
    if not str(path).lower().endswith(".h5"):
        return True
    from dkuxnet.data.formats.h5 import H5

    return H5.has_affine(Path(path))


def has_own_label(path: str | Path) -> bool:
    """Whether the file of a scan holds its label map too, as h5 may.

    Raises UserError for a broken h5.
    """
    if not str(path).lower().endswith(".h5"):
        return False
    from dkuxnet.data.formats.h5 import H5

    return H5.has_label(Path(path))


def stem(path: str | Path) -> str:
    """The name of the file without folder and format suffix: 'a/b.nii.gz' -> 'b'.

    A DICOM folder keeps its whole name. In the composed form of Unicode (NFC), so that files of one
    case have one name, whichever system wrote them.
    """
    path = Path(path)
    name = tree_name(path) if is_dicom(path) else path.name[: -len(suffix(path))]
    return normalize("NFC", name)


def peek(path: str | Path, kind: Kind = "image", series_uid: str | None = None) -> Header:
    """What the header of a scan promises; no voxel is read. Arguments and errors as for `read`."""
    path = Path(path)
    if is_dicom(path):
        from dkuxnet.data.dicom.series import one_series  # importing pydicom is slow

        return one_series(path, series_uid).header
    return _format_of(path).peek(path, kind)


def read(path: str | Path, kind: Kind = "image", series_uid: str | None = None) -> Volume:
    """Read a scan or, with `kind="label"`, a label map.

    series_uid: which series, in a DICOM folder or zip of several.

    Returns the array in the file's own axis order, (X, Y, Z) or (C, X, Y, Z), in the file's own
    number type (in native byte order), and the affine to RAS+ mm. A label map is (X, Y, Z) of
    integers: whole numbers stored as floats become the smallest integer type that holds them.
    Voxels that are NaN or infinite pass: `prepare` judges them.

    Raises UserError, and nothing else, for whatever is wrong with the file.
    """
    path = Path(path)
    if is_dicom(path):
        from dkuxnet.data.dicom.read import read_scan  # importing pydicom is slow

        if kind == "label":
            raise UserError(
                f"{path}: expected a label map in {', '.join(FORMATS)}, but it is DICOM; convert it"
            )
        return read_scan(path, series_uid)
    return _format_of(path).read(path, kind)


def place_of(text: str) -> bytes:
    """`Volume.nifti` from its hexadecimal; empty where it is none."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def write(volume: Volume, path: str | Path) -> None:
    """Write `volume` in the format that the suffix of `path` names: the whole file or no file.

    The array keeps its number type (uint16 too), but bool becomes uint8 and float16 float32: not
    all formats have them. One channel, (1, X, Y, Z), is written as (X, Y, Z). The folder must
    exist. In h5, integers are written as `label`.

    Raises UserError where the folder cannot be written or the format cannot hold the volume.
    """
    path = Path(path)
    form = _format_of(path)
    if suffix(path) in READ_ONLY:
        raise UserError(f"{path}: cannot write: this format is read only; choose .nii.gz")
    volume = storable(volume, path)
    if not path.parent.is_dir():
        raise UserError(
            f"{path}: cannot write: expected the folder {path.parent} to exist; create it"
        )

    def written(part: Path) -> None:
        try:
            form.write(volume, part)
        except (UserError, OSError):
            raise
        except Exception as error:  # each library raises types of its own
            raise UserError(
                f"{path}: cannot write: {reason(error)}; check the folder's rights and space"
            ) from error

    atomically(path, written)


def _format_of(path: Path) -> Format:
    form: Format = lookup(READABLE, suffix(path), "format")
    return form
