"""Runs side by side -> one html file that anyone can open. Needs no network."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from dkuxnet.benchmark.compare_runs import Arm, RunsCompared, compare_runs
from dkuxnet.benchmark.text import DIGITS, NOTHING, show_gain, show_p, show_spread
from dkuxnet.core.errors import UserError
from dkuxnet.machine.files import atomically
from dkuxnet.report.pictures import INK, LINES, STYLE, WIDTH_IN, data_uri, plain, to_svg
from dkuxnet.report.template import render
from dkuxnet.report.words import count, duration, join

HEADINGS = (
    ("Run", ""),
    ("seed", ""),
    ("Dice", "higher is better"),
    ("Jaccard", "higher is better"),
    ("95HD (mm)", "lower is better"),
    ("ASD (mm)", "lower is better"),
    ("difference in Dice", "to the first"),
    ("better in", "of the cases"),
    ("p (Holm)", ""),
    ("training", ""),
)
DEFAULT = Path("comparison.html")


def write_runs_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Compare the finished runs in `folders`, the first with each other one, and write the page to
    `output` (comparison.html in the current folder where None); returns its path. Raises
    UserError as `compare_runs`, and where `output` cannot be written.
    """
    path = DEFAULT if output is None else Path(output)
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot write: the folder {path.parent} does not exist; create it")
    page = render("runs.html", describe(compare_runs(folders)), ["report/table.js"])
    atomically(path, lambda part: part.write_bytes(page))
    return path


def describe(compared: RunsCompared) -> dict[str, Any]:
    """All that the template shows, as text, tables and data URIs."""
    arms = compared.arms
    best = max(arms, key=lambda arm: arm.metrics["dice"][0])
    return {
        "headlines": headlines(compared),
        "headings": HEADINGS,
        "rows": [
            {"cells": cells(arm, len(compared.cases)), "mark": "best" if arm is best else ""}
            for arm in arms
        ],
        "figure": draw_runs(compared),
        "differences": [
            (key, [show_setting(value) for value in values])
            for key, values in compared.differences.items()
        ],
        "runs": sum(len(arm.runs) for arm in arms),
        "arms": [arm.name for arm in arms],
        "cases": case_rows(compared),
        "classes": join(compared.classes),
        "same_seeds": compared.same_seeds,
        "folders": [(arm.name, [str(run.folder.resolve()) for run in arm.runs]) for arm in arms],
    }


def show_setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def headlines(compared: RunsCompared) -> list[str]:
    """The answer: who is best, and how sure each difference to the first is."""
    first, cases = compared.arms[0], count(len(compared.cases), "test case")
    if len(compared.arms) == 1:
        return [
            f"On {cases} the mean Dice is {first.metrics['dice'][0]:.3f}. The runs differ in "
            "nothing but their seeds."
        ]
    ranked = [(arm.name, arm.metrics["dice"][0]) for arm in compared.arms]
    (best, highest), *others = sorted(ranked, key=lambda row: -row[1])
    told = [
        f"On {cases}, {best} has the highest mean Dice, {highest:.3f}. Then: "
        + "; ".join(f"{name}, {mean:.3f}" for name, mean in others)
        + "."
    ]
    for arm in compared.arms[1:]:
        text = (
            f"{arm.name} is {abs(arm.gain.value):.3f} "
            f"{'above' if arm.gain.value >= 0 else 'below'} {first.name} and "
            f"better in {arm.better} of {cases}"
        )
        if arm.gain.low is None:
            told.append(f"{text}; with one test case nobody can say how sure that is.")
            continue
        clear = arm.gain.low > 0 or arm.gain.high < 0
        told.append(
            f"{text} (95 % interval of the difference {arm.gain.low:+.3f} to "
            f"{arm.gain.high:+.3f}): "
            + (
                "clear over these cases."
                if clear
                else "this may be chance, the interval includes 0."
            )
        )
    return told


def cells(arm: Arm, cases: int) -> list[tuple[str, str]]:
    """Under each of HEADINGS (text, what goes below it)."""
    seconds = [run.manifest["train_seconds"] for run in arm.runs]
    return [
        (
            arm.name,
            f"{arm.runs[0].manifest.get('method', '?')}, "
            f"{arm.runs[0].manifest.get('network', '?')}",
        ),
        (", ".join(str(run.seed) for run in arm.runs), ""),
        *(show_spread(arm.metrics[metric], digits) for metric, digits in DIGITS.items()),
        show_gain(arm.gain),
        (NOTHING if arm.better is None else f"{arm.better} of {cases}", ""),
        (NOTHING if arm.test is None else show_p(arm.test.p_holm), ""),
        (duration(median(seconds)), ""),
    ]


def case_rows(compared: RunsCompared) -> list[dict[str, Any]]:
    """Case by case, the hardest for the arms (by their median) first; the best arm of each is
    marked.
    """
    table = [
        (case, [float(arm.dice[i]) for arm in compared.arms])
        for i, case in enumerate(compared.cases)
    ]
    table.sort(key=lambda row: (median(row[1]), row[0]))
    return [
        {
            "case": case,
            "median": f"{median(dice):.3f}",
            "cells": [(f"{each:.3f}", each == max(dice)) for each in dice],
        }
        for case, dice in table
    ]


@rc_context(STYLE)
def draw_runs(compared: RunsCompared) -> str:
    """Dice of every case, an arm a row; a thin line joins the same case, a diamond is the mean."""
    arms = compared.arms
    figure = Figure(figsize=(WIDTH_IN, 0.8 + 0.55 * len(arms)), layout="constrained")
    axes = figure.add_subplot()
    for i in range(len(compared.cases)):
        axes.plot(
            [arm.dice[i] for arm in arms],
            range(len(arms)),
            color="#8a94a3",
            alpha=0.45,
            linewidth=0.8,
            zorder=1,
        )
    for row, arm in enumerate(arms):
        axes.plot(
            arm.dice,
            [row] * len(arm.dice),
            "o",
            color=LINES[row % len(LINES)],
            alpha=0.6,
            markersize=6,
            markeredgewidth=0,
            zorder=2,
        )
        axes.plot(
            arm.metrics["dice"][0],
            row,
            "D",
            color=INK,
            markersize=7,
            markeredgecolor="white",
            zorder=3,
        )
    axes.set(
        yticks=range(len(arms)),
        yticklabels=[plain(arm.name) for arm in arms],
        ylim=(len(arms) - 0.5, -0.5),
        xlabel="Dice",
    )
    axes.grid(False, axis="y")
    return data_uri(to_svg(figure))
