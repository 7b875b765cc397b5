"""A comparison as text: the cells of its tables, benchmark.md and benchmark.json."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from dkuxnet.benchmark.figures import Comparison, Row, Table
from dkuxnet.benchmark.significance import Estimate, Share, Tested
from dkuxnet.benchmark.words import (
    UNSURE,
    between,
    facts,
    headlines,
    label,
    notes,
    p_value,
    percent,
    title,
)
from dkuxnet.evaluation.found import FOUND_HEADINGS, show_found
from dkuxnet.evaluation.metrics import DICE, NOTHING, SHOWN, Metric
from dkuxnet.machine.files import write_text

MISSED = FOUND_HEADINGS[1]
GAIN, GAP, P, MINUTES = "gain in Dice", "share of the gap", "p (Holm)", "minutes"
CLASS_HEADINGS = ("class", "arm", *(metric.title for metric in SHOWN), *FOUND_HEADINGS)
HEADINGS = ("arm", "seeds", *(metric.title for metric in SHOWN), MISSED, GAIN, GAP, P, MINUTES)
Cell = tuple[str, str]  # text, what goes after or below it


def write_tables(comparison: Comparison, output: Path) -> None:
    """Write `output`/benchmark.md and benchmark.json, each whole or not at all."""
    content = without_nan(asdict(comparison))
    content["facts"] = content["facts"] or {}
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False, default=str)
    write_text(output / "benchmark.json", text)
    write_text(output / "benchmark.md", markdown(comparison))


def without_nan(value: Any) -> Any:
    """The same with None in the place of every NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def markdown(comparison: Comparison) -> str:
    """The whole of benchmark.md."""
    lines = ["# Benchmark", "", *_listed(headlines(comparison))]
    for table in comparison.tables:
        lines += ["", f"## {title(table)}", "", *markdown_table(table, len(comparison.seeds))]
        by_seed = [f"{label(row)}: {seeds_of(row)}" for row in table.all_rows]
        lines += ["", "Dice by seed:", "", *_listed(by_seed)]
        if of_classes := class_cells(table.all_rows):
            shown = [[plain(cell) for cell in line] for line in of_classes]
            lines += ["", "By class:", "", *table_lines(CLASS_HEADINGS, shown)]
    lines += ["", "## What was compared", "", *_listed(facts(comparison))]
    lines += ["", "## What the figures mean", "", *_listed(notes(comparison))]
    if comparison.failed:
        failed = [f"{name}: {line}" for name, line in comparison.failed.items()]
        lines += ["", "## Failed", "", *_listed(failed)]
    return "\n".join(lines) + "\n"


def _listed(lines: list[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def markdown_table(table: Table, seeds: int) -> list[str]:
    """Its lines. seeds: how many there are to be."""
    rows = [[plain(cell) for cell in cells(row, seeds)] for row in table.all_rows]
    return table_lines(HEADINGS, rows)


def class_cells(rows: Sequence[Row]) -> list[list[Cell]]:
    """Of every class the arms, one under each of CLASS_HEADINGS."""
    classes = dict.fromkeys(name for row in rows for name in row.classes)
    return [
        [
            (name, ""),
            (label(row), ""),
            *(show_spread(metric, *row.classes[name].metrics[metric.key]) for metric in SHOWN),
            *((text, "") for text in show_found(row.classes[name].found)),
        ]
        for name in classes
        for row in rows
        if row.classes
    ]


def table_lines(headings: Sequence[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    shown = (f"| {' | '.join(row)} |" for row in (headings, *rows))
    return [next(shown), "|" + "---|" * len(headings), *shown]


def cells(row: Row, seeds: int) -> list[Cell]:
    """One under each of HEADINGS. seeds: how many there are to be."""
    failed = f"({len(row.failed)} failed)" if row.failed else ""
    done = (f"{len(row.dice_by_seed)} of {seeds}", failed)
    if not row.metrics:
        nothing = ["failed" if row.failed else NOTHING, *[NOTHING] * (len(HEADINGS) - 3)]
        return [(label(row), ""), done, *((text, "") for text in nothing)]
    return [
        (label(row), ""),
        done,
        *show_metrics(row),
        show_gain(row.gain),
        show_share(row.share),
        show_p(row.test),
        (f"{median(row.minutes_by_seed.values()):.1f}", ""),
    ]


def plain(cell: Cell) -> str:
    """Both parts on one line."""
    return " ".join(filter(None, cell))


def show_metrics(row: Row) -> list[Cell]:
    """One for each of SHOWN, and under MISSED of all classes together."""
    figures = [show_spread(metric, *row.metrics[metric.key]) for metric in SHOWN]
    return [*figures, (show_found(row.found)[1], "")]


def show_spread(metric: Metric, mean: float, std: float | None) -> Cell:
    """As in "0.8692", "± 0.0025"; the mean alone where there is one seed."""
    return metric.show(mean, True), "" if std is None else f"± {metric.show(std, True)}"


def show_gain(gain: Estimate | None) -> Cell:
    """As in "+0.0123", "(+0.0010 to +0.0240)"."""
    return _show(gain, partial(DICE.show, compared=True, sign="+"))


def show_share(share: Share | None) -> Cell:
    """As in "62 %", "(20 % to 110 %)", with a mark where the gap is not clear."""
    if share is None or share.share is None:
        return NOTHING, ""
    text, interval = _show(share.share, percent)
    return text if share.clear else f"{text} {UNSURE}", interval


def _show(found: Estimate | None, show: Callable[[float], str]) -> Cell:
    if found is None:
        return NOTHING, ""
    return show(found.value), f"({between(found.interval, show)})" if found.interval else ""


def show_p(test: Tested | None) -> Cell:
    """The p that is corrected for the arms of the table."""
    if test is None:
        return NOTHING, ""
    return p_value(test.p_holm), ""


def seeds_of(row: Row) -> str:
    """As in "seed 0 0.8710, seed 1 failed"."""
    found = {seed: DICE.show(dice, True) for seed, dice in row.dice_by_seed.items()}
    found |= dict.fromkeys(row.failed, "failed")
    return ", ".join(f"seed {seed} {text}" for seed, text in sorted(found.items())) or "none yet"
