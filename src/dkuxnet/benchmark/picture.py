"""The figures of comparisons: Dice of arms over labelled counts, Dice of runs over cases."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dkuxnet.benchmark.figures import Comparison, Row, Table
from dkuxnet.benchmark.words import label
from dkuxnet.report.pictures import INK, LINES, STYLE, WIDTH_IN, plain

# Colour and marker together keep a dozen arms apart, and so does the marker where there are no
# colours.
MARKERS = "osD^vPXp<>hd"
BOUND: dict[str, Any] = {"color": "#5b6776", "linestyle": (0, (5, 3)), "linewidth": 1.4}
# Of the room between two counts the arms take this share, so that their dots lie side by side.
SPREAD = 0.5


@rc_context(STYLE)
def draw_comparison(comparison: Comparison) -> Figure | None:
    """Dice over labelled counts, an arm a line; with a single count, an arm a row.

    Dots are seeds, large marks their means; the dashed line is supervised with all labels. None
    where no run is finished.
    """
    by_network: dict[str, list[Table]] = {}
    for table in comparison.tables:
        by_network.setdefault(table.network, []).append(table)
    if not any(row.ranked for table in comparison.tables for row in table.all_rows):
        return None
    single = len(comparison.labelled) == 1
    arms = [row.arm for row in comparison.tables[0].rows]
    height = 1.2 + 0.34 * len(arms) if single else max(3.6, 0.9 + 0.24 * len(arms))
    figure = Figure(figsize=(WIDTH_IN, height * len(by_network)), layout="constrained")
    panels = figure.subplots(len(by_network), 1, squeeze=False)[:, 0]
    for axes, (network, tables) in zip(panels, by_network.items(), strict=True):
        if single:
            _draw_rows(axes, tables[0], arms)
        else:
            _draw_lines(axes, sorted(tables, key=lambda table: table.labelled), arms)
        if len(by_network) > 1 or single:
            more = f", {tables[0].labelled} labelled" if single else ""
            axes.set_title(network + more, loc="left", fontsize=10)
    return figure


def _draw_lines(axes: Axes, tables: list[Table], arms: list[str]) -> None:
    """tables: of one network, by labelled count."""
    step = min(SPREAD / max(len(arms) - 1, 1), 0.06)
    for number, arm in enumerate(arms):
        shift = (number - (len(arms) - 1) / 2) * step
        points = []
        for place, table in enumerate(tables):
            row = next(row for row in table.rows if row.arm == arm)
            _dots(axes, row, number, place + shift)
            if row.ranked:
                points.append((place + shift, row.mean_dice))
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, **_look(number), linewidth=1.3, markersize=7, label=plain(arm))
    bound = tables[0].bound
    if bound.ranked:
        axes.axhline(bound.mean_dice, label=plain(label(bound)), **BOUND)
    axes.set(
        xticks=range(len(tables)),
        xticklabels=[str(table.labelled) for table in tables],
        xlabel="labelled cases",
        ylabel="Dice",
        xlim=(-0.5, len(tables) - 0.5),
    )
    axes.grid(False, axis="x")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.6)


def _draw_rows(axes: Axes, table: Table, arms: list[str]) -> None:
    for place, row in enumerate(table.rows):
        _dots(axes, row, place, place, across=False)
        if row.ranked:
            look = _look(place) | {"linestyle": ""}
            axes.plot(row.mean_dice, place, **look, markersize=9)
    names = [plain(arm) for arm in arms]
    if table.bound.ranked:
        # its name has a row of its own: beside the line it would meet the title
        axes.axvline(table.bound.mean_dice, **BOUND)
        names.append(f"{plain(label(table.bound))} (dashed)")
    axes.set(
        yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.7), xlabel="Dice"
    )
    axes.grid(False, axis="y")


def _look(number: int) -> dict[str, Any]:
    again = number >= len(LINES)
    return {
        "color": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.8,
        "linestyle": (0, (1.5, 1.2)) if again else "solid",
        "zorder": 3,
    }


def _dots(axes: Axes, row: Row, number: int, place: float, across: bool = True) -> None:
    """The seeds of an arm at `place` on the axis that is not Dice."""
    dice, places = [*row.dice_by_seed.values()], np.full(len(row.dice_by_seed), place)
    x, y = (places, dice) if across else (dice, places)
    axes.plot(x, y, ".", markersize=7, **_faint(number))


def _faint(number: int) -> dict[str, Any]:
    """The look of the dots that a larger mark sums up."""
    colour = LINES[number % len(LINES)]
    return {"color": colour, "alpha": 0.55, "markeredgewidth": 0, "zorder": 2}


@rc_context(STYLE)
def draw_runs(rows: Sequence[Row]) -> Figure:
    """Dice of every case, a row an arm; a thin line joins the same case, a diamond is the mean."""
    figure = Figure(figsize=(WIDTH_IN, 0.8 + 0.55 * len(rows)), layout="constrained")
    axes, places = figure.add_subplot(), range(len(rows))
    for case in rows[0].cases:
        dice = [row.cases[case] for row in rows]
        axes.plot(dice, places, color="#8a94a3", alpha=0.45, linewidth=0.8, zorder=1)
    for place, row in enumerate(rows):
        dice = [*row.cases.values()]
        axes.plot(dice, [place] * len(dice), "o", markersize=6, **_faint(place))
        mean = row.mean_dice  # NaN draws nothing
        axes.plot(mean, place, "D", color=INK, markersize=7, markeredgecolor="white", zorder=3)
    axes.set(
        yticks=places,
        yticklabels=[plain(row.arm) for row in rows],
        ylim=(len(rows) - 0.5, -0.5),
        xlabel="Dice",
    )
    axes.grid(False, axis="y")
    return figure
