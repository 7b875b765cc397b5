"""The labelling loop on one folder: prepare what is new, train on, predict, say what to label next.

FOLDER/images and FOLDER/labels are the user's. Everything else lies beside them, in FOLDER-loop:
prepared/, round-1/, round-2/, ... and predictions/.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

from dkuxnet.cli.console import case_progress, sentence_progress, show_prepared, show_updated
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.update import update_prepared
from dkuxnet.machine.files import write_text
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.prediction.suggest import suggest_scans
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.identity import arrays_sha256

Train = Callable[[Path, Path, Path | None, bool], None]


def run_round(folder: Path, work: Path, train: Train, device: str, count: int) -> Path:
    """One round; returns its run, whose suggestions are written.

    train: called with the prepared set, the run, the run to begin with and whether to go on with
    what is there; not at all where nothing is new. count: of suggestions.
    """
    prepared = work / "prepared"
    with case_progress() as progress:
        if prepared.exists():
            show_updated(update_prepared(folder, prepared, progress=progress), prepared)
        else:
            work.mkdir(parents=True, exist_ok=True)
            show_prepared(prepare_scans(folder, prepared, progress=progress), prepared)
    data = PreparedSet(prepared)
    run, begin, go_on = _round(work, data)
    if not _is_of(run, data) or not run.is_finished:
        train(prepared, run.folder, begin, go_on)
    unlabelled = [name for name in data.names if name not in data.names_with_label]
    if not unlabelled:
        raise UserError(f"{folder}: every scan has a label; the last round is {run.folder}")
    write_text(work / "unlabelled.txt", "\n".join(unlabelled) + "\n")
    with sentence_progress("predict") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # they stand in classes.csv, one a scan
        predict_scans(
            run.folder,
            [folder],
            work / "predictions",
            device=device,
            progress=progress,
            cases=work / "unlabelled.txt",
        )
    with sentence_progress("look at") as progress:
        suggest_scans(run.folder, folder, count, device, progress)
    return run.folder


def _round(work: Path, data: PreparedSet) -> tuple[RunFolder, Path | None, bool]:
    """The run of this round, the one that it begins with, and whether it was begun already."""
    runs = sorted(work.glob("round-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    there = [run for path in runs if (run := RunFolder(path)).is_run]
    finished = [run for run in there if run.is_finished]
    begin = finished[-1].folder if finished else None
    if there and _is_of(there[-1], data):
        return there[-1], begin, not there[-1].is_finished
    number = int(there[-1].folder.name.rpartition("-")[2]) + 1 if there else 1
    return RunFolder(work / f"round-{number}"), begin, False


def _is_of(run: RunFolder, data: PreparedSet) -> bool:
    """Whether a run was trained on what the set holds now, every label of it."""
    if not run.is_run:
        return False
    manifest, labelled = run.manifest, set(data.names_with_label)
    split = manifest.split
    return (
        manifest.cases == data.names
        and {*split.labelled, *split.validation, *split.test} == labelled
        and manifest.arrays_sha256 == arrays_sha256(data, split)
    )
