"""`--keep FOLDER`: what stays of a scan after the session, where its owner asks for it."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import UserError
from dkuxnet.serve.jobs import Job
from dkuxnet.serve.names import shown


def check_keep(folder: Path) -> None:
    """Make `folder` where it is missing. Raises UserError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--keep {folder}: cannot write there: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--keep {folder}: cannot write there; choose another folder")


def keep_result(folder: Path, job: Job, results: dict[str, Any]) -> None:
    """Copy scan, label map and figures into FOLDER/TIME_TOKEN, which appears only when it is
    whole.

    The sender's name for the scan stands in result.json and names no file. Raises UserError where
    the disk is full.
    """
    whole = folder / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_{job.id[:8]}"
    part = folder / f".{job.id}"
    try:
        part.mkdir(mode=0o700)
        shutil.copyfile(job.scan, part / job.scan.name)
        shutil.copyfile(job.label, part / job.label.name)
        text = json.dumps({"name": shown(job.name), **results}, indent=1, ensure_ascii=False)
        (part / "result.json").write_text(text, "utf-8")
        os.replace(part, whole)
    except OSError as error:
        raise UserError(f"the result could not be kept (--keep): {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
