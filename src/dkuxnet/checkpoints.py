"""The states that a training resumes from: a folder with the last two, each file named by its step and its own checksum.

CHECKPOINTS/00000400-1f6c..9a.pt: the step, and the SHA-256 of the file, which one rename brings into being together with the
content. So a file is whole and unchanged, or it is known not to be, and the one before it stands in.
"""

import hashlib
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from dkuxnet.errors import DataWarning, UserError, disk_reason

VERSION = 1
KEPT = 2
NAME = re.compile(r"(\d{8,})-([0-9a-f]{64})\.pt")


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` (tensors and primitives; its "step" names the file) and remove all but the last two.

    Raises UserError where the disk does not take it: what was saved before stays.
    """
    import torch

    part = folder / "new.part"
    try:
        folder.mkdir(exist_ok=True)
        try:
            with part.open("wb") as file:
                hashed = Hashed(file)
                torch.save({"version": VERSION, **state}, hashed)
                file.flush()
                os.fsync(file.fileno())
            path = folder / f"{state['step']:08d}-{hashed.sha256.hexdigest()}.pt"
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        flush(folder)
        for old in listed(folder):
            if old != path and old not in listed(folder)[:KEPT]:
                old.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk with a RuntimeError
        raise UserError(f"{folder}: cannot save a checkpoint: {disk_reason(error)}") from error
    return path


class Hashed:
    """A file that is written to, and the SHA-256 of what should stand in it: not of what a failing disk made of it."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def load(folder: Path) -> dict[str, Any]:
    """The newest state that is whole, on the CPU. A broken newer one is warned of by its name and passed over.

    Raises UserError where there is none, or none that is whole.
    """
    found = listed(folder)
    if not found:
        raise UserError(f"{folder.parent} has no checkpoint yet: nothing to resume; start it anew in another folder")
    for path in found:
        try:
            return read(path)
        except UserError as error:
            if path == found[-1]:
                raise
            warnings.warn(f"{error}; going on from the checkpoint before it", DataWarning, stacklevel=2)
    raise AssertionError("unreachable")


def read(path: Path) -> dict[str, Any]:
    """One checkpoint. Nothing in it is executed, and it takes no more memory than the file has bytes, about.

    Raises UserError where its bytes are not those that its name promises, or they are no checkpoint.
    """
    import torch

    match = NAME.fullmatch(path.name)
    try:
        if match is None or checksum(path) != match[2]:
            raise UserError(f"{path}: damaged: its content is not what its name promises")
        with zipfile.ZipFile(path) as archive:  # torch writes all entries as they are: a packed one could unpack without end
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UserError(f"{path}: not a checkpoint of this program: it is compressed")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch and zipfile raise many kinds for a damaged file
        raise UserError(f"{path}: damaged or not a checkpoint of this program ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise UserError(f"{path}: not a checkpoint of version {VERSION}, which this program reads")
    return state


def listed(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=_age, reverse=True)


def _age(path: Path) -> tuple[int, int]:
    return int(path.name.split("-")[0]), path.stat().st_mtime_ns


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Bring the names in a folder to the disk itself, so that a power failure cannot undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
