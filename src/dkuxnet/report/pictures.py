"""The pictures of the page, each a data URI of an svg that needs nothing else: slices of a case, Dice, training curves."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dkuxnet import formats
from dkuxnet.data.dataset import PreparedSet
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.errors import UserError
from dkuxnet.formats.h5 import LA_SPACING_MM
from dkuxnet.types import Volume

# Okabe and Ito's palette, which the common colour blindnesses keep apart; both colours are light enough for grey scans.
TRUTH, PREDICTION = "#e69f00", "#56b4e9"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK, GRID = "#2b3440", "#d9dee5"
STYLE = {"font.size": 9, "font.family": "sans-serif", "text.color": INK, "axes.edgecolor": "#8a94a3", "axes.labelcolor": INK,
         "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
         "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "svg.hashsalt": "dkuxnet", "svg.image_inline": True}
MARGIN_MM = 25.0  # of the scan around what is outlined
WIDTH_IN, MOST_HEIGHT_IN, GAP_IN, TITLE_IN = 11.0, 6.0, 0.12, 0.3  # two tall bodies fit on a printed page
VIEWS = ((0, 1), (0, 2), (1, 2))  # axial, coronal, sagittal: the axis across the picture and the axis up


@dataclass(frozen=True)
class CasePicture:
    """image: (X, Y, Z). truth, prediction: (X, Y, Z) class indices on the same grid; all in RAS order.

    oriented: False where the file says nothing about the patient's left and right. note: what a reader should know.
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    spacing_mm: tuple[float, float, float]
    oriented: bool = True
    note: str = ""


def load_case(data: PreparedSet, name: str, prediction_file: Path, labels: dict[str, int]) -> CasePicture:
    """A test case on its scan's grid or, where the scan cannot be read any more, on the network's.

    labels: class name -> value in the prediction's file, class by class. Raises UserError where a part is missing.
    """
    info = data.info(name)
    affine, shape = np.array(info["affine"], dtype=float), tuple(info["shape"])
    stored = formats.read(prediction_file, kind="label").array
    if stored.shape != shape:
        raise UserError(f"its prediction has {stored.shape} voxels, its scan {shape}: they are not of one preparation")
    indices = np.zeros(shape, np.uint8)
    for index, value in enumerate(labels.values()):
        indices[stored == value] = index
    prediction = to_ras(Volume(indices, affine))
    oriented = not (formats.suffix(info["images"][0]) == ".h5"
                    and np.allclose(affine, np.diag([LA_SPACING_MM] * 3 + [1.0])))
    scan = _read_scan(info["images"][0], shape)
    if scan is not None:
        image, truth = to_ras(Volume(scan, affine)), to_ras(Volume(data.array(name, "truth"), affine))
        return CasePicture(image.array, truth.array, prediction.array, image.spacing_mm, oriented)
    image, truth = data.array(name, "image")[0], data.array(name, "label")
    spacing_mm = Volume(image, np.array(info["prepared_affine"])).spacing_mm
    shown = resample_label(prediction.array, image.shape, len(labels))
    return CasePicture(image, truth, shown, spacing_mm, oriented, "The scan's file cannot be read any more; shown is the "
                       "scan as the network saw it, resampled, while Dice was measured on the scan's own voxels.")


def _read_scan(path: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """(X, Y, Z), the first channel; None where the file is gone or another one."""
    try:
        array = formats.read(path).array
    except UserError:
        return None
    array = array[0] if array.ndim == 4 else array
    return array if array.shape == shape else None


@rc_context(STYLE)
def draw_slices(case: CasePicture) -> str:
    """Three slices through the truth's centre of mass, all at one scale, with the outlines of truth and prediction.

    Radiological convention: the patient's right is on the picture's left. Scans without orientation are shown as their
    file stores them: x to the right, y downwards, z upwards.
    """
    box = _box_around(case)
    image, truth, prediction = (array[box] for array in (case.image, case.truth, case.prediction))
    centre = _slices_through(truth if truth.any() else prediction)
    window = np.percentile(image, (0.5, 99.5)).tolist()
    size_mm = [n * spacing for n, spacing in zip(image.shape, case.spacing_mm, strict=True)]
    all_axes = _lay_out([(size_mm[across], size_mm[up]) for across, up in VIEWS])
    for view, (axes, (across, up)) in enumerate(zip(all_axes, VIEWS, strict=True)):
        flip_across, flip_up = (-1, 1) if case.oriented else (1, -1 if view == 0 else 1)
        through = 3 - across - up
        planes = [array.take(centre[through], axis=through).T[::flip_up, ::flip_across]
                  for array in (image, truth, prediction)]
        _draw_plane(axes, *planes, (case.spacing_mm[across], case.spacing_mm[up]), window)
        _name_edges(axes, view, case.oriented)
    _draw_scale_bar(all_axes[0], *all_axes[0].viewLim.size)
    return data_uri(to_svg(all_axes[0].figure))


def _lay_out(sizes_mm: list[tuple[float, float]]) -> list[Axes]:
    """Axes beside each other in a new figure, all with as many mm to the inch."""
    widths_mm, heights_mm = zip(*sizes_mm, strict=True)
    gaps_in = GAP_IN * (len(sizes_mm) - 1)
    scale = min((WIDTH_IN - gaps_in) / sum(widths_mm), MOST_HEIGHT_IN / max(heights_mm))  # inches a mm
    width_in, height_in = sum(widths_mm) * scale + gaps_in, max(heights_mm) * scale + TITLE_IN
    figure, left = Figure(figsize=(width_in, height_in)), 0.0
    for width, height in sizes_mm:
        bottom = height_in - TITLE_IN - height * scale
        figure.add_axes((left / width_in, bottom / height_in, width * scale / width_in, height * scale / height_in))
        left += width * scale + GAP_IN
    return figure.axes


def _box_around(case: CasePicture) -> tuple[slice, ...]:
    """The part of the scan that holds every outline, with a margin; all of it where there is none."""
    outlined = (case.truth > 0) | (case.prediction > 0)
    box = []
    for axis, spacing in enumerate(case.spacing_mm):
        occupied = np.flatnonzero(outlined.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = round(MARGIN_MM / spacing)
        box.append(slice(max(occupied[0] - margin, 0), occupied[-1] + 1 + margin) if occupied.size else slice(None))
    return tuple(box)


def _slices_through(label: np.ndarray) -> list[int]:
    """Index along each axis of the slice through the centre of mass; where that one holds nothing, of the fullest."""
    chosen = []
    for axis, places in enumerate(np.nonzero(label)):
        occupied = np.bincount(places, minlength=label.shape[axis])
        middle = round(places.mean()) if places.size else label.shape[axis] // 2
        chosen.append(middle if occupied[middle] or not places.size else int(occupied.argmax()))
    return chosen


def _draw_plane(
    axes: Axes, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, spacing_mm: tuple[float, float],
    window: Sequence[float],
) -> None:
    """(rows upwards, columns to the right), in mm."""
    rows, columns = image.shape
    extent = (0, columns * spacing_mm[0], 0, rows * spacing_mm[1])
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=max(window[1], window[0] + 1e-6), origin="lower", extent=extent,
                interpolation="bilinear", aspect="equal")
    x_mm, y_mm = (np.arange(columns + 2) - 0.5) * spacing_mm[0], (np.arange(rows + 2) - 0.5) * spacing_mm[1]
    for label, colour, dashes in ((truth, TRUTH, "solid"), (prediction, PREDICTION, (0, (4, 1.2)))):
        for k in np.unique(label[label > 0]):
            inside = np.pad(label == k, 1).astype(float)  # the border closes outlines that leave the picture
            lines = axes.contour(x_mm, y_mm, inside, levels=[0.5], colors=[colour], linewidths=1.6, linestyles=[dashes])
            lines.set_path_effects([withStroke(linewidth=2.8, foreground="#1a1a1a")])  # stands out on bright tissue too
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _name_edges(axes: Axes, view: int, oriented: bool) -> None:
    title = (("Axial", "Coronal", "Sagittal") if oriented else ("x-y plane", "x-z plane", "y-z plane"))[view]
    axes.set_title(title, loc="left", fontsize=10, pad=5)
    if not oriented:
        return
    letters = ("RLAP", "RLSI", "APSI")[view]  # left, right, top, bottom of the picture
    places = ((0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center"),
              (0.5, 0.975, "center", "top"), (0.5, 0.025, "center", "bottom"))
    for letter, (x, y, ha, va) in zip(letters, places, strict=True):
        axes.text(x, y, letter, ha=ha, va=va, transform=axes.transAxes, color="white", fontsize=10, fontweight="bold",
                  path_effects=[withStroke(linewidth=2, foreground="black")])


def _draw_scale_bar(axes: Axes, width_mm: float, height_mm: float) -> None:
    length = max([n for n in (1, 2, 5, 10, 20, 50, 100) if n <= width_mm / 3], default=1)
    x, y = 0.03 * width_mm, 0.04 * height_mm
    halo = [withStroke(linewidth=3, foreground="black")]
    axes.plot([x, x + length], [y, y], color="white", linewidth=2, solid_capstyle="butt", path_effects=halo)
    axes.text(x, y + 0.02 * height_mm, f"{length} mm", color="white", fontsize=8, va="bottom",
              path_effects=[withStroke(linewidth=2, foreground="black")])


@rc_context(STYLE)
def draw_dice(dice: dict[str, Sequence[float]], means: dict[str, tuple[float, Sequence[float] | None]]) -> str:
    """Dice of every case, a row a class, with the mean and its 95 % interval. means: class -> (mean, [low, high] or None)."""
    figure = Figure(figsize=(WIDTH_IN, 0.75 + 0.62 * len(dice)), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, values) in enumerate(dice.items()):
        spread = 0.16 * np.sin(2.4 * np.arange(len(values)))  # keeps neighbours apart; a random jitter would change the page
        axes.plot(values, row + 0.12 + spread, "o", color=LINES[0], alpha=0.55, markersize=6, markeredgewidth=0,
                  clip_on=False)
        mean, interval = means[name]
        low, high = interval or (mean, mean)
        axes.plot([low, high], [row - 0.28] * 2, color=INK, linewidth=2)
        axes.plot(mean, row - 0.28, "D", color=INK, markersize=6)
    lowest = min(min(values) for values in dice.values())
    axes.set(xlim=(max(0, lowest - 0.05 * (1.02 - lowest) - 0.005), 1.005), ylim=(len(dice) - 0.5, -0.6), xlabel="Dice",
             yticks=range(len(dice)), yticklabels=[plain(name) for name in dice])
    axes.grid(False, axis="y")
    return data_uri(to_svg(figure))


@rc_context(STYLE)
def draw_curves(rows: list[dict[str, float]]) -> str:
    """Losses (logarithmic), learning rate and, where a run validated, Dice of the validation cases, over the steps."""
    other = {"step", "loss", "lr", "grad_norm", "seconds", "validation_dice"}
    parts = list(dict.fromkeys(key for row in rows for key in row if key not in other))
    losses = [*(["loss"] if len(parts) != 1 else []), *parts]
    panels = [("Loss", losses), ("Learning rate", ["lr"]), ("Dice of the validation cases", ["validation_dice"])]
    panels = [(title, keys) for title, keys in panels if any(key in row for row in rows for key in keys)]
    figure = Figure(figsize=(WIDTH_IN, 3.1), layout="constrained")
    all_axes = figure.subplots(1, len(panels), width_ratios=[1.6] + [1.0] * (len(panels) - 1), squeeze=False)[0]
    for axes, (title, keys) in zip(all_axes, panels, strict=True):
        for number, key in enumerate(keys):
            points = [(row["step"] + 1, row[key]) for row in rows if key in row]
            name = {"loss": "sum of all"}.get(key, plain(key))
            axes.plot(*zip(*points, strict=True), color=LINES[number % len(LINES)], label=name, linewidth=1.4,
                      marker="o" if len(points) < 30 else None, markersize=3)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(xlabel="step")
        if title == "Loss":
            if any(row.get(key, 0) > 0 for row in rows for key in keys):
                axes.set_yscale("log")
            axes.legend(frameon=False, ncols=min(len(keys), 4))
        else:
            axes.set_ylim(bottom=0)
    return data_uri(to_svg(figure))


def plain(text: str) -> str:
    """A name from outside, without its dollar signs: matplotlib would read a formula between two."""
    return text.replace("$", r"\$")


def to_svg(figure: Figure) -> bytes:
    """The figure as a file of its own; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", dpi=150, metadata={"Date": None})  # no date: the same run, the same page
    return stream.getvalue()


def data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
