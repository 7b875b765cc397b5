"""A comparison -> one html file that anyone can open, without a network.

What stands here serves two pages: that of a benchmark, and that of several runs
(`compare_runs_page`).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dkuxnet.benchmark.figures import Comparison, Row, Table
from dkuxnet.benchmark.picture import draw_comparison
from dkuxnet.benchmark.text import (
    CLASS_HEADINGS,
    GAIN,
    HEADINGS,
    MINUTES,
    cells,
    class_cells,
    seeds_of,
)
from dkuxnet.benchmark.words import counted, facts, headlines, label, notes, title
from dkuxnet.evaluation.metrics import DICE, SHOWN
from dkuxnet.machine.files import write_bytes
from dkuxnet.report.pictures import data_uri, to_svg
from dkuxnet.report.template import render

MOST_OPEN = 24  # rows of a table by class that the page shows without a click
BETTER = {metric.title: metric.better for metric in SHOWN}
BETTER |= {GAIN: "over supervised", MINUTES: "a training"}


def write_page(comparison: Comparison, output: Path) -> Path:
    """Write `output`/benchmark.html and, where a run is finished, figure.svg.

    Returns the page's path.
    """
    figure, described = draw_comparison(comparison), describe(comparison)
    if figure is not None:
        svg = to_svg(figure)
        write_bytes(output / "figure.svg", svg)
        described["figure"] = {
            "image": data_uri(svg),
            "what": "Dice of every arm over the labelled cases, a dot a seed",
            "caption": "Dice on the test cases: a dot is a seed, the large mark the mean of its "
            "arm. The dashed line is supervised training with the labels of the whole pool.",
        }
    path = output / "benchmark.html"
    write_bytes(path, render("comparison.html", described, package="benchmark"))
    return path


def describe(comparison: Comparison) -> dict[str, Any]:
    """All that the template shows but the figure, as text and tables."""
    name, found, seeds = Path(comparison.output).name, comparison.facts, len(comparison.seeds)
    versions = "; ".join(found.versions) if found else "no finished run"
    return {
        "title": f"{name} – benchmark",
        "heading": name,
        "subtitle": f"Benchmark of segmentation methods · {versions}",
        "tiles": tiles(comparison),
        "failed": list(comparison.failed.items()),
        "headlines": headlines(comparison),
        "figure": None,
        "headings": [(heading, BETTER.get(heading, "")) for heading in HEADINGS],
        "tables": [show_table(table, seeds) for table in comparison.tables],
        "notes": notes(comparison),
        "differences": None,
        "cases_note": "Dice, mean over seeds; the best arm of each case in bold.",
        "sortable": False,
        "cases": [
            case_table(title(table), table.all_rows)
            for table in comparison.tables
            if any(row.cases for row in table.rows)
        ],
        "lists": [("What was compared", facts(comparison))],
    }


def tiles(comparison: Comparison) -> list[tuple[str, str]]:
    """(number, what it is) at the top of the page."""
    arms = {row.arm for table in comparison.tables for row in table.rows}
    shown = [
        (f"{comparison.done} / {comparison.wanted}", "runs finished"),
        (str(len(arms)), "arms"),
        (", ".join(map(str, comparison.labelled)), "labelled cases"),
        (str(len(comparison.seeds)), "seeds" if len(comparison.seeds) > 1 else "seed"),
    ]
    if found := comparison.facts:
        shown += [(str(found.pool), "cases in the pool"), (str(found.test), "test cases")]
    return [*shown, (f"{comparison.steps:,}", "steps a training")]


def show_table(table: Table, seeds: int) -> dict[str, Any]:
    """The rows; the arm with the highest Dice and the bound are marked."""
    done = [row for row in table.rows if row.ranked]
    best = max(done, key=lambda row: row.mean_dice, default=None)
    rows = []
    for row in table.all_rows:
        (arm, _), *others = cells(row, seeds)
        # the method goes below the arm, where that has a name of its own
        shown = [(arm, row.method if row.method != row.arm else ""), *others]
        mark = "bound" if row is table.bound else "best" if row is best else ""
        rows.append({"cells": shown, "mark": mark})
    by_seed = [(label(row), seeds_of(row)) for row in table.all_rows]
    return {"title": title(table), "rows": rows, "seeds": by_seed} | show_classes(table.all_rows)


def show_classes(rows: Sequence[Row]) -> dict[str, Any]:
    """The table by class, what was missed, and whether it is too long to be open."""
    cells = class_cells(rows)
    headings = [(heading, BETTER.get(heading, "")) for heading in CLASS_HEADINGS]
    return {
        "class_headings": headings,
        "classes": cells,
        "open": len(cells) <= MOST_OPEN,
        "counted": counted(rows),
    }


def case_table(title: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Cases x arms, the cases that are hardest for the arms (by their median) first.

    The best arm of each is marked. The bound with all labels is shown and takes no part.
    """
    rows = [row for row in rows if row.cases]
    arms = [row for row in rows if row.labelled is not None]
    lines = []
    for case in arms[0].cases:
        known = [row.cases[case] for row in arms if not math.isnan(row.cases[case])]
        best = max(known, default=math.nan)
        shown = [
            (DICE.show(row.cases[case]), row.labelled is not None and row.cases[case] == best)
            for row in rows
        ]
        lines.append((median(known) if known else math.inf, case, shown))  # without any: last
    return {
        "title": title,
        "arms": [label(row) for row in rows],
        "lines": [
            {
                "case": case,
                "median": DICE.show(None if math.isinf(middle) else middle),
                "cells": shown,
            }
            for middle, case, shown in sorted(lines, key=lambda line: line[:2])
        ],
    }
