"""What layouts share: listing scans, fields of dataset.json, paths that stay in the folder."""

import json
import os
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import normalize

from dkuxnet.core.documents import MAX_BYTES, names_a_file, read_json, read_text
from dkuxnet.core.errors import DataWarning, Faults, UserError
from dkuxnet.data.checks import same_name
from dkuxnet.data.formats import READABLE, VOXEL_FILES, longest_suffix, stem, suffix

MAX_LABEL = 2**31 - 1
SEGMENTATION = ".seg.nrrd"  # labels, which 3D Slicer saves beside the scan
MAX_NAMED = 20
# Files that nobody takes for a scan, by their endings, and folders that have a part of their own
DOCUMENTS = {".json", ".txt", ".md", ".csv", ".tsv", ".xlsx", ".xls", ".pdf", ".xml", ".html"}
DOCUMENTS |= {".yaml", ".yml", ".toml", ".log", ".list", ".py", ".ipynb", ".sh", ".bib", ".docx"}
PARTS = {"images", "labels", "imagesTr", "labelsTr", "imagesTs", "labelsTs", "imagesUn"}
PARTS |= {"probabilities", "uncertainty"}
Form = TypeVar("Form", dict[str, Any], list[Any], str)


def images_in(folder: Path) -> list[Path]:
    """The files of `folder` in a known format, sorted by name.

    Hidden ones, such as "._scan.nii.gz" of macOS, are left out.
    """
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if longest_suffix(path.name, READABLE))
    return sorted(path for path in files if not path.name.startswith(".") and path.is_file())


def label_files(folder: Path) -> list[Path]:
    """The label maps, DICOM SEG and RT Structure Sets in a folder of labels, sorted by kind."""
    return images_in(folder) + sorted(folder.glob("[!.]*.dcm"))


def labels_of(
    names: Collection[str], folder: Path, beside: Collection[Path] = ()
) -> dict[str, Path]:
    """The label files in `folder` by the name of their scan, which must be one of `names`.

    beside: more of them, in other folders. Raises UserError for every one without a scan, and for
    every other file that has the name of a case and no label map beside it: the case would be taken
    for unlabelled. All else that is left out gets a DataWarning.
    """
    faults, files = Faults(), label_files(folder)
    scans = {normalize("NFC", name): name for name in names}
    labels, there = {}, short_list(names)
    for name, path in by_stem([*files, *beside]).items():
        if name in scans:
            labels[scans[name]] = path
        else:
            faults.add(
                f"{path}: expected a scan of the same name, '{name}', but found {there}; add or "
                "rename it"
            )
    check_label_files(folder, files, set(names) - set(labels), faults)
    faults.tell()
    return labels


def check_label_files(
    folder: Path, read: Collection[Path], unlabelled: Collection[str], faults: Faults, why: str = ""
) -> None:
    """Note each file of a folder of labels that is not `read` but named after an unlabelled case.

    Warn of the others that are not read; why: as for `warn_left_out`.
    """
    missed, cases = set(), set(unlabelled)
    for path in left_out(folder, read):
        parts = normalize("NFC", path.name).split(".")
        beginnings = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        if case := next((each for each in beginnings if each in cases), None):
            missed.add(path)
            faults.add(
                f"{folder / _shown(path)}: this has the name of case '{case}', which would be "
                f"without a label, but it is not read: {why or _readable()}; convert it, or "
                "take it away"
            )
    warn_left_out(folder, {*read, *missed}, why)


def left_out(folder: Path, used: Collection[Path | None]) -> list[Path]:
    """The files of `folder` that are none of `used`, sorted; and its subfolders that hold scans.

    Documents, hidden files and the voxels that belong to a header are none of them.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    used = set(used)
    headers = {path.name.lower() for path in paths}
    has_mhd = any(name.endswith(".mhd") for name in headers)  # whose voxels may have any name

    def accounted_for(path: Path) -> bool:
        ending = path.suffix.lower()
        header = VOXEL_FILES.get(ending)
        return (
            path.name.startswith(".")
            or path in used
            or ending in DOCUMENTS
            or (header == ".mhd" and has_mhd)
            or (header is not None and f"{path.stem.lower()}{header}" in headers)
            or (path.is_dir() and (_is_part(path.name) or not images_in(path)))
        )

    return [path for path in paths if not accounted_for(path)]


def _is_part(name: str) -> bool:
    return name in PARTS or name.startswith(("labels_", "labelsTr_"))  # of raters


def warn_left_out(folder: Path, used: Collection[Path | None], why: str = "") -> None:
    """Name in a DataWarning all that `left_out` finds; why: these are, where not by the format."""
    if names := [_shown(path) for path in left_out(folder, used)]:
        what = "1 file is" if len(names) == 1 else f"{len(names)} files are"
        warnings.warn(
            f"{folder}: {what} left out: {short_list(names, MAX_NAMED)}; {why or _readable()}",
            DataWarning,
            stacklevel=2,
        )


def _shown(path: Path) -> str:
    if not path.exists():
        return f"{path.name} (a link to nothing)"
    return f"{path.name}/" if path.is_dir() else path.name


def _readable() -> str:
    return f"scans end with {', '.join(READABLE)}"


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """File name without suffix -> file.

    Raises UserError where two files (a.nii.gz, a.nrrd) come to one name.
    """
    found: dict[str, Path] = {}
    faults = Faults()
    for path in files:
        name = stem(path)
        if name in found:
            faults.add(named_twice(name, found[name], path))
        found[name] = path
    faults.tell()
    return found


def named_twice(name: str, first: Path, second: Path) -> str:
    """The fault that two files of a folder come to one name."""
    return (
        f"{second.parent}: expected one file named '{name}', got {first.name} and {second.name}; "
        "remove one"
    )


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """The fields of folder/dataset.json. Raises UserError where it is missing or no JSON object."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{path}: expected a description of the data, but there is none; add it or use layout "
            "'folder'"
        )
    fields = read_json(path, f"{path}: expected JSON")
    if not isinstance(fields, dict):
        raise UserError(
            f"{path}: expected a JSON object, but it is a {type(fields).__name__}; repair the file"
        )
    return fields


def case_list(path: Path) -> list[str]:
    """The names in a list file, one a line. Raises UserError where they cannot name a case."""
    try:
        lines = [normalize("NFC", line.strip()) for line in read_text(path, MAX_BYTES).splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a list of case names, but it cannot be read ({error}); repair it"
        ) from error
    if wrong := next((line for line in lines if line and not names_a_file(line)), None):
        raise UserError(f"{path}: expected names of folders, one a line, got {wrong!r}; correct it")
    return [line for line in lines if line]


def field(folder: Path, fields: dict[str, Any], key: str, form: type[Form]) -> Form:
    """fields[key]. Raises UserError naming file and key where it is missing or not a `form`."""
    what = {"dict": "an object", "list": "a list", "str": "a text"}[form.__name__]
    if key not in fields:
        raise UserError(
            f"{folder / 'dataset.json'}: expected the key '{key}' ({what}), but there is none; add "
            "it"
        )
    if not isinstance(fields[key], form):
        raise UserError(
            f"{folder / 'dataset.json'}: expected '{key}' to be {what}, got "
            f"{shortened(fields[key])}; fix it"
        )
    value: Form = fields[key]
    return value


def channel_names(folder: Path, fields: dict[str, Any], key: str) -> tuple[str, ...]:
    """{"0": "MRI", "1": "CT"} under `key` as ("MRI", "CT")."""
    table = field(folder, fields, key, dict)
    names = [table.get(str(index)) for index in range(len(table))]
    texts = tuple(name for name in names if isinstance(name, str))
    if not texts or len(texts) < len(table):
        raise UserError(
            f"{folder / 'dataset.json'}: expected '{key}' to count channels from '0', as in "
            f'{{"0": "MRI"}}, got {shortened(table)}; correct it'
        )
    return texts


def listed_file(folder: Path, case: str, entry: Any) -> Path:
    """The file in `folder` that dataset.json names for `case`.

    Raises UserError where it is missing or elsewhere.
    """
    where = f"{folder / 'dataset.json'}: case '{case}'"
    if not isinstance(entry, str) or not entry:
        raise UserError(f"{where}: expected the path of a file, got {shortened(entry)}; correct it")
    relative = os.path.normpath(entry)
    # Links are followed, since people link to their data. A path that leads out of the folder is a
    # mistake or an attack.
    if os.path.isabs(entry) or relative.split(os.sep)[0] == "..":
        raise UserError(
            f"{where}: expected a path inside the folder, got '{entry}'; move or link the file "
            "into it"
        )
    suffix(relative)
    path = same_name(folder / relative)
    if not os.path.isfile(path):
        raise UserError(
            f"{where}: expected the file {path}, but there is none; add it or take it off the list"
        )
    return path


def short_list(names: Iterable[str], most: int = 5) -> str:
    """The first names in alphabetical order, for messages."""
    names = sorted(names)
    return (", ".join(names[:most]) + (", ..." if len(names) > most else "")) or "nothing"


def shortened(value: Any, most: int = 80) -> str:
    """A value of a JSON file, for messages."""
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + " ..."
