"""Dice over cases and training curves, each as an svg; the curves also as numbers for the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from dkuxnet.report.pictures import INK, LINES, STYLE, WIDTH_IN, data_uri, plain, to_svg

MOST_POINTS = 1500  # of a line in the page: a screen shows no more


@rc_context(STYLE)
def draw_dice(
    dice: Mapping[str, Sequence[float]],
    means: Mapping[str, tuple[float | None, Sequence[float] | None]],
) -> str:
    """Draw Dice of every case, a row for each class, with the mean and its 95 % interval.

    A class that does not apply to a case has NaN there. means: class -> (mean or None, [low, high]
    or None).
    """
    figure = Figure(figsize=(WIDTH_IN, 0.75 + 0.62 * len(dice)), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, values) in enumerate(dice.items()):
        # keeps neighbours apart; a random jitter would change the page
        spread = 0.16 * np.sin(2.4 * np.arange(len(values)))
        axes.plot(
            values,
            row + 0.12 + spread,
            "o",
            color=LINES[0],
            alpha=0.55,
            markersize=6,
            markeredgewidth=0,
            clip_on=False,
        )
        mean, interval = means[name]
        if mean is None:
            continue
        low, high = interval or (mean, mean)
        axes.plot([low, high], [row - 0.28] * 2, color=INK, linewidth=2)
        axes.plot(mean, row - 0.28, "D", color=INK, markersize=6)
    lowest = min((v for values in dice.values() for v in values if not math.isnan(v)), default=0)
    axes.set(
        xlim=(max(0, lowest - 0.05 * (1.02 - lowest) - 0.005), 1.005),
        ylim=(len(dice) - 0.5, -0.6),
        xlabel="Dice",
        yticks=range(len(dice)),
        yticklabels=[plain(name) for name in dice],
    )
    axes.grid(False, axis="y")
    return data_uri(to_svg(figure))


def curves_of(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The panels of curves: losses, learning rate and, where a run validated, Dice.

    rows: of metrics.jsonl. A panel has a title, whether its axis is logarithmic (`log`), and lines
    with name, colour and points [step, value].
    """
    other = {"step", "loss", "lr", "grad_norm", "seconds", "validation_dice"}
    parts = list(dict.fromkeys(key for row in rows for key in row if key not in other))
    losses = [*(["loss"] if len(parts) != 1 else []), *parts]
    panels = [
        ("Loss", losses),
        ("Learning rate", ["lr"]),
        ("Dice of the validation cases", ["validation_dice"]),
    ]
    shown: list[dict[str, Any]] = []
    for title, keys in panels:
        lines: list[dict[str, Any]] = []
        for number, key in enumerate(keys):
            if points := [[int(row["step"]) + 1, row[key]] for row in rows if key in row]:
                lines.append(
                    {
                        "name": {"loss": "sum of all"}.get(key, key),
                        "colour": LINES[number % len(LINES)],
                        "points": _thinned(points),
                    }
                )
        if lines:
            positive = any(value > 0 for line in lines for _, value in line["points"])
            shown.append({"title": title, "log": title == "Loss" and positive, "lines": lines})
    return shown


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most MOST_POINTS of them, evenly spaced, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]


@rc_context(STYLE)
def draw_curves(panels: list[dict[str, Any]]) -> str:
    """Draw the panels of `curves_of` beside each other."""
    figure = Figure(figsize=(WIDTH_IN, 3.1), layout="constrained")
    all_axes = figure.subplots(
        1, len(panels), width_ratios=[1.6] + [1.0] * (len(panels) - 1), squeeze=False
    )[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for line in panel["lines"]:
            axes.plot(
                *zip(*line["points"], strict=True),
                color=line["colour"],
                label=plain(line["name"]),
                linewidth=1.4,
                marker="o" if len(line["points"]) < 30 else None,
                markersize=3,
            )
        axes.set_title(panel["title"], loc="left", fontsize=10)
        axes.set(xlabel="step")
        if panel["log"]:
            axes.set_yscale("log")
        if panel["title"] == "Loss":
            axes.legend(frameon=False, ncols=min(len(panel["lines"]), 4))
        else:
            axes.set_ylim(bottom=0)
    return data_uri(to_svg(figure))
