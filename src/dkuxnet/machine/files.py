"""The one way to write a file: whole or not at all, on the disk before it has its name."""

import glob
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dkuxnet.core.errors import UserError, disk_reason

PART = ".part-"  # what the name of a file begins with until it is whole


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file beside `path`, flush it to the disk, and move it to its name.

    The new file's name ends as that of `path`, is not to be guessed, and is made here with the
    rights that the umask leaves. Raises UserError where the disk does not take it: what was there
    before stays. What a killed writer left an hour ago or earlier is removed.
    """
    name = path.name[-100:].lower() if path.suffix else f"{path.name[-95:]}.part"  # torch wants an ending
    part = path.with_name(f"{PART}{secrets.token_hex(8)}-{name}")
    try:
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            made = os.fstat(descriptor)
            os.close(descriptor)
            remove_parts(path.parent, name, made.st_mtime - 3600)
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.chmod(made.st_mode)  # some writers put a private file of their own in its place
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk with a RuntimeError
        why = disk_reason(error)
        if not getattr(error, "errno", None):  # a library's own words
            why += "; look at the rights and space there"
        raise UserError(f"{path}: cannot write: {why}") from error


def remove_parts(folder: Path, name: str = "", before: float = math.inf) -> None:
    """Remove what writers of `name` (any, where empty) that were killed left in a folder.

    before: only what was last changed before this time.
    """
    for left in folder.glob(f"{PART}*-{glob.escape(name)}" if name else f"{PART}*"):
        with suppress(OSError):
            if left.stat().st_mtime < before:
                left.unlink()


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
    """Add to a file: all of it or, where the disk does not take it, nothing and a UserError."""
    before = None
    try:
        path.parent.mkdir(exist_ok=True)
        before = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        if before is not None:
            with suppress(OSError):
                os.truncate(path, before)
        raise UserError(f"{path}: cannot write: {disk_reason(error)}") from error


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a power failure cannot undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
