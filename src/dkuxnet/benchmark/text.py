"""A comparison as text: the cells of its tables, benchmark.md and benchmark.json."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import median

from dkuxnet.benchmark.figures import Comparison, Row, Table
from dkuxnet.benchmark.significance import Estimate, Share
from dkuxnet.benchmark.words import UNSURE, facts, headlines, label, notes, percent, title
from dkuxnet.machine.files import atomically

HEADINGS = (
    "arm",
    "seeds",
    "Dice",
    "Jaccard",
    "95HD (mm)",
    "ASD (mm)",
    "gain in Dice",
    "share of the gap",
    "p (Holm)",
    "minutes",
)
DIGITS = {"dice": 4, "jaccard": 4, "hd95_mm": 2, "asd_mm": 2}
NOTHING = "–"


def write_text(comparison: Comparison, output: Path) -> None:
    """Write `output`/benchmark.md and benchmark.json, each whole or not at all."""
    content = json.dumps(
        asdict(comparison), indent=1, allow_nan=False, ensure_ascii=False, default=str
    )
    atomically(output / "benchmark.json", lambda part: part.write_text(content, "utf-8"))
    atomically(output / "benchmark.md", lambda part: part.write_text(markdown(comparison), "utf-8"))


def markdown(comparison: Comparison) -> str:
    """The whole of benchmark.md."""
    lines = ["# Benchmark", "", *(f"- {line}" for line in headlines(comparison))]
    for table in comparison.tables:
        lines += [
            "",
            f"## {title(table)}",
            "",
            *markdown_table(table, len(comparison.seeds)),
            "",
            "Dice by seed:",
            "",
        ]
        lines += [f"- {label(row)}: {seeds_of(row)}" for row in rows_of(table)]
    lines += ["", "## What was compared", "", *(f"- {fact}" for fact in facts(comparison))]
    lines += ["", "## What the figures mean", "", *(f"- {note}" for note in notes(comparison))]
    if comparison.failed:
        lines += [
            "",
            "## Failed",
            "",
            *(f"- {name}: {line}" for name, line in comparison.failed.items()),
        ]
    return "\n".join(lines) + "\n"


def markdown_table(table: Table, seeds: int) -> list[str]:
    """Its lines. seeds: how many there are to be."""
    rows = [
        " | ".join(" ".join(filter(None, cell)) for cell in cells(row, seeds))
        for row in rows_of(table)
    ]
    return [
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *(f"| {row} |" for row in rows),
    ]


def rows_of(table: Table) -> list[Row]:
    """The arms, then the bound with all labels."""
    return [*table.rows, table.bound]


def cells(row: Row, seeds: int) -> list[tuple[str, str]]:
    """Under each of HEADINGS (text, what goes after or below it). seeds: how many there are to be."""
    done = (
        f"{len(row.dice_by_seed)} of {seeds}",
        f"({len(row.failed)} failed)" if row.failed else "",
    )
    if not row.metrics:
        nothing = ["failed" if row.failed else NOTHING, *[NOTHING] * (len(HEADINGS) - 3)]
        return [(label(row), ""), done, *((text, "") for text in nothing)]
    return [
        (label(row), ""),
        done,
        *(show_spread(row.metrics[metric], digits) for metric, digits in DIGITS.items()),
        show_gain(row.gain),
        show_share(row.share),
        (NOTHING if row.test is None else show_p(row.test.p_holm), ""),
        (f"{median(row.minutes_by_seed.values()):.1f}", ""),
    ]


def show_spread(spread: tuple[float, float | None], digits: int) -> tuple[str, str]:
    """ "0.8692", "± 0.0025"; the mean alone where there is one seed."""
    mean, std = spread
    return f"{mean:.{digits}f}", "" if std is None else f"± {std:.{digits}f}"


def show_gain(gain: Estimate | None) -> tuple[str, str]:
    """ "+0.0123", "(+0.0010 to +0.0240)"."""
    if gain is None:
        return NOTHING, ""
    return (
        f"{gain.value:+.4f}",
        "" if gain.low is None else f"({gain.low:+.4f} to {gain.high:+.4f})",
    )


def show_share(share: Share | None) -> tuple[str, str]:
    """ "62 %", "(20 % to 110 %)", with a mark where the gap is not clear."""
    if share is None or share.share is None:
        return NOTHING, ""
    found, mark = share.share, "" if share.clear else f" {UNSURE}"
    return (
        f"{percent(found.value)}{mark}",
        "" if found.low is None else f"({percent(found.low)} to {percent(found.high)})",
    )


def show_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seeds_of(row: Row) -> str:
    """ "seed 0 0.8710, seed 1 failed"."""
    found = {seed: f"{dice:.4f}" for seed, dice in row.dice_by_seed.items()} | dict.fromkeys(
        row.failed, "failed"
    )
    return ", ".join(f"seed {seed} {text}" for seed, text in sorted(found.items())) or "none yet"
