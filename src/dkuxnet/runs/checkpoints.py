"""The last two states of a training, each file named by its step and its own checksum.

CHECKPOINTS/00000400-1f6c..9a.safetensors: the step, and the SHA-256 of the file, which one rename
brings into being together with the content. So a file is whole and unchanged, or it is known not to
be, and the one before it stands in. See `state_file` for what is in it. Version 1 ended in .pt and
held pickled data; it is not read any more.
"""

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

from dkuxnet.core.documents import reason
from dkuxnet.core.errors import DataWarning, UserError, disk_reason
from dkuxnet.machine.files import checksum, flush, remove_parts, write_bytes

VERSION = 2
KEPT = 2
NAME = re.compile(r"(\d{8,})-([0-9a-f]{64})\.safetensors")


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state`, tensors and primitives whose "step" names the file; keep the last two.

    Raises UserError where the disk does not take it: what was saved before stays.
    """
    from dkuxnet.runs.state_file import state_bytes

    content = state_bytes(state, VERSION)
    path = folder / f"{state['step']:08d}-{hashlib.sha256(content).hexdigest()}.safetensors"
    try:
        folder.mkdir(exist_ok=True)
        remove_parts(folder, alone=True)  # one training at a time saves here
        write_bytes(path, content)
        flush(folder)
        for old in listed(folder):
            if old != path and old not in listed(folder)[:KEPT]:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot save a checkpoint: {disk_reason(error)}") from error
    return path


def load(folder: Path) -> dict[str, Any]:
    """The newest state that is whole, on the CPU.

    A broken newer one is warned of by its name and passed over.

    Raises UserError where there is none, or none that is whole.
    """
    found = listed(folder)
    if not found:
        if folder.is_dir() and any(folder.glob("*.pt")):
            raise UserError(
                f"{folder} holds checkpoints of version 1, which this program does not read; "
                "finish that training "
                "with the program that began it, or start it anew in another folder"
            )
        raise UserError(
            f"{folder.parent} has no checkpoint yet: nothing to resume; start it anew in another "
            "folder"
        )
    for path in found:
        try:
            return read(path)
        except UserError as error:
            if path == found[-1]:
                raise
            warnings.warn(
                f"{error}; going on from the checkpoint before it", DataWarning, stacklevel=2
            )
    raise AssertionError("unreachable")


def read(path: Path) -> dict[str, Any]:
    """One checkpoint: data alone, no larger in memory than in the file, see `read_state`.

    Raises UserError where its bytes are not those that its name promises, or they are no
    checkpoint.
    """
    from dkuxnet.runs.state_file import read_state

    match = NAME.fullmatch(path.name)
    try:
        if match is None or checksum(path) != match[2]:
            raise UserError(f"{path}: damaged: its content is not what its name promises")
        state = read_state(path, VERSION)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
    except UserError:
        raise
    # safetensors has an error of its own, and a tree that is no state raises many kinds
    except Exception as error:
        raise UserError(
            f"{path}: damaged or not a checkpoint of this program ({type(error).__name__}: "
            f"{reason(error)})"
        ) from error
    return state


def listed(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=_age, reverse=True
    )


def _age(path: Path) -> tuple[int, int]:
    return int(path.name.split("-")[0]), path.stat().st_mtime_ns
