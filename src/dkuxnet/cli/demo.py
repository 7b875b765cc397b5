"""The demonstration: the whole chain on synthetic scans, from files to a report."""

from pathlib import Path
from typing import Any

from dkuxnet.cli.console import case_progress, sentence_progress, train_progress
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.data import phantom
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.evaluation.evaluate import evaluate_folders
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.report.page import write_report
from dkuxnet.training.experiment import run_training

CASES, LABELLED, UNSEEN = 24, 6, 6
SIZE = 44  # voxels along an edge, about


def run_demo(folder: Path) -> dict[str, Any]:
    """Make scans in a new `folder`, prepare, train, predict unseen ones, evaluate and report.

    Returns what `show_demo` shows. Raises UserError where the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; delete it, or name another: dkuxnet demo DIR")
    scans = phantom.write_dataset(folder / "scans", CASES, LABELLED, seed=1, size=SIZE)
    unseen = phantom.write_dataset(folder / "unseen", UNSEEN, 0, seed=2, size=SIZE)
    with case_progress() as progress:
        meta = prepare_scans(scans, folder / "prepared", progress=progress)
    settings = load_settings("demo")
    with train_progress() as progress:
        manifest = run_training(folder / "prepared", folder / "run", settings, progress=progress)
    with sentence_progress("predict") as progress:
        predict_scans(
            folder / "run",
            [unseen / "imagesTr"],
            folder / "predictions",
            save_uncertainty=True,
            progress=progress,
        )
    result = evaluate_folders(folder / "predictions", unseen / "labelsHidden")
    result.write_json(folder / "predictions.json")
    write_report(folder / "run")
    return {
        "folder": folder,
        "summary": result.summary(),
        "found": result.found(),
        "test_cases": UNSEEN,
        "labelled": len(manifest.split.labelled),
        "unlabelled": len(manifest.split.unlabelled),
        "train_seconds": manifest.train_seconds,
        "files": {
            "scans": f"{meta.fingerprint.cases} synthetic scans, "
            f"{meta.fingerprint.labelled} with a label",
            "run/report.html": "a page with curves, tables and pictures: open it in a browser",
            "predictions": "label maps and uncertainty of the unseen scans, for any viewer",
            "predictions.json": "their scores",
        },
    }
