"""The one way to write a file: whole or not at all, on the disk before it has its name."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import UserError, disk_reason


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, and move it to its name.

    Raises UserError where the disk does not take it: what was there before stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk with a RuntimeError
        raise UserError(f"{path}: cannot write: {disk_reason(error)}") from error


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


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, atomically; NaN is refused, since no other program reads it."""
    text = json.dumps(content, indent=1, allow_nan=False)
    atomically(Path(path), lambda part: part.write_text(text, "utf-8"))


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Bring the names in a folder to the disk itself, so that a power failure cannot undo a
    rename.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
