"""Dice, Jaccard, 95HD and ASD of two masks, as MedPy defines them (`dc`, `jc`, `hd95`, `asd`).

Connectivity is 1. Where MedPy fails or returns NaN:

- both masks empty: NaN, not applicable, as in nnU-Net. Nothing was there to be outlined, so that no
  figure says how well it was; means leave such a case out, and tables count it;
- one mask empty: Dice and Jaccard 0, distances NaN: from nothing there is no distance (published
  code often scores it 0, or the diagonal of the array). Tables count these cases beside the means.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

Array = NDArray[Any]

# Relative difference below which a voxel's edges count as equal: far inside the rounding of the
# figures themselves.
ISOTROPY_TOLERANCE = 1e-8

NOTHING = "–"  # in the place of a figure that does not apply

# How far, in voxels, the columns around a voxel are looked at before the surfaces are searched.
REACH = 5

# Voxels of the box per searched voxel at which a distance transform of the box takes about as long
# as a k-d tree.
VOXELS_A_SEARCH = 50

# For the few points of a surface, quicker to build and to search than scipy's default.
QUICK = {"leafsize": 64, "balanced_tree": False, "compact_nodes": False}


@dataclass(frozen=True)
class Metric:
    """How a metric is called and shown. key: its name in the program, in cases.csv and manifests.

    summary: its name in summary.json; without a unit it is nnU-Net's. digits: decimals of a figure,
    and of one where runs are compared. higher_is_better: None of an error that has a sign. whole:
    whether it needs the whole outline of both masks.
    """

    key: str
    summary: str
    heading: str
    unit: str
    digits: tuple[int, int]
    higher_is_better: bool | None
    whole: bool = False

    @property
    def title(self) -> str:
        """Heading and unit: "95HD (mm)"."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    @property
    def bounds(self) -> tuple[float, float]:
        """What no value lies below, or above."""
        if self.higher_is_better is None:
            return -math.inf, math.inf
        return 0.0, math.inf if self.unit else 1.0

    def applies(self, counts: Mapping[str, float]) -> bool:
        """Whether there is a figure of two masks of so many voxels, `n_pred` and `n_ref`."""
        some = (counts["n_pred"] > 0, counts["n_ref"] > 0)
        return all(some) if self.unit else any(some)

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        if self.higher_is_better is None:
            return "0 is best"
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    def show(self, value: float | None, compared: bool = False, sign: str = "") -> str:
        """The figure as text, "–" where there is none; sign: "+" for one before every value."""
        if value is None or math.isnan(value):
            return NOTHING
        return f"{value:{sign}.{self.digits[compared]}f}"


DICE = Metric("dice", "Dice", "Dice", "", (3, 4), True)
METRICS = (
    DICE,
    Metric("jaccard", "IoU", "Jaccard", "", (3, 4), True),
    Metric("hd95_mm", "HD95_mm", "95HD", "mm", (2, 2), False, whole=True),
    Metric("asd_mm", "ASD_mm", "ASD", "mm", (2, 2), False, whole=True),
    Metric("hd95_voxels", "HD95_voxels", "95HD", "voxels", (2, 2), False, whole=True),
    Metric("asd_voxels", "ASD_voxels", "ASD", "voxels", (2, 2), False, whole=True),
)
SHOWN = tuple(metric for metric in METRICS if metric.unit != "voxels")  # on pages, in tables


class Scores(TypedDict):
    """A figure for each of METRICS; NaN where both masks are empty, distances where one is."""

    dice: float
    jaccard: float
    hd95_mm: float
    asd_mm: float
    hd95_voxels: float
    asd_voxels: float


class Counts(TypedDict):
    """Voxels; n_pred: of the prediction, n_ref: of the truth."""

    tp: int
    fp: int
    fn: int
    tn: int
    n_pred: int
    n_ref: int


def dice(prediction: Array, truth: Array) -> float:
    """2 |P and T| / (|P| + |T|), in [0, 1]; NaN where both are empty.

    prediction, truth: masks of one shape, of any dimension; what is not 0 belongs to the object.
    Raises ValueError where the shapes differ.
    """
    prediction, truth = _masks(prediction, truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else math.nan


def jaccard(prediction: Array, truth: Array) -> float:
    """|P and T| / |P or T|, in [0, 1]; NaN where both are empty. As `dice` in all else."""
    prediction, truth = _masks(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else math.nan


def segmentation_metrics(prediction: Array, truth: Array, spacing_mm: Sequence[float]) -> Scores:
    """The four metrics of one class, distances in mm and in voxels.

    prediction, truth: masks of one shape, of any dimension; what is not 0 belongs to the object.
    spacing_mm: length of a voxel's edge along each axis.

    dice, jaccard: in [0, 1]. hd95_mm: 95th percentile of the surface distances of both directions,
    pooled (MedPy's `hd95`). asd_mm: mean distance from the prediction's surface to the truth's,
    this direction only (MedPy's `asd`). hd95_voxels, asd_voxels: the same on voxels of edge 1, as
    benchmarks report them.

    The module's docstring states the empty cases. Raises ValueError where the shapes differ or
    where spacing_mm is not one positive length per axis.
    """
    prediction, truth = _masks(prediction, truth)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (truth.ndim,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise ValueError(f"spacing_mm must be {truth.ndim} positive lengths, got {spacing_mm}")
    prediction, truth = _crop_to_objects(prediction, truth)
    (hd95_voxels, asd_voxels), (hd95_mm, asd_mm) = _distances(prediction, truth, spacing)
    return {
        "dice": dice(prediction, truth),
        "jaccard": jaccard(prediction, truth),
        "hd95_mm": float(hd95_mm),
        "asd_mm": float(asd_mm),
        "hd95_voxels": float(hd95_voxels),
        "asd_voxels": float(asd_voxels),
    }


def without_outline(scores: Scores) -> Scores:
    """Those of masks of which a part is not known: NaN for what needs the whole of them."""
    nothing = {metric.key: math.nan for metric in METRICS if metric.whole}
    return {**scores, **nothing}  # type: ignore[typeddict-item]  # keys of Scores


def confusion_counts(prediction: Array, truth: Array) -> Counts:
    """Voxels right and wrong; arguments as in `dice`."""
    prediction, truth = _masks(prediction, truth)
    tp, n_pred, n_ref = (
        int(np.count_nonzero(mask)) for mask in (prediction & truth, prediction, truth)
    )
    fp, fn = n_pred - tp, n_ref - tp
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": truth.size - tp - fp - fn,
        "n_pred": n_pred,
        "n_ref": n_ref,
    }


def _masks(prediction: Array, truth: Array) -> tuple[Array, Array]:
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth must have one shape, got {prediction.shape} and {truth.shape}"
        )
    return prediction.astype(bool, copy=False), truth.astype(bool, copy=False)


def _crop_to_objects(prediction: Array, truth: Array) -> tuple[Array, Array]:
    """Both masks within the bounding box of their union, which is all that the metrics depend on.

    The box needs no margin: beyond it lies background or the array's border, and a surface takes
    both for background.
    """
    union = prediction | truth
    for axis in range(union.ndim):
        occupied = np.flatnonzero(union.any(axis=tuple(a for a in range(union.ndim) if a != axis)))
        part = slice(occupied[0], occupied[-1] + 1) if occupied.size else slice(0, 0)
        box = (slice(None),) * axis + (part,)
        union, prediction, truth = union[box], prediction[box], truth[box]
    # readers of NIfTI give the other order
    return np.ascontiguousarray(prediction), np.ascontiguousarray(truth)


def _distances(prediction: Array, truth: Array, spacing: Array) -> list[tuple[float, float]]:
    """(95HD, ASD) in voxels and in the unit of `spacing`; NaN where a mask is empty."""
    if not prediction.any() or not truth.any():
        return [(math.nan, math.nan)] * 2
    units = (np.ones_like(spacing), spacing)
    surfaces = _surface(prediction), _surface(truth)
    isotropic = np.allclose(spacing, spacing[0], rtol=ISOTROPY_TOLERANCE, atol=0)
    figures: list[tuple[float, float]] = []
    for unit in units[:1] if isotropic else units:
        to_truth, to_prediction = _both_ways(*surfaces, unit)
        figures.append(
            (np.percentile(np.concatenate([to_truth, to_prediction]), 95), to_truth.mean())
        )
    if isotropic:
        hd95, asd = figures[0]
        figures.append((hd95 * spacing[0], asd * spacing[0]))
    return figures


def surface_distances(
    prediction: Array, truth: Array, spacing_mm: Sequence[float]
) -> tuple[Array, Array]:
    """Distances in mm from the prediction's surface to the truth's, and back, in no order.

    Both masks must hold something; arguments as in `segmentation_metrics`.
    """
    prediction, truth = _crop_to_objects(*_masks(prediction, truth))
    unit = np.asarray(spacing_mm, dtype=np.float64)
    return _both_ways(_surface(prediction), _surface(truth), unit)


def _both_ways(prediction: Array, truth: Array, unit: Array) -> tuple[Array, Array]:
    return _to_nearest(prediction, truth, unit), _to_nearest(truth, prediction, unit)


def _to_nearest(surface: Array, other: Array, unit: Array) -> Array:
    """Distances from the voxels of a surface to the nearest one of the other, in no order.

    unit: edges of a voxel. How far the other surface is along the first axis is found for every
    voxel at once. A voxel then looks at the columns around its own, the nearest first, until the
    next one is itself farther away than what was found; of a good prediction this leaves few
    voxels. The rest is searched or, where many remain, as of a prediction that is nowhere near the
    truth, read from a distance transform, which bounds the time.
    """
    distances = np.zeros(np.count_nonzero(surface))
    margin = [0, *[REACH] * (other.ndim - 1)]
    around = np.pad(_along_first(other), [(n, n) for n in margin], constant_values=len(other))
    squares = np.square(np.arange(len(other) + 1) * unit[0])
    squares[-1] = np.inf  # nothing in the column
    # places, in the padded array, of the voxels that have no distance yet
    left: Array = np.ravel_multi_index(tuple((_places(surface & ~other) + margin).T), around.shape)
    done = len(distances) - len(left)  # what both surfaces share, at distance 0
    best = np.full(len(left), np.inf)
    for square, columns, next_square in _columns_around(tuple(unit[1:].tolist())):
        if not len(left):
            return distances
        for step in columns @ (np.array(around.strides[1:], int) // around.itemsize):
            np.minimum(best, squares[around.ravel()[left + step]] + square, out=best)
        found = best <= next_square
        last = done + int(np.count_nonzero(found))
        distances[done:last] = np.sqrt(best[found])
        done, left, best = last, left[~found], best[~found]
    far = np.stack(np.unravel_index(left, around.shape), axis=1) - margin
    if len(far) * VOXELS_A_SEARCH > other.size:
        distances[done:] = distance_transform_edt(~other, sampling=unit)[tuple(far.T)]
    elif len(far):
        distances[done:] = cKDTree(_places(other) * unit, **QUICK).query(far * unit)[0]
    return distances


def _along_first(mask: Array) -> Array:
    """Voxels along the first axis to the nearest one of `mask`; the axis's length where none is."""
    small = np.min_scalar_type(len(mask) + 1)  # a byte for most scans: stays in the cache
    away: Array = np.multiply(~mask, len(mask), dtype=small)
    there = range(len(mask))
    for order in (there, there[::-1]):
        for before, here in itertools.pairwise(order):
            np.minimum(away[here], away[before] + 1, out=away[here, ...])
    return away


@lru_cache(maxsize=64)
def _columns_around(unit: tuple[float, ...]) -> list[tuple[float, Array, float]]:
    """The columns around one, the nearest first.

    Of each distance its square, the steps (n, axes) to the columns so far away, and the square of
    the next distance.
    """
    steps = np.array(list(itertools.product(range(-REACH, REACH + 1), repeat=len(unit))), int)
    squares = np.square(steps * unit).sum(axis=1)
    # of the nearest column that these steps do not reach
    beyond = (REACH + 1) ** 2 * min(unit, default=np.inf) ** 2
    each = [square for square in np.unique(squares) if square < beyond]
    return [
        (float(square), steps[squares == square], float(next_square))
        for square, next_square in zip(each, [*each[1:], beyond], strict=True)
    ]


def _places(mask: Array) -> Array:
    """(voxels, axes) indices, as np.argwhere gives them, but faster."""
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), axis=1)


def _surface(mask: Array) -> Array:
    """The voxels of `mask` with a face neighbour outside it, or at the array's border."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        whole, within = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        within[1:] &= whole[:-1]
        within[:-1] &= whole[1:]
        within[[0, -1]] = False
    surface: Array = mask & ~inside
    return surface
