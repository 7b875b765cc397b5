"""The files of a DICOM input: a folder, a zip that is never unpacked, or a single file.

Their number is limited, since a folder may be a whole disk; so is what a zip, which may come from
anybody, unpacks to. Links in a folder are followed, as people link to their data; a zip has none.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from dkuxnet.core.errors import UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.data.checks import reading

Opener = Callable[[], IO[bytes]]

MAX_FILES = 100_000
MAX_ZIP_BYTES = 16 * 2**30  # unpacked
# Voxels of a scan shrink by a factor of 2 to 10, empty slices of up to 1000. Any factor will do for
# a zip that is small even when unpacked.
MAX_ZIP_RATIO = 200
FREE_ZIP_BYTES = 2**29
BYTES_AN_ENTRY = 1024  # of the list of files at the end of a zip
END_BYTES = 2**17  # at the end of a zip, where the records of that list are looked for
HEAD_BYTES = 1024
BARE_START = b"\x08\x00"  # the first group of a data set that has no preamble
STORAGE_CLASS = b"1.2.840.10008.5.1.4.1.1."  # how the SOP class of an image begins
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    """A file of the tree.

    name: its path in the tree, with slashes. open: gives a new stream of its bytes. size: bytes
    that it takes on the disk, packed if it lies in a zip.
    """

    name: str
    open: Opener
    size: int


@contextmanager
def opened(path: Path) -> Iterator[Iterator[Entry]]:
    """The files of the folder, zip or single file `path`, in a fixed order.

    They can be opened inside the block only.

    Raises UserError where there is nothing at `path`, or where it is a zip that is damaged,
    encrypted or too large.
    """
    if path.is_dir():
        yield _in_folder(path)
    elif is_zip(path):
        with opened_zip(path) as archive:
            files = _checked_files(path, archive)
            yield (
                Entry(info.filename, partial(archive.open, info), info.compress_size)
                for info in files
            )
    elif path.is_file():
        yield iter([Entry(path.name, partial(open_regular, path), path.stat().st_size)])
    else:
        raise UserError(f"{path}: expected DICOM files, but there is nothing; check the path")


def is_zip(path: Path) -> bool:
    """Whether `path` is a zip, by its name alone."""
    return path.suffix.lower() == ".zip"


def tree_name(path: Path) -> str:
    """The name of a folder, or of a .zip or .dcm without its suffix."""
    path = path.absolute()
    return path.name if os.path.isdir(path) else path.stem


def place(path: Path, name: str) -> Path:
    """Where the file `name` of the tree `path` is, for messages.

    The name may be a stranger's: control characters are replaced.
    """
    return path / printable(name) if path.is_dir() or is_zip(path) else path


def printable(text: str) -> str:
    """`text` with a question mark for each character that cannot be printed."""
    return "".join(c if c.isprintable() else "?" for c in text)


def head(entry: Entry) -> bytes:
    """The first bytes of a file."""
    with entry.open() as stream:
        return stream.read(HEAD_BYTES)


def has_preamble(first: bytes) -> bool:
    """Whether a file that starts with these bytes says that it is DICOM.

    It then has four letters after a preamble of 128 bytes.
    """
    return first[128:132] == b"DICM"


def may_be_bare(first: bytes) -> bool:
    """Whether a file that starts with these bytes may be DICOM without a preamble."""
    return first.startswith(BARE_START) and STORAGE_CLASS in first


def is_copy(entry: Entry, first: Entry) -> bool:
    """Whether two files hold the same bytes."""
    with entry.open() as stream, first.open() as other:
        while True:
            chunk = stream.read(CHUNK_BYTES)
            if chunk != other.read(CHUNK_BYTES):
                return False
            if not chunk:
                return True


def holds_dicom(path: Path) -> bool:
    """Whether a file of the tree is DICOM by its first bytes.

    Raises UserError as `opened`, and where none is but one cannot be read.
    """
    unreadable: UserError | None = None
    with opened(path) as entries:
        for entry in entries:
            try:
                with reading(place(path, entry.name), "DICOM"):
                    first = head(entry)
            except UserError as error:
                unreadable = unreadable or error
                continue
            if has_preamble(first) or may_be_bare(first):
                return True
    if unreadable:
        raise unreadable
    return False


def _in_folder(root: Path) -> Iterator[Entry]:
    """Regular files, sorted by name, those of a folder before those of its subfolders.

    Linked folders come last, and no folder twice. A link that leads nowhere is yielded, since a
    slice would be missing: opening it raises OSError.
    """
    folders, seen, count = [root], set(), 0
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            found = sorted(os.scandir(folder), key=lambda item: item.name)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be read: {error.strerror}; check the folder's rights"
            ) from error
        inner = [item for item in reversed(found) if item.is_dir()]
        folders += [Path(item.path) for item in inner if not item.is_symlink()]
        folders[:0] = [Path(item.path) for item in inner if item.is_symlink()]
        for item in found:
            lost = item.is_symlink() and not os.path.exists(item.path)
            if item.is_file() or lost:
                count += 1
                _check_count(root, count)
                file = Path(item.path)
                size = 0 if lost else item.stat().st_size
                yield Entry(file.relative_to(root).as_posix(), partial(open_regular, file), size)


@contextmanager
def opened_zip(path: Path, max_files: int = MAX_FILES) -> Iterator[zipfile.ZipFile]:
    """The zip `path`, of which nothing but the list of its files has been read.

    zipfile never unpacks more of a deflated file than the size in that list. Raises UserError where
    `path` is no zip, or where its list is far too long for `max_files`.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a zip of DICOM files, but there is none; check the path")
    try:
        if _list_bytes(path) > max_files * BYTES_AN_ENTRY:  # zipfile makes an object of each entry
            raise UserError(
                f"{path}: expected at most {max_files} files, but its directory is far longer; zip "
                "one series alone"
            )
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: expected a zip file, but: {error}; copy or zip it again"
        ) from error
    with archive:
        yield archive


def _list_bytes(path: Path) -> int:
    """The size of a zip's list of files by the records at its end; 0 where there are none."""
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - END_BYTES))
        tail = file.read()
    sizes = [int.from_bytes(tail[at + 12 : at + 16], "little") for at in _places(tail, b"PK\5\6")]
    if sizes and sizes[-1] == 2**32 - 1:  # zip64 states it in a record of its own
        records = _places(tail, b"PK\6\6")
        sizes = [int.from_bytes(tail[at + 40 : at + 48], "little") for at in records]
    return max(sizes, default=0)


def _places(tail: bytes, mark: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(mark), tail)]


def _checked_files(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of a zip, sorted by name.

    Its list of files is checked as a whole before any of them is opened.
    """
    files = [info for info in archive.infolist() if not info.filename.endswith("/")]
    _check_count(path, len(files))
    for info in files:
        if info.flag_bits & 1:
            raise UserError(f"{path}: is encrypted; zip it again without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks the others without a limit
            raise UserError(
                f"{path}: is packed in a way that is not read here ({info.compress_type}); zip it "
                "with deflate"
            )
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
            "GiB are read; zip one scan alone, or give a folder"
        )
    if unpacked > FREE_ZIP_BYTES and unpacked > MAX_ZIP_RATIO * packed:
        raise UserError(
            f"{path}: unpacks to {unpacked / packed:.0f} times its size, which no scan does; "
            "give the folder instead"
        )
    return sorted(files, key=lambda info: info.filename)


def _check_count(path: Path, count: int) -> None:
    if count > MAX_FILES:
        raise UserError(
            f"{path}: holds more than {MAX_FILES} files; give the folder of the scan itself"
        )
