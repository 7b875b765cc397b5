"""Label maps without truth -> one html file: which of them to look at first, and why."""

import math
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from dkuxnet.core.classes_table import CLASSES, COLUMNS, read_rows
from dkuxnet.core.confidence import UNSURE_BELOW
from dkuxnet.core.errors import UserError
from dkuxnet.evaluation.metrics import NOTHING
from dkuxnet.machine.files import write_bytes
from dkuxnet.report.template import render
from dkuxnet.report.words import count

Row = dict[str, str]  # of classes.csv


def are_predictions(folder: Path) -> bool:
    """Whether the folder holds what `dkuxnet predict` writes."""
    return (folder / CLASSES).is_file()


def write_predictions_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of the label maps in `folder`, the most doubtful first; returns its path.

    output: FOLDER/report.html where None. Raises UserError where the folder's classes.csv is
    damaged, or `output` cannot be written.
    """
    path = folder / "report.html" if output is None else Path(output)
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot write: the folder {path.parent} does not exist; create it")
    rows = read_rows(folder, "predict again")
    named: list[Row] = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    try:
        described = describe(folder.resolve().name, named)
    except ValueError as error:
        raise UserError(f"{folder / CLASSES}: {error}; predict again") from error
    write_bytes(path, render("predictions.html", described, ["report/table.js"]))
    return path


def describe(name: str, rows: list[Row]) -> dict[str, Any]:
    """All that the template shows. rows: those of a scan follow each other."""
    scans = [list(group) for _, group in groupby(rows, key=itemgetter("case"))]
    scans.sort(key=_hope)
    flagged = sum(bool(_flags(scan)) for scan in scans)
    return {
        "name": name,
        "scans": count(len(scans), "scan"),
        "flagged": flagged,
        "estimated": any(row["estimated_dice"] for row in rows),
        "unsure_below": UNSURE_BELOW,
        "rows": [
            _shown(row, _flags(scan) if row is scan[0] else "") for scan in scans for row in scan
        ],
    }


def _hope(scan: list[Row]) -> tuple[bool, float, float, str]:
    """What is doubtful first: flagged scans, then by the Dice to expect, then by confidence."""
    dice = [float(row["estimated_dice"]) for row in scan if row["estimated_dice"]]
    sure = [float(row["confidence"]) for row in scan if row["confidence"]]
    return (
        not _flags(scan),
        sum(dice) / len(dice) if dice else -math.inf,
        min(sure, default=0.0),
        scan[0]["case"],
    )


def _flags(scan: list[Row]) -> str:
    unsure = [row["class"] for row in scan if row["unsure"] == "yes"]
    told = [f"unsure of {', '.join(unsure)}"] if unsure else []
    return "; ".join([*filter(None, [scan[0]["flags"]]), *told])


def _shown(row: Row, flags: str) -> dict[str, str]:
    low, high = row["dice_low"], row["dice_high"]
    return {
        "case": row["case"],
        "class": row["class"],
        "flags": flags,
        "dice": row["estimated_dice"] or NOTHING,
        "interval": f"{low} to {high}" if low else "",
        "unlike": row["unlike"] or NOTHING,
        "ml": f"{float(row['volume_ml']):.1f}",
        "confidence": f"{float(row['confidence']):.2f}" if row["confidence"] else NOTHING,
    }
