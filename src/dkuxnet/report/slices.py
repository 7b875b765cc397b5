"""Slices of a case as an svg: outlines on three planes, and the maps of uncertainty and query
groups on one.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dkuxnet.data.geometry import resample
from dkuxnet.report.case import Map, ShownCase, box_around, maps_of
from dkuxnet.report.pictures import PREDICTION, STYLE, TRUTH, WIDTH_IN, data_uri, plain, to_svg

MOST_HEIGHT_IN, GAP_IN, TITLE_IN = 6.0, 0.12, 0.3  # two tall bodies fit on a printed page
VIEWS = (
    (0, 1),
    (0, 2),
    (1, 2),
)  # axial, coronal, sagittal: the axis across the picture and the axis up
ROW, ROWS, MAP_HEIGHT_IN, HEAT = (
    4,
    2,
    2.9,
    "inferno",
)  # maps beside each other; rows; the tallest a map gets; its colours


@rc_context(STYLE)
def draw_slices(case: ShownCase) -> str:
    """Three slices through the truth's centre of mass, all at one scale, with the outlines of
    truth and prediction.

    Radiological convention: the patient's right is on the picture's left. Scans without orientation
    are shown as their file stores them: x to the right, y downwards, z upwards.
    """
    box = box_around(case)
    centre, window = centre_of(case, box), window_of(case.image[box])
    size_mm = [
        n * spacing for n, spacing in zip(case.image[box].shape, case.spacing_mm, strict=True)
    ]
    all_axes = _lay_out([(size_mm[across], size_mm[up]) for across, up in VIEWS], MOST_HEIGHT_IN)
    for view, axes in enumerate(all_axes):
        planes = [
            _plane(array[box], view, centre, case.oriented)
            for array in (case.image, case.truth, case.prediction)
        ]
        _draw_plane(axes, *planes, _spacing(case, view), window)
        _name_edges(axes, view, case.oriented)
    _draw_scale_bar(all_axes[0], *all_axes[0].viewLim.size)
    return data_uri(to_svg(all_axes[0].figure))


@rc_context(STYLE)
def draw_maps(case: ShownCase) -> list[str]:
    """On the axial slice of `draw_slices`: uncertainty, and the share of each query group, with
    the outline of the truth. A picture a row of ROW maps, at most ROWS; none where the run kept
    neither.
    """
    maps = maps_of(case)[: ROW * ROWS]  # the viewer has the others
    return [
        _draw_row(case, maps[first : first + ROW], min(len(maps), ROW))
        for first in range(0, len(maps), ROW)
    ]


def _draw_row(case: ShownCase, maps: list[Map], places: int) -> str:
    """places: how many there is room for."""
    box, spacing = box_around(case), _spacing(case, 0)
    centre, window = centre_of(case, box), window_of(case.image[box])
    image, truth = (
        _plane(array[box], 0, centre, case.oriented) for array in (case.image, case.truth)
    )
    extent = _extent(image, spacing)
    all_axes = _lay_out([(extent[1], extent[3])] * max(places, 3), MAP_HEIGHT_IN)
    for axes, each in zip(all_axes, maps, strict=False):
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
    for axes in all_axes[len(maps) :]:
        axes.set_visible(False)
    return data_uri(to_svg(all_axes[0].figure))


def centre_of(case: ShownCase, box: tuple[slice, ...]) -> list[int]:
    """Where the slices go through the part `box` of the case."""
    truth, prediction = case.truth[box], case.prediction[box]
    return _slices_through(truth if truth.any() else prediction)


def window_of(image: np.ndarray) -> list[float]:
    """The intensities that are black and white."""
    return np.percentile(image, (0.5, 99.5)).tolist()


def _plane(array: np.ndarray, view: int, centre: Sequence[int], oriented: bool) -> np.ndarray:
    """The slice through `centre` as it is shown: (rows upwards, columns to the right)."""
    flip_across, flip_up = (-1, 1) if oriented else (1, -1 if view == 0 else 1)
    through = 3 - sum(VIEWS[view])
    return array.take(centre[through], axis=through).T[::flip_up, ::flip_across]


def _spacing(case: ShownCase, view: int) -> tuple[float, float]:
    return tuple(case.spacing_mm[axis] for axis in VIEWS[view])


def _lay_out(sizes_mm: list[tuple[float, float]], most_height_in: float) -> list[Axes]:
    """Axes beside each other in a new figure, all with as many mm to the inch."""
    widths_mm, heights_mm = zip(*sizes_mm, strict=True)
    gaps_in = GAP_IN * (len(sizes_mm) - 1)
    scale = min(
        (WIDTH_IN - gaps_in) / sum(widths_mm), most_height_in / max(heights_mm)
    )  # inches a mm
    width_in, height_in = sum(widths_mm) * scale + gaps_in, max(heights_mm) * scale + TITLE_IN
    figure, left = Figure(figsize=(width_in, height_in)), 0.0
    for width, height in sizes_mm:
        bottom = height_in - TITLE_IN - height * scale
        figure.add_axes(
            (
                left / width_in,
                bottom / height_in,
                width * scale / width_in,
                height * scale / height_in,
            )
        )
        left += width * scale + GAP_IN
    return figure.axes


def _slices_through(label: np.ndarray) -> list[int]:
    """Index along each axis of the slice through the centre of mass; where that one holds nothing,
    of the fullest.
    """
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
    """(rows upwards, columns to the right), in mm."""
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
    x_mm, y_mm = (
        (np.arange(columns + 2) - 0.5) * spacing_mm[0],
        (np.arange(rows + 2) - 0.5) * spacing_mm[1],
    )
    for k in np.unique(label[label > 0]):
        inside = np.pad(label == k, 1).astype(
            float
        )  # the border closes outlines that leave the picture
        lines = axes.contour(
            x_mm, y_mm, inside, levels=[0.5], colors=[colour], linewidths=1.6, linestyles=[dashes]
        )
        lines.set_path_effects(
            [withStroke(linewidth=2.8, foreground="#1a1a1a")]
        )  # stands out on bright tissue too
    extent = _extent(label, spacing_mm)
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _extent(
    plane: np.ndarray, spacing_mm: tuple[float, float]
) -> tuple[float, float, float, float]:
    return 0, plane.shape[1] * spacing_mm[0], 0, plane.shape[0] * spacing_mm[1]


def _name_edges(axes: Axes, view: int, oriented: bool) -> None:
    title = (
        ("Axial", "Coronal", "Sagittal") if oriented else ("x-y plane", "x-z plane", "y-z plane")
    )[view]
    axes.set_title(title, loc="left", fontsize=10, pad=5)
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
