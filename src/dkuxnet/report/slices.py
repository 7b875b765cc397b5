"""Slices of a case as svg: outlines on three planes, and maps on one of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dkuxnet.data.geometry import resample
from dkuxnet.report.case import Map, ShownCase, box_around, maps_of
from dkuxnet.report.pictures import PREDICTION, STYLE, TRUTH, WIDTH_IN, data_uri, plain, to_svg

MOST_HEIGHT_IN, GAP_IN, TITLE_IN = 6.0, 0.12, 0.3  # two tall bodies fit on a printed page
# axial, coronal, sagittal: the axis across the picture and the axis up
VIEWS = ((0, 1), (0, 2), (1, 2))
ROW, ROWS = 4, 2  # maps beside each other; rows of them
MAP_HEIGHT_IN, HEAT = 2.9, "inferno"  # the most that a map gets; its colours


@rc_context(STYLE)
def draw_slices(case: ShownCase) -> str:
    """Draw three slices through the truth's centre of mass, with outlines, all at one scale.

    Radiological convention: the patient's right is on the picture's left. Scans without orientation
    are shown as their file stores them: x to the right, y downwards, z upwards.
    """
    box = box_around(case)
    centre, window = centre_of(case, box), window_of(case.image[box])
    size_mm = np.multiply(case.image[box].shape, case.spacing_mm)
    figure = _lay_out([(size_mm[across], size_mm[up]) for across, up in VIEWS], MOST_HEIGHT_IN)
    for view, axes in enumerate(figure.axes):
        image, truth, prediction = (
            _plane(array[box], view, centre, case.oriented)
            for array in (case.image, case.truth, case.prediction)
        )
        _draw_plane(axes, image, truth, prediction, _spacing(case, view), window)
        _name_edges(axes, view, case.oriented)
    _draw_scale_bar(figure.axes[0], *figure.axes[0].viewLim.size)
    return data_uri(to_svg(figure))


def draw_uncertainty(case: ShownCase) -> list[str]:
    """Draw it on the axial slice of `draw_slices`, with the outline of the truth.

    Empty where the run kept no map of it.
    """
    return _draw_maps(case, maps_of(replace(case, groups={})))


def draw_groups(case: ShownCase) -> list[str]:
    """The same with the share of each query group.

    A picture holds ROW maps, and there are at most ROWS.
    """
    return _draw_maps(case, maps_of(replace(case, uncertainty=None)))


@rc_context(STYLE)
def _draw_maps(case: ShownCase, maps: list[Map]) -> list[str]:
    maps = maps[: ROW * ROWS]  # the viewer has the others
    return [
        _draw_row(case, maps[first : first + ROW], min(len(maps), ROW))
        for first in range(0, len(maps), ROW)
    ]


def _draw_row(case: ShownCase, maps: list[Map], places: int) -> str:
    """A picture of these maps, with room for `places`."""
    box, spacing = box_around(case), _spacing(case, 0)
    centre, window = centre_of(case, box), window_of(case.image[box])
    image, truth = (
        _plane(array[box], 0, centre, case.oriented) for array in (case.image, case.truth)
    )
    extent = _extent(image, spacing)
    figure = _lay_out([(extent[1], extent[3])] * max(places, 3), MAP_HEIGHT_IN)
    for axes, each in zip(figure.axes, maps, strict=False):
        shown = _plane(resample(each.values, case.image.shape)[box], 0, centre, case.oriented)
        _draw_scan(axes, image, spacing, window)
        axes.imshow(
            shown,
            cmap=HEAT,
            vmin=0,
            vmax=1,
            alpha=np.clip(2 * shown, 0, 0.85),
            origin="lower",
            extent=extent,
            interpolation="bilinear",
        )
        _draw_outlines(axes, truth, TRUTH, "solid", spacing)
        axes.set_title(plain(each.title), loc="left", fontsize=10, pad=5)
    for axes in figure.axes[len(maps) :]:
        axes.set_visible(False)
    return data_uri(to_svg(figure))


def centre_of(case: ShownCase, box: tuple[slice, ...]) -> list[int]:
    """The index along each axis at which the slices go through the part `box` of the case."""
    truth, prediction = case.truth[box], case.prediction[box]
    return _slices_through(truth if truth.any() else prediction)


def window_of(image: np.ndarray) -> list[float]:
    """The intensities shown as black and as white."""
    return [float(edge) for edge in np.percentile(image, (0.5, 99.5))]


def _plane(array: np.ndarray, view: int, centre: Sequence[int], oriented: bool) -> np.ndarray:
    """The slice through `centre` as it is shown: (rows upwards, columns to the right)."""
    flip_across, flip_up = (-1, 1) if oriented else (1, -1 if view == 0 else 1)
    through = 3 - sum(VIEWS[view])
    plane: np.ndarray = array.take(centre[through], axis=through).T
    return plane[::flip_up, ::flip_across]


def _spacing(case: ShownCase, view: int) -> tuple[float, float]:
    across, up = VIEWS[view]
    return case.spacing_mm[across], case.spacing_mm[up]


def _lay_out(sizes_mm: list[tuple[float, float]], most_height_in: float) -> Figure:
    """A figure with axes of these sizes beside each other, all at one scale."""
    widths_mm, heights_mm = zip(*sizes_mm, strict=True)
    gaps_in = GAP_IN * (len(sizes_mm) - 1)
    scale = min((WIDTH_IN - gaps_in) / sum(widths_mm), most_height_in / max(heights_mm))  # in/mm
    width_in, height_in = sum(widths_mm) * scale + gaps_in, max(heights_mm) * scale + TITLE_IN
    figure, left = Figure(figsize=(width_in, height_in)), 0.0
    for width, height in sizes_mm:
        width, height = width * scale, height * scale
        bottom = height_in - TITLE_IN - height
        figure.add_axes((left / width_in, bottom / height_in, width / width_in, height / height_in))
        left += width + GAP_IN
    return figure


def _slices_through(label: np.ndarray) -> list[int]:
    """The index along each axis of the centre of mass, or of the fullest slice if that is empty."""
    chosen = []
    for axis, places in enumerate(np.nonzero(label)):
        occupied = np.bincount(places, minlength=label.shape[axis])
        middle = round(places.mean()) if places.size else label.shape[axis] // 2
        chosen.append(middle if occupied[middle] or not places.size else int(occupied.argmax()))
    return chosen


def _draw_plane(
    axes: Axes,
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: tuple[float, float],
    window: Sequence[float],
) -> None:
    """Draw a slice (rows upwards, columns to the right) with both outlines, in mm."""
    _draw_scan(axes, image, spacing_mm, window)
    _draw_outlines(axes, truth, TRUTH, "solid", spacing_mm)
    _draw_outlines(axes, prediction, PREDICTION, (0, (4, 1.2)), spacing_mm)


def _draw_scan(
    axes: Axes, image: np.ndarray, spacing_mm: tuple[float, float], window: Sequence[float]
) -> None:
    extent = _extent(image, spacing_mm)
    axes.imshow(
        image,
        cmap="gray",
        vmin=window[0],
        vmax=max(window[1], window[0] + 1e-6),
        origin="lower",
        extent=extent,
        interpolation="bilinear",
        aspect="equal",
    )
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _draw_outlines(
    axes: Axes, label: np.ndarray, colour: str, dashes: object, spacing_mm: tuple[float, float]
) -> None:
    rows, columns = label.shape
    x_mm = (np.arange(columns + 2) - 0.5) * spacing_mm[0]
    y_mm = (np.arange(rows + 2) - 0.5) * spacing_mm[1]
    halo = withStroke(linewidth=2.8, foreground="#1a1a1a")  # for bright tissue
    for k in np.unique(label[label > 0]):
        inside = np.pad(label == k, 1).astype(float)  # closes outlines that leave the picture
        lines = axes.contour(
            x_mm, y_mm, inside, levels=[0.5], colors=[colour], linewidths=1.6, linestyles=[dashes]
        )
        lines.set_path_effects([halo])
    extent = _extent(label, spacing_mm)
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _extent(
    plane: np.ndarray, spacing_mm: tuple[float, float]
) -> tuple[float, float, float, float]:
    return 0, plane.shape[1] * spacing_mm[0], 0, plane.shape[0] * spacing_mm[1]


def _name_edges(axes: Axes, view: int, oriented: bool) -> None:
    known, unknown = ("Axial", "Coronal", "Sagittal"), ("x-y plane", "x-z plane", "y-z plane")
    axes.set_title((known if oriented else unknown)[view], loc="left", fontsize=10, pad=5)
    if not oriented:
        return
    letters = ("RLAP", "RLSI", "APSI")[view]  # left, right, top, bottom of the picture
    places = (
        (0.015, 0.5, "left", "center"),
        (0.985, 0.5, "right", "center"),
        (0.5, 0.975, "center", "top"),
        (0.5, 0.025, "center", "bottom"),
    )
    for letter, (x, y, ha, va) in zip(letters, places, strict=True):
        axes.text(
            x,
            y,
            letter,
            ha=ha,
            va=va,
            transform=axes.transAxes,
            color="white",
            fontsize=10,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


def _draw_scale_bar(axes: Axes, width_mm: float, height_mm: float) -> None:
    length = max([n for n in (1, 2, 5, 10, 20, 50, 100) if n <= width_mm / 3], default=1)
    x, y = 0.03 * width_mm, 0.04 * height_mm
    halo = [withStroke(linewidth=3, foreground="black")]
    axes.plot(
        [x, x + length],
        [y, y],
        color="white",
        linewidth=2,
        solid_capstyle="butt",
        path_effects=halo,
    )
    axes.text(
        x,
        y + 0.02 * height_mm,
        f"{length} mm",
        color="white",
        fontsize=8,
        va="bottom",
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )
