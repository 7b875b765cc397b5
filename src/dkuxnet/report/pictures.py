"""What all pictures of the pages share: colours, style, and data URIs."""

import base64
import colorsys
import io
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Okabe and Ito's palette, told apart by readers with the common colour blindnesses; both of the
# first line are light enough for grey scans.
TRUTH, PREDICTION = "#e69f00", "#56b4e9"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# of classes on scans, as on the served page
CLASSES = ("#f0783c", "#409cff", "#50c878", "#f5cd46", "#be78e6", "#3ccdcd", "#f06ea0", "#aabe5a")
INK, GRID = "#2b3440", "#d9dee5"
STYLE: "dict[RcKeyType, Any]" = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": "#8a94a3",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "dkuxnet",
    "svg.image_inline": True,
}
WIDTH_IN = 11.0  # of a page-wide picture


def class_colours(count: int) -> list[str]:
    """`count` different colours as hex; behind the first few, hues a golden angle apart."""
    more = [
        to_hex(colorsys.hls_to_rgb(k * 137.508 / 360 % 1, (0.62, 0.45, 0.76)[k % 3], 0.7))
        for k in range(len(CLASSES) + 1, count + 1)
    ]
    return [*CLASSES[:count], *more]


def plain(text: str) -> str:
    """A name from outside, its dollar signs escaped: between two matplotlib reads a formula."""
    return text.replace("$", r"\$")


def to_svg(figure: Figure) -> bytes:
    """The figure as the content of a file; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with rc_context(STYLE):  # with its salt for the names in the file
        figure.savefig(stream, format="svg", dpi=150, metadata={"Date": None})
    return stream.getvalue()


def data_uri(content: bytes, kind: str = "svg+xml") -> str:
    """An image as an address that holds its content. kind: svg+xml, png, .."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
