"""The table of scores that a training and an evaluation end with."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from dkuxnet.core.schemas import Found, Statistic
from dkuxnet.evaluation.found import FOUND_HEADINGS, show_found, together
from dkuxnet.evaluation.metrics import DICE, NOTHING, SHOWN, Metric
from dkuxnet.evaluation.statistics import FOREGROUND_MEAN, show_interval

MOST_CLASSES = 12  # rows


def scores_table(
    summary: dict[str, dict[str, Statistic]], title: str, found: dict[str, Found] | None
) -> tuple[Table, str]:
    """A row a class: means, and what was missed; and the sentence that belongs below, or "".

    Of many classes those with the lowest Dice. found: None in runs of earlier versions.
    """
    classes, shown, rows = _rows(summary)
    others = [metric for metric in SHOWN if metric is not DICE]
    counts = _counts(rows, found or {})
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("class", no_wrap=True)
    for column in ("Dice", "95 % CI", *(metric.title for metric in others), *counts):
        table.add_column(column, justify="right")
    for row, name in enumerate(rows):
        metrics, dice = summary[name], summary[name][DICE.key]
        spread = "" if dice.std is None else f" ± {DICE.show(dice.std)}"
        table.add_row(
            escape(name),
            f"{DICE.show(dice.mean)}{spread}",
            show_interval(dice, DICE),
            *(m.show(metrics[m.key].mean) if m.key in metrics else NOTHING for m in others),
            *(column[row] for column in counts.values()),
        )
    if len(shown) == len(classes):
        return table, ""
    return table, (
        f"The {len(shown)} classes with the lowest Dice of {len(classes)}; all are in the summary "
        "that was written, or on the page of `dkuxnet report`."
    )


def asked_table(summary: dict[str, dict[str, Statistic]], asked: Sequence[Metric]) -> Table:
    """The same rows with the metrics that were asked for: means."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("class", no_wrap=True)
    for metric in asked:
        table.add_column(metric.title, justify="right")
    for name in _rows(summary)[2]:
        table.add_row(escape(name), *(m.show(summary[name][m.key].mean) for m in asked))
    return table


def _rows(summary: dict[str, dict[str, Statistic]]) -> tuple[list[str], list[str], list[str]]:
    """All classes, those that are shown, and the rows."""
    classes = [name for name in summary if name != FOREGROUND_MEAN]
    shown = worst_classes(summary, classes)
    return classes, shown, [*shown, *([FOREGROUND_MEAN] if len(classes) > 1 else [])]


def _counts(rows: list[str], found: dict[str, Found]) -> dict[str, list[str]]:
    """Heading -> a cell for each row: only what there is to be told.

    In which scans a class is where it is not in all, what is missed, where it is a false alarm.
    """
    if not found:
        return {}
    every = together(list(found.values()))
    # a note says the volume of false alarms: 80 columns are few
    cells = [[text.split(" (")[0] for text in show_found(found.get(name, every))] for name in rows]
    told = (every.present < every.scans, every.missed > 0, every.false_alarms > 0)
    return {
        heading: [cell[column] for cell in cells]
        for column, heading in enumerate(FOUND_HEADINGS)
        if told[column]
    }


def worst_classes(
    summary: dict[str, dict[str, Statistic]], classes: list[str], most: int = MOST_CLASSES
) -> list[str]:
    """All of a few, in their order; of more than `most` the worst by Dice, the lowest first.

    Classes to which no figure applies are the last.
    """
    if len(classes) <= most:
        return classes
    dice = {name: summary[name]["dice"].mean for name in classes}
    return sorted(classes, key=lambda name: 2.0 if (d := dice[name]) is None else d)[:most]
