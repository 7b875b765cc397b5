"""Draws figures from tables: Dice over labels, over minutes, and for ways to choose what to label.

    python docs/generate/curves.py

A section of the page whose picture is named images/results-NAME.svg gets it from its table of the
form that measurements/tables.py prints. What a picture was drawn from stands in its description, so
that a test notices a table that has changed since.
"""

import io
import re
from pathlib import Path
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dkuxnet.benchmark.picture import MARKERS
from dkuxnet.report.pictures import LINES, STYLE, WIDTH_IN

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
LOOP = ROOT / "docs" / "loop.md"
CHOSEN = ROOT / "docs" / "images" / "suggest.svg"


def figures(page: Path = PAGE) -> dict[Path, list[str]]:
    """Each picture and the rows of its table."""
    found = {}
    for section in page.read_text("utf-8").split("\n## "):
        for name in re.findall(r"\]\((images/results-[\w-]+\.svg)\)", section):
            table = section[section.index("| arm | labelled |") :].split("\n\n")[0].splitlines()
            found[page.parent / name] = table[:1] + table[2:]
    return found


def choices(page: Path = LOOP) -> dict[str, list[str]]:
    """What each table of the page on the loop is of, the bold words before it, and its rows."""
    found = re.findall(
        r"\*\*([^*\n]+)\*\*[^|*]*?\n\n(\| strategy \|.+?)(?=\n\n)",
        page.read_text("utf-8"),
        flags=re.S,
    )
    return {name: [lines[0], *lines[2:]] for name, text in found if (lines := text.splitlines())}


def drawn_from(picture: Path) -> list[str]:
    """The rows that it was drawn from."""
    name = ".//{http://purl.org/dc/elements/1.1/}description"
    return (ElementTree.parse(picture).findtext(name) or "").splitlines()


@rc_context(STYLE)
def draw(table: list[str]) -> bytes:
    """Large marks are means, dots are seeds; dashed: all labels. table: its heading and rows."""
    head, *lines = ([cell.strip() for cell in line.strip("| ").split("|")] for line in table)
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    counts = list(dict.fromkeys(row["labelled"] for row in rows if row["labelled"] != "all"))
    figure = Figure(figsize=(WIDTH_IN, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, arm in enumerate(arms):
        look = {"color": LINES[number % len(LINES)], "marker": MARKERS[number % len(MARKERS)]}
        ours = [row for row in rows if row["arm"] == arm]
        few = [row for row in ours if row["labelled"] != "all"]
        aside = 0.03 * (number - (len(arms) - 1) / 2)  # so that arms lie side by side
        places = [counts.index(row["labelled"]) + aside for row in few]
        left.plot(places, [mean(row) for row in few], **look, label=arm)
        for place, row in zip(places, few, strict=True):
            dots(left, place, row, look["color"])
        for row in ours:
            if row["labelled"] == "all":
                label = f"{arm}, all labels"
                left.axhline(mean(row), color=look["color"], linestyle="--", label=label)
            if row["minutes"] != "–":
                minutes = float(row["minutes"])
                right.plot(minutes, mean(row), **look)
                dots(right, minutes, row, look["color"])
                here = {"xytext": (7, -3), "textcoords": "offset points", "fontsize": 8}
                right.annotate(row["labelled"], (minutes, mean(row)), **here)
    left.set(xticks=range(len(counts)), xticklabels=counts, xlabel="labelled cases", ylabel="Dice")
    left.set_xlim(-0.3, max(len(counts), 1) - 0.7)
    right.set_xlabel("minutes of a training (beside a mark: labelled cases)")
    right.set_xlim(0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    content, described = io.BytesIO(), {"Date": None, "Description": "\n".join(table)}
    figure.savefig(content, format="svg", metadata=described)
    return content.getvalue()


@rc_context(STYLE)
def draw_choices(tables: dict[str, list[str]]) -> bytes:
    """Mean and standard deviation of Dice over labels; a panel for each table, see `choices`."""
    figure = Figure(figsize=(WIDTH_IN, 3.0), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        head, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in table)
        counts = [int(cell.split()[0]) for cell in head[1:-1]]
        for number, (strategy, *cells) in enumerate(rows):
            means, spreads = zip(
                *(map(float, cell.split(" ± ")) for cell in cells[:-1]), strict=True
            )
            aside = 0.12 * (number - (len(rows) - 1) / 2)
            axes.errorbar(
                [count + aside for count in counts],
                means,
                spreads,
                color=LINES[number % len(LINES)],
                marker=MARKERS[number % len(MARKERS)],
                capsize=2,
                label=strategy.strip("`"),
            )
        axes.set(title=name, xlabel="labelled cases", xticks=counts)
    panels[0].set_ylabel("Dice")
    handles = {
        label: h
        for each in panels
        for h, label in zip(*each.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False
    )
    rows = [row for name, table in tables.items() for row in (name, *table)]
    content, described = io.BytesIO(), {"Date": None, "Description": "\n".join(rows)}
    figure.savefig(content, format="svg", metadata=described)
    return content.getvalue()


def dots(axes: Axes, place: float, row: dict[str, str], colour: str) -> None:
    """The seeds of a row."""
    seeds = [float(seed) for seed in row["by seed"].split(", ")]
    axes.plot([place] * len(seeds), seeds, ".", color=colour, alpha=0.5)


def mean(row: dict[str, str]) -> float:
    return float(row["Dice"].split()[0])


if __name__ == "__main__":
    for picture, table in figures().items():
        picture.write_bytes(draw(table))
    CHOSEN.write_bytes(draw_choices(choices()))
