"""`--keep FOLDER`: scans and results that remain after the session, on request."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.machine.files import whole_folder
from dkuxnet.serve.names import shown
from dkuxnet.serve.tasks import Task


def check_keep(folder: Path) -> None:
    """Create `folder` if missing. Raises UserError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--keep {folder}: cannot write there: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--keep {folder}: cannot write there; choose another folder")


def keep_result(folder: Path, task: Task, results: dict[str, Any]) -> None:
    """Copy scan, label map and results into FOLDER/TIME_TOKEN, which appears only once complete.

    The sender's name for the scan is in result.json and names no file. Raises UserError where the
    disk is full.
    """
    whole = folder / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_{task.id[:8]}"
    try:
        with whole_folder(whole) as part:
            part.chmod(0o700)  # a patient's scan
            shutil.copyfile(task.scan, part / task.scan.name)
            shutil.copyfile(task.label, part / task.label.name)
            text = json.dumps({"name": shown(task.name), **results}, indent=1, ensure_ascii=False)
            (part / "result.json").write_text(text, "utf-8")
    except UserError as error:  # it names the folder, which is nobody's business
        why = disk_reason(error.__cause__ or error)
        raise UserError(f"the result could not be kept (--keep): {why}") from error
