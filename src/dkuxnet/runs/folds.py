"""A cross-validation on disk: runs beside each other, each with its own held-out cases.

FOLDER/folds.json         settings as asked for, how many folds; scores once all have ended
FOLDER/splits/fold-1.json the cases of the first run
FOLDER/fold-1/            the first run
FOLDER/evaluation/        every labelled case, by the run that did not see it
"""

from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Folds, read_document
from dkuxnet.machine.files import inside
from dkuxnet.runs.folder import DAMAGED, RunFolder

DESCRIPTION = "folds.json"


def holds_folds(folder: Path) -> bool:
    """Whether a folder is that of a cross-validation."""
    return (folder / DESCRIPTION).is_file()


def read_folds(folder: Path) -> Folds:
    """What a cross-validation says of itself. Raises UserError where it is none."""
    return read_document(folder / DESCRIPTION, Folds, DAMAGED)


def fold_folder(folder: Path, number: int) -> Path:
    """The folder of a run, the first is 1."""
    return inside(folder, f"fold-{number}")


def runs_in(run: Path) -> list[Path]:
    """The run itself, or all runs of a cross-validation. Raises UserError where one has not ended.

    The folder of a run is not looked into.
    """
    if not holds_folds(run):
        return [run]
    folders = [fold_folder(run, number) for number in range(1, read_folds(run).folds + 1)]
    for folder in folders:
        if not RunFolder(folder).is_finished:
            raise UserError(
                f"{run}: {folder.name} has not ended; dkuxnet train ... --resume goes on, and "
                "what has ended is a run of its own"
            )
    return folders
