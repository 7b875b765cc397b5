"""The one way to write a file: whole or not at all, on the disk before it has its name.

And never through a link that somebody put in the place of what is written.
"""

import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.regular import open_regular

PART = ".part-"  # what the name of a file or folder begins with until it is whole
MADE_BY = re.compile(rf"{re.escape(PART)}([0-9a-f]{{8}})-(\d{{1,9}})-[0-9a-f]{{16}}-.*", re.DOTALL)
LEFT_SECONDS = 3600  # after which a file is taken for left, where its writer cannot be known
ENDING = 20  # characters of a name that its part keeps: writers want its suffix


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file beside `path`, flush it to the disk, and move it to its name.

    The new file's name ends as that of `path`, is not to be guessed, and is made here with the
    rights that the umask leaves. A link in the place of `path` is replaced, not followed. Raises
    UserError where the disk does not take it: what was there before stays. What killed writers
    left in the folder is removed.
    """
    part = _part(path)
    try:
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            remove_parts(path.parent, path.name)
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.chmod(mode)  # some writers put a private file of their own in its place
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk with a RuntimeError
        why = disk_reason(error)
        if not getattr(error, "errno", None):  # a library's own words
            why += "; look at the rights and space there"
        raise UserError(f"{path}: cannot write: {why}") from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new hidden folder beside `path`, which takes its name when the block has ended well.

    Else nothing stays, nor any parent that was made for it. Raises UserError where the disk does
    not take it. What killed programs left beside `path` is removed.
    """
    parents = missing_parents(path)
    part = _part(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_parts(path.parent)
            part.mkdir()
        except OSError as error:
            raise UserError(f"{path}: cannot write there: {disk_reason(error)}") from error
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write: {disk_reason(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        remove_empty(parents)


def missing_parents(path: Path) -> list[Path]:
    """The folders above `path` that are not there, deepest first."""
    return [parent for parent in path.absolute().parents if not parent.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove the folders in their order, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def remove_parts(folder: Path, name: str = "", alone: bool = False) -> None:
    """Remove the files and folders in `folder` that killed programs left before they were whole.

    Those of a process of this machine that has ended; and where that cannot be known, files that
    were to become `name` and were last changed an hour ago. alone: nobody else writes here, so all
    of them were left.
    """
    now = folder.stat().st_mtime  # by the clock of the disk: the writer has just made its own part
    for left in folder.glob(f"{PART}*"):
        with suppress(OSError):
            mine = name and left.name.endswith(name[-ENDING:].lower())
            if alone or _is_gone(left.name):
                _remove(left)
            elif mine and left.lstat().st_mtime < now - LEFT_SECONDS:
                left.unlink()


def inside(folder: Path, *names: str) -> Path:
    """The place folder/names, to which the program writes.

    Which folder it is, link or not, its user has chosen; what lies in it may be a stranger's.
    Raises UserError where one of the names is a link: what is written would land somewhere else.
    """
    path = folder
    for name in names:
        path = path / name
        _refuse_link(path)
    return path


def refuse_links(folder: Path) -> None:
    """Raise UserError where anything in the folder, however deep, is a link; see `inside`."""
    for path in folder.rglob("*"):
        _refuse_link(path)


def write_bytes(path: Path, content: bytes) -> None:
    """A file of these bytes. Raises UserError as `atomically` does."""
    atomically(path, lambda part: part.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """A file of this text in UTF-8. Raises UserError as `atomically` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Indented JSON; NaN is refused, since no other program reads it."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def append(path: Path, content: bytes) -> None:
    """Add to a file: all of it or, where the disk does not take it, nothing and a UserError.

    Also a UserError where `path` is a link, or anything else than a regular file.
    """
    _refuse_link(path)
    try:
        path.parent.mkdir(exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        with open(path, "ab", 0, opener=_following_nothing) as file:
            before = os.fstat(file.fileno()).st_size
            rest = memoryview(content)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise UserError(f"{path}: cannot write: {disk_reason(error)}") from error


def checksum(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal digits. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a power failure cannot undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _part(path: Path) -> Path:
    """Beside `path`, a name that nobody can guess and that says which process makes it."""
    ending = path.name[-ENDING:].lower()  # writers want a suffix, and it in small letters
    ending = ending if path.suffix else f"{ending}.part"
    return path.with_name(f"{PART}{_here()}-{os.getpid()}-{secrets.token_hex(8)}-{ending}")


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _is_gone(name: str) -> bool:
    """Whether the process that made a part by this name ran here, and has ended."""
    made_by = MADE_BY.fullmatch(name)
    if made_by is None or made_by[1] != _here() or os.name != "posix":
        return False
    try:
        os.kill(int(made_by[2]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


@functools.cache
def _here() -> str:
    """What tells apart places that share a disk and count their processes each for itself.

    That is machines and containers. A lock would not do: on a network disk that of a folder is
    known to its own machine alone.
    """
    told = [platform.node()]
    with suppress(OSError):
        told.append(Path("/etc/machine-id").read_text())
    with suppress(OSError):
        told.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(
            f"{path} is a link, and what is written there would land somewhere else; replace it "
            "by what it points to"
        )


def _following_nothing(path: str, flags: int) -> int:
    """A link is refused, and a named pipe opened at once where it has a reader, else refused."""
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags | extra, 0o666)
