"""Runs side by side -> one html file that anyone can open. Needs no network."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dkuxnet.benchmark.compare_runs import Arm, RunsCompared, compare_runs
from dkuxnet.benchmark.page import case_table, show_classes
from dkuxnet.benchmark.picture import draw_runs
from dkuxnet.benchmark.text import MISSED, Cell, P, show_gain, show_metrics, show_p
from dkuxnet.benchmark.words import runs_headlines, runs_notes
from dkuxnet.core.errors import UserError
from dkuxnet.evaluation.metrics import NOTHING, SHOWN
from dkuxnet.machine.files import write_bytes
from dkuxnet.report.pictures import data_uri, to_svg
from dkuxnet.report.template import render
from dkuxnet.report.words import count, duration, join

HEADINGS = (
    ("Run", ""),
    ("seed", ""),
    *((metric.title, metric.better) for metric in SHOWN),
    (MISSED, ""),
    ("difference in Dice", "to the first"),
    ("better in", "of the cases"),
    (P, ""),
    ("training", ""),
)
DEFAULT = Path("comparison.html")


def write_runs_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Compare the first of the runs in `folders` with each other one; returns the page's path.

    output: the page, comparison.html in the current folder where None. Raises UserError as
    `compare_runs`, and where `output` cannot be written.
    """
    path = DEFAULT if output is None else Path(output)
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot write: the folder {path.parent} does not exist; create it")
    described = describe(compare_runs(folders))
    write_bytes(path, render("comparison.html", described, ["report/table.js"], "benchmark"))
    return path


def describe(compared: RunsCompared) -> dict[str, Any]:
    """All that the template shows, as text, tables and data URIs."""
    arms, rows = compared.arms, [arm.row for arm in compared.arms]
    best = max((row for row in rows if row.ranked), key=lambda row: row.mean_dice, default=None)
    runs = f"{sum(len(arm.runs) for arm in arms)} runs compared"
    cases = count(len(compared.cases), "test case")
    over_seeds = ", mean over seeds" if compared.same_seeds else ""
    return {
        "title": runs,
        "heading": runs,
        "subtitle": f"On the same {cases} · {join(compared.classes)}",
        "tiles": [],
        "failed": [],
        "headlines": runs_headlines(compared),
        "figure": {
            "image": data_uri(to_svg(draw_runs(rows))),
            "what": "Dice of every test case, a run a row",
            "caption": "A dot is a test case, a thin line joins the same case in the next run, "
            "the diamond is the mean.",
        },
        "headings": HEADINGS,
        "tables": [
            {
                "title": "",
                "rows": [
                    {
                        "cells": cells(arm, len(compared.cases)),
                        "mark": "best" if arm.row is best else "",
                    }
                    for arm in arms
                ],
                "seeds": [],
                **show_classes(rows),
                "counted": [],  # the answer above says it
            }
        ],
        "notes": runs_notes(compared),
        "differences": {
            "arms": [row.arm for row in rows],
            "lines": [
                (key, [show_setting(value) for value in values])
                for key, values in compared.differences.items()
            ],
        },
        "cases_note": f"Dice{over_seeds}; the best run of each case in bold. Click a heading to "
        "sort by it.",
        "sortable": True,
        "cases": [case_table("", rows)],
        "lists": [("Where they are", [f"{arm.row.arm}: {_folders(arm)}" for arm in arms])],
    }


def show_setting(value: Any) -> str:
    """As text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cells(arm: Arm, cases: int) -> list[Cell]:
    """One under each of HEADINGS."""
    row, some = arm.row, arm.runs[0].manifest
    return [
        (row.arm, f"{some.method}, {some.network}"),
        (", ".join(map(str, row.dice_by_seed)), ""),
        *show_metrics(row),
        show_gain(row.gain),
        (NOTHING if arm.better is None else f"{arm.better} of {cases}", ""),
        show_p(row.test),
        (duration(median(run.train_seconds for run in arm.runs)), ""),
    ]


def _folders(arm: Arm) -> str:
    return ", ".join(str(run.folder.resolve()) for run in arm.runs)
