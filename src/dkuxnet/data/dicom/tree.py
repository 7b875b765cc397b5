"""The files of a DICOM input: a folder's, those of a zip that is never unpacked, or the one file
itself.

Bounded, because a folder may be a whole disk and a zip may come from anybody: a number of files,
and for a zip how much it may unpack to. No link is followed: what lies outside the folder is not
the user's input.
"""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dkuxnet.core.errors import UserError
from dkuxnet.data.checks import reading

MAX_FILES = 100_000
MAX_ZIP_BYTES = 16 * 2**30  # unpacked
# Voxels of a scan shrink by 2 to 10, empty slices by up to 1000. A zip may shrink a lot where it is
# small even when unpacked.
MAX_ZIP_RATIO = 200
FREE_ZIP_BYTES = 2**29
HEAD_BYTES = 1024


@dataclass(frozen=True)
class Entry:
    """A file of the tree. name: its path in the tree, with slashes. open: a new stream of its
    bytes.
    """

    name: str
    open: Callable[[], BinaryIO]


@contextmanager
def opened(path: Path) -> Iterator[Iterator[Entry]]:
    """The files of the folder, zip or single file `path`, in a fixed order; their streams can be
    had inside the block.

    Raises UserError where there is nothing at `path`, or where it is a zip that is damaged,
    encrypted or too large.
    """
    if path.is_dir():
        yield _in_folder(path)
    elif path.suffix.lower() == ".zip":
        with _opened_zip(path) as archive:
            yield (Entry(info.filename, _opener(archive, info)) for info in _checked(path, archive))
    elif path.is_file():
        yield iter([Entry(path.name, lambda: path.open("rb"))])
    else:
        raise UserError(f"{path}: expected DICOM files, but there is nothing; check the path")


def place(path: Path, name: str) -> Path:
    """Where the file `name` of the tree `path` is, for messages: control characters of a
    stranger's zip are left out.
    """
    inside = "".join(c if c.isprintable() else "?" for c in name)
    return path / inside if path.is_dir() or path.suffix.lower() == ".zip" else path


def head(entry: Entry) -> bytes:
    """The first bytes of a file."""
    with entry.open() as stream:
        return stream.read(HEAD_BYTES)


def is_dicom(first: bytes) -> bool:
    """Whether a file that starts with these bytes says that it is DICOM: four letters behind a
    preamble of 128 bytes.
    """
    return first[128:132] == b"DICM"


def holds_dicom(path: Path) -> bool:
    """Whether a file of the tree says that it is DICOM. Raises UserError as `opened`."""
    with opened(path) as entries:
        for entry in entries:
            with reading(place(path, entry.name), "DICOM"):
                if is_dicom(head(entry)):
                    return True
    return False


def _in_folder(root: Path) -> Iterator[Entry]:
    """Regular files, those of a folder before those of its subfolders, each in the order of their
    names.
    """
    folders, count = [root], 0
    while folders:
        folder = folders.pop()
        try:
            found = sorted(os.scandir(folder), key=lambda item: item.name)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be read: {error.strerror}; check the folder's rights"
            ) from error
        folders += [
            Path(item.path) for item in reversed(found) if item.is_dir(follow_symlinks=False)
        ]
        for item in found:
            if item.is_file(follow_symlinks=False):
                count += 1
                _check_count(root, count)
                file = Path(item.path)
                yield Entry(file.relative_to(root).as_posix(), _file_opener(file))


def _file_opener(file: Path) -> Callable[[], BinaryIO]:
    return lambda: file.open("rb")


@contextmanager
def _opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise UserError(f"{path}: expected a zip of DICOM files, but there is none; check the path")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: expected a zip file, but: {error}; copy or zip it again"
        ) from error
    with archive:
        yield archive


def _checked(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of a zip in the order of their names, all of it judged by its list before one is
    opened.
    """
    files = [info for info in archive.infolist() if not info.filename.endswith("/")]
    _check_count(path, len(files))
    for info in files:
        if info.flag_bits & 1:
            raise UserError(f"{path}: is encrypted; zip it again without a password")
        inside = PurePosixPath(info.filename.replace("\\", "/"))
        if (
            not inside.parts
            or inside.is_absolute()
            or ".." in inside.parts
            or ":" in inside.parts[0]
        ):
            raise UserError(
                f"{path}: names the file {info.filename!a}, which lies outside of it; zip the "
                "folder again"
            )
    unpacked, packed = sum(info.file_size for info in files), path.stat().st_size
    if unpacked > MAX_ZIP_BYTES:
        raise UserError(
            f"{path}: unpacks to {unpacked / 2**30:.1f} GiB, at most {MAX_ZIP_BYTES / 2**30:.0f} "
            "GiB are read; "
            "zip one scan alone, or give a folder"
        )
    if unpacked > FREE_ZIP_BYTES and unpacked > MAX_ZIP_RATIO * packed:
        raise UserError(
            f"{path}: unpacks to {unpacked / packed:.0f} times its size, no scan does; give the "
            "folder instead"
        )
    return sorted(files, key=lambda info: info.filename)


def _opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    return lambda: archive.open(info)


def _check_count(path: Path, count: int) -> None:
    if count > MAX_FILES:
        raise UserError(
            f"{path}: holds more than {MAX_FILES} files; give the folder of the scan itself"
        )
