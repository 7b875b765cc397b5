"""Dice, Jaccard, 95HD and ASD of two masks, as MedPy defines them (`dc`, `jc`, `hd95`, `asd`; connectivity 1), and
their mean, spread and confidence interval over cases.

The empty cases, where MedPy fails or returns NaN:

- both masks empty: Dice and Jaccard 1, distances 0;
- one mask empty: Dice and Jaccard 0, distances the diagonal of the array. No two voxels lie farther apart, so that a
  missed object can never look better than a poor one (published code often scores it 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

# Relative difference below which a voxel's edges count as equal: far inside the rounding of the figures themselves.
ISOTROPY_TOLERANCE = 1e-8

RESAMPLES, SEED = 10_000, 0


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """2 |P and T| / (|P| + |T|), in [0, 1]; 1 where both are empty.

    prediction, truth: masks of one shape, of any dimension; what is not 0 belongs to the object.
    Raises ValueError where the shapes differ.
    """
    prediction, truth = _masks(prediction, truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else 1.0


def jaccard(prediction: np.ndarray, truth: np.ndarray) -> float:
    """|P and T| / |P or T|, in [0, 1]; 1 where both are empty. Arguments and errors as in `dice`."""
    prediction, truth = _masks(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def segmentation_metrics(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """The four metrics of one class, distances in mm and in voxels.

    prediction, truth: masks of one shape, of any dimension; what is not 0 belongs to the object.
    spacing_mm: length of a voxel's edge along each axis.

    dice, jaccard: in [0, 1].
    hd95_mm: 95th percentile of the surface distances of both directions, pooled (MedPy's `hd95`).
    asd_mm: mean distance from the prediction's surface to the truth's, this direction only (MedPy's `asd`).
    hd95_voxels, asd_voxels: the same on voxels of edge 1, as benchmarks report them.

    The module's docstring states the empty cases. Raises ValueError where the shapes differ or where spacing_mm is not
    one positive length per axis.
    """
    prediction, truth = _masks(prediction, truth)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (truth.ndim,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise ValueError(f"spacing_mm must be {truth.ndim} positive lengths, got {spacing_mm}")
    shape = np.array(truth.shape)
    prediction, truth = _crop_to_objects(prediction, truth)
    hd95_voxels, asd_voxels = _distances(prediction, truth, shape, np.ones_like(spacing))
    if np.allclose(spacing, spacing[0], rtol=ISOTROPY_TOLERANCE, atol=0):
        hd95_mm, asd_mm = hd95_voxels * spacing[0], asd_voxels * spacing[0]
    else:
        hd95_mm, asd_mm = _distances(prediction, truth, shape, spacing)
    return {
        "dice": dice(prediction, truth),
        "jaccard": jaccard(prediction, truth),
        "hd95_mm": float(hd95_mm),
        "asd_mm": float(asd_mm),
        "hd95_voxels": float(hd95_voxels),
        "asd_voxels": float(asd_voxels),
    }


def confusion_counts(prediction: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Voxels: `tp`, `fp`, `fn`, `tn`, `n_pred` (of the prediction), `n_ref` (of the truth). Arguments as in `dice`."""
    prediction, truth = _masks(prediction, truth)
    tp, n_pred, n_ref = (int(np.count_nonzero(mask)) for mask in (prediction & truth, prediction, truth))
    fp, fn = n_pred - tp, n_ref - tp
    return {"tp": tp, "fp": fp, "fn": fn, "tn": truth.size - tp - fp - fn, "n_pred": n_pred, "n_ref": n_ref}


def statistics(values: np.ndarray) -> list[dict[str, Any]]:
    """`mean`, `std` (ddof=1) and `ci95` of each column of `values`, (cases, metrics).

    ci95: [low, high] of the mean by a percentile bootstrap over cases (10,000 resamples, fixed seed, the same cases for
    every column). `std` and `ci95` are None where there is one case only: it has no spread to speak of.
    """
    n = len(values)
    means = values.mean(axis=0).tolist()
    if n < 2:
        return [{"mean": mean, "std": None, "ci95": None} for mean in means]
    # How often each case is drawn in each resample: the resamples' means are then one product of matrices.
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    intervals = np.percentile(draws @ values / n, [2.5, 97.5], axis=0).T.tolist()
    stds = values.std(axis=0, ddof=1).tolist()
    return [{"mean": m, "std": s, "ci95": ci} for m, s, ci in zip(means, stds, intervals, strict=True)]


def _masks(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {prediction.shape} and {truth.shape}")
    return prediction.astype(bool, copy=False), truth.astype(bool, copy=False)


def _crop_to_objects(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks within the bounding box of their union, which is all that the metrics depend on.

    The box needs no margin: beyond it lies background or the array's border, and erosion takes both for background.
    """
    union = prediction | truth
    box = []
    for axis in range(union.ndim):
        others = tuple(a for a in range(union.ndim) if a != axis)
        occupied = np.flatnonzero(union.any(axis=others))
        box.append(slice(occupied[0], occupied[-1] + 1) if occupied.size else slice(0, 0))
    return prediction[tuple(box)], truth[tuple(box)]


def _distances(
    prediction: np.ndarray, truth: np.ndarray, shape: np.ndarray, spacing: np.ndarray
) -> tuple[float, float]:
    """(95HD, ASD) in the unit of `spacing`; `shape` is the whole array's, for the diagonal of the empty cases."""
    if not prediction.any() or not truth.any():
        distance = np.linalg.norm(shape * spacing) if prediction.any() or truth.any() else 0.0
        return distance, distance
    prediction_surface, truth_surface = _surface(prediction), _surface(truth)
    to_truth = distance_transform_edt(~truth_surface, sampling=spacing)[prediction_surface]
    to_prediction = distance_transform_edt(~prediction_surface, sampling=spacing)[truth_surface]
    return np.percentile(np.concatenate([to_truth, to_prediction]), 95), to_truth.mean()


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of `mask` with a face neighbour outside it; the array's border counts as outside."""
    return mask & ~binary_erosion(mask, border_value=0)
