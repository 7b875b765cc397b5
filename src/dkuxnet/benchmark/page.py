"""A comparison -> one html file that anyone can open: the answer in words, a figure, tables,
cases. Needs no network.
"""

from pathlib import Path
from statistics import median
from typing import Any

from dkuxnet.benchmark.figures import Comparison, Row, Table
from dkuxnet.benchmark.picture import draw_comparison
from dkuxnet.benchmark.text import HEADINGS, cells, label, rows_of, seeds_of
from dkuxnet.benchmark.words import facts, headlines, notes, title
from dkuxnet.machine.files import atomically
from dkuxnet.report.pictures import data_uri, to_svg
from dkuxnet.report.template import render

BETTER = {
    "Dice": "higher is better",
    "Jaccard": "higher is better",
    "95HD (mm)": "lower is better",
    "ASD (mm)": "lower is better",
    "gain in Dice": "over supervised",
    "minutes": "a training",
}


def write_page(comparison: Comparison, output: Path) -> Path:
    """Write `output`/benchmark.html and, where a run is finished, figure.svg; returns the page's
    path.
    """
    figure = draw_comparison(comparison)
    svg = None if figure is None else to_svg(figure)
    if svg is not None:
        atomically(output / "figure.svg", lambda part: part.write_bytes(svg))
    page = render(
        "comparison.html", describe(comparison) | {"figure": None if svg is None else data_uri(svg)}
    )
    path = output / "benchmark.html"
    atomically(path, lambda part: part.write_bytes(page))
    return path


def describe(comparison: Comparison) -> dict[str, Any]:
    """All that the template shows but the figure, as text and tables."""
    return {
        "name": Path(comparison.output).name,
        "headlines": headlines(comparison),
        "preliminary": comparison.done < comparison.wanted,
        "tiles": tiles(comparison),
        "headings": [(heading, BETTER.get(heading, "")) for heading in HEADINGS],
        "tables": [show_table(table, len(comparison.seeds)) for table in comparison.tables],
        "cases": [
            case_table(table) for table in comparison.tables if any(row.cases for row in table.rows)
        ],
        "notes": notes(comparison),
        "facts": facts(comparison),
        "failed": list(comparison.failed.items()),
        "version": "; ".join(comparison.facts.get("versions", [])) or "no finished run",
    }


def tiles(comparison: Comparison) -> list[tuple[str, str]]:
    """(number, what it is) at the top of the page."""
    arms = {row.arm for table in comparison.tables for row in table.rows}
    found = comparison.facts
    return [
        (f"{comparison.done} / {comparison.wanted}", "runs finished"),
        (str(len(arms)), "arms"),
        (", ".join(map(str, comparison.labelled)), "labelled cases"),
        (str(len(comparison.seeds)), "seeds" if len(comparison.seeds) > 1 else "seed"),
        *(
            [(str(found["pool"]), "cases in the pool"), (str(found["test"]), "test cases")]
            if found
            else []
        ),
        (f"{comparison.steps:,}", "steps a training"),
    ]


def show_table(table: Table, seeds: int) -> dict[str, Any]:
    means = {row.arm: row.metrics["dice"][0] for row in table.rows if row.metrics}
    best = max(means, key=means.get, default=None)
    return {
        "title": title(table),
        "rows": [show_row(row, seeds, best) for row in rows_of(table)],
        "seeds": [(label(row), seeds_of(row)) for row in rows_of(table)],
    }


def show_row(row: Row, seeds: int, best: str | None) -> dict[str, Any]:
    """The method goes below the arm, where that has a name of its own."""
    (arm, _), *others = cells(row, seeds)
    mark = "bound" if row.labelled is None else "best" if row.arm == best else ""
    return {"cells": [(arm, row.method if row.method != row.arm else ""), *others], "mark": mark}


def case_table(table: Table) -> dict[str, Any]:
    """Cases x arms, the cases that are hardest for the arms (by their median) first; the best arm
    of each is marked.
    """
    rows = [row for row in rows_of(table) if row.cases]
    arms = [row for row in rows if row.labelled is not None]
    lines = []
    for case in sorted(
        arms[0].cases, key=lambda case: (median(row.cases[case] for row in arms), case)
    ):
        best = max(row.cases[case] for row in arms)
        lines.append(
            {
                "case": case,
                "cells": [
                    (f"{row.cases[case]:.3f}", row in arms and row.cases[case] == best)
                    for row in rows
                ],
            }
        )
    return {"title": title(table), "arms": [label(row) for row in rows], "lines": lines}
