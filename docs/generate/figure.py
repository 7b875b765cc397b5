"""Draws docs/images/architecture.svg: how a scan flows through the wings of src/dkuxnet.

    python docs/generate/figure.py

Which wings there are, what each uses, and which arrows are calls or files comes from the table that
tests/test_architecture.py holds over the imports. Only places and words stand here.
"""

import runpy
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[2]
FIGURE = ROOT / "docs" / "images" / "architecture.svg"

# column and row of a wing, and what it does
PLACES = {
    "data": (1, 0, "check, resample, store"),
    "models": (0, 1, "networks and methods"),
    "training": (1, 1, "the loop: steps, resume, scores"),
    "runs": (1, 2, "a training on disk"),
    "benchmark": (2, 2, "compare many runs"),
    "prediction": (1, 3, "windows over a whole scan"),
    "export": (2, 3, "MONAI, ONNX, torch"),
    "evaluation": (1, 4, "Dice, Jaccard, 95HD, ASD"),
    "serve": (2, 4, "a local page, 3D Slicer"),
    "report": (1, 5, "one offline page"),
}
BARS = {
    "cli": "one command for each step: prepare, train, predict, evaluate, report, ...",
    "machine": "files written whole, memory, processes, devices",
    "core": "types, settings, errors, schemas",
}
# what comes from outside: column, row, name, what it is
INPUTS = [(0, 0, "scans", "a few with label maps"), (0, 3, "new scans", "without label maps")]
# from, to, what passes
FLOW = [
    ("scans", "data", ""),
    ("data", "training", "prepared set"),
    ("models", "training", ""),
    ("training", "runs", "weights, settings, metrics"),
    ("runs", "benchmark", ""),
    ("runs", "prediction", "trained model"),
    ("new scans", "prediction", ""),
    ("prediction", "export", ""),
    ("prediction", "serve", ""),
    ("prediction", "evaluation", "label maps"),
    ("evaluation", "report", "scores"),
]
LEFT = (20, 262, 572)
WIDE = (182, 250, 188)
TOP, ROW, HEIGHT, WIDTH = 84, 112, 78, 780
SPINE, SIDE, GROUND = "#1f6f8b", "#6b5b95", "#5f6b76"

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
.name { font-size: 17px; font-weight: 650; fill: #ffffff; }
.does { font-size: 13px; font-weight: 400; fill: #ffffff; }
.uses { font-size: 11px; fill: #ffffff; fill-opacity: 0.82; }
.outside { font-size: 16px; font-weight: 600; fill: #7a4a00; }
.what { font-size: 12.5px; fill: #7a4a00; }
.passes { font-size: 12.5px; fill: #333333; }
.key { font-size: 12px; fill: #444444; }
"""


def draw(wings: dict[str, set[str]]) -> str:
    """The figure of a table of wings; KeyError where one has no place, ValueError where it left."""
    wings = {name: uses for name, uses in wings.items() if name}
    ground = [name for name, uses in wings.items() if uses <= {"core"} and name not in PLACES]
    used = set().union(*wings.values())
    (roof,) = [name for name, uses in wings.items() if name not in used and "benchmark" in uses]
    gone = (PLACES.keys() | BARS.keys()) - wings.keys()
    if gone:
        raise ValueError(f"docs/generate/figure.py places {sorted(gone)}: no such wing")
    boxes = {name: place(*PLACES[name][:2]) for name in wings if name not in (roof, *ground)}
    boxes |= {name: place(column, row) for column, row, name, _ in INPUTS}
    bottom = TOP + 6 * ROW - (ROW - HEIGHT) + 26
    height = bottom + 48 * len(ground) + 44

    parts = [bar(roof, 20, SIDE)]
    parts += [arrow(boxes[a], boxes[b], said, solid(a, b, wings)) for a, b, said in FLOW]
    parts += [outside(boxes[name], name, what) for _, _, name, what in INPUTS]
    for name in PLACES:
        uses = [each for each in wings if each in wings[name] and each not in ground]
        colour = SPINE if PLACES[name][0] == 1 else SIDE
        parts.append(box(boxes[name], name, PLACES[name][2], uses, colour))
    for i, name in enumerate(reversed(ground)):
        parts.append(bar(name, bottom + 48 * i, GROUND))
    parts.append(key(height - 22))
    return "\n".join([*head(height), *parts, "</svg>", ""])


def place(column: int, row: int) -> tuple[int, int, int, int]:
    """Left, top, width, height of a box."""
    return LEFT[column], TOP + row * ROW, WIDE[column], HEIGHT


def solid(a: str, b: str, wings: dict[str, set[str]]) -> bool:
    """Whether one of the two calls the other; else only files pass between them."""
    return b in wings.get(a, ()) or a in wings.get(b, ())


def head(height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" '
        'aria-label="How a scan flows through the wings of dkuxnet">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" '
        'fill="#333333"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#fbfbfa"/>',
    ]


def text(x: float, y: float, words: str, kind: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def rect(x: int, y: int, width: int, height: int, fill: str, more: str = "") -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}"{more}/>'


def box(where: tuple[int, int, int, int], name: str, does: str, uses: list[str], fill: str) -> str:
    x, y, width, height = where
    middle = x + width / 2
    lines = [rect(x, y, width, height, fill)]
    if not uses:
        return "\n".join(
            [*lines, text(middle, y + 34, name, "name"), text(middle, y + 55, does, "does")]
        )
    said = "uses " + ", ".join(uses)
    rows = [said] if len(said) < width / 5.6 else halves(said)
    first = y + (28 if len(rows) == 1 else 22)
    lines += [text(middle, first, name, "name"), text(middle, first + 18, does, "does")]
    lines += [text(middle, first + 35 + 12 * i, row, "uses") for i, row in enumerate(rows)]
    return "\n".join(lines)


def halves(said: str) -> list[str]:
    """Two lines, broken at the comma nearest to the middle."""
    breaks = [i + 1 for i, letter in enumerate(said) if letter == ","]
    at = min(breaks, key=lambda i: abs(i - len(said) / 2))
    return [said[:at], said[at:].strip()]


def bar(name: str, y: int, fill: str) -> str:
    words = (
        f'<text x="40" y="{y + 25}" class="name">{name}'
        f'<tspan class="does" font-weight="400" dx="14">{escape(BARS[name])}</tspan></text>'
    )
    return rect(20, y, WIDTH - 40, 38, fill) + words


def outside(where: tuple[int, int, int, int], name: str, what: str) -> str:
    x, y, width, height = where
    edge = ' stroke="#c98a2b" stroke-dasharray="5 4" stroke-width="1.5"'
    middle = x + width / 2
    return "\n".join(
        [
            rect(x, y + 8, width, height - 16, "#fff4dc", edge),
            text(middle, y + 37, name, "outside"),
            text(middle, y + 55, what, "what"),
        ]
    )


def arrow(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int], said: str, calls: bool
) -> str:
    """From box to box: down in a column, across in a row, else round the corner."""
    ax, ay, aw, ah = a
    bx, by, _, bh = b
    label = ""
    if ax == bx:
        middle = ax + aw / 2
        path = f"M{middle} {ay + ah} V{by - 3}"
        label = text(middle + 10, (ay + ah + by) / 2 + 4, said, "passes", "start")
    elif ay == by:
        path = f"M{ax + aw} {ay + ah / 2} H{bx - 3}"
    else:  # leaves on the right, below the arrow of its row, and comes in from the left
        turn = ax + aw + 26
        path = f"M{ax + aw} {ay + ah * 0.72} H{turn} V{by + bh / 2} H{bx - 3}"
    dash = "" if calls else ' stroke-dasharray="6 4"'
    line = f'<path d="{path}" fill="none" stroke="#333333" stroke-width="2"{dash}'
    return f'{line} marker-end="url(#tip)"/>{label}'


def key(y: int) -> str:
    line = '<path d="M{0} {1} H{2}" stroke="#333333" stroke-width="2"{3}/>'
    return "\n".join(
        [
            line.format(24, y - 4, 60, ""),
            text(68, y, "one calls the other", "key", "start"),
            line.format(212, y - 4, 248, ' stroke-dasharray="6 4"'),
            text(256, y, "only files pass", "key", "start"),
            text(WIDTH - 24, y, "machine and core stand below all", "key", "end"),
        ]
    )


def wings_of_the_tests() -> dict[str, set[str]]:
    table = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))["WINGS"]
    assert isinstance(table, dict)
    return table


if __name__ == "__main__":
    FIGURE.write_text(draw(wings_of_the_tests()), "utf-8")
