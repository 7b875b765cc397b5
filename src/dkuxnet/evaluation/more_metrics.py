"""Metrics that are computed where they are asked for: `dkuxnet evaluate --metrics`.

docs/evaluation.md states their definitions beside those of other programs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import label

from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import unknown
from dkuxnet.evaluation.metrics import Array, Metric, surface_distances

LESION_IOU = 0.1  # of the overlap from which on a lesion is found
ROUNDING = 1e-9  # relative; three voxels of 0.1 mm are within 0.3 mm

CHOICES = {
    "nsd": (Metric("nsd", "NSD", "NSD", "", (3, 4), True, whole=True),),
    "assd": (Metric("assd_mm", "ASSD_mm", "ASSD", "mm", (2, 2), False, whole=True),),
    "volume": (
        Metric("volume_error_ml", "volume_error_ml", "volume error", "ml", (2, 2), None),
        Metric("volume_error_percent", "volume_error_percent", "volume error", "%", (1, 1), None),
    ),
    "lesions": (
        Metric("lesion_f1", "lesion_F1", "lesion F1", "", (3, 4), True, whole=True),
        Metric("lesion_dice", "lesion_Dice", "lesion Dice", "", (3, 4), True, whole=True),
    ),
}


def asked_in(summary: Mapping[str, Mapping[str, object]]) -> tuple[Metric, ...]:
    """Those that a summary (class -> key of a metric -> statistic) has beside METRICS."""
    keys = next(iter(summary.values()), {}).keys()
    return tuple(metric for each in CHOICES.values() for metric in each if metric.key in keys)


@dataclass(frozen=True)
class Asked:
    """names: of CHOICES. tolerance_mm: of NSD, by class; under "" that of all other classes."""

    names: tuple[str, ...] = ()
    tolerance_mm: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those of the names, in their order."""
        return tuple(metric for name in self.names for metric in CHOICES[name])

    def check(self, classes: Sequence[str]) -> None:
        """Raise UserError where a tolerance names no class, or a class has none."""
        for name in self.tolerance_mm.keys() - {"", *classes}:
            raise unknown("class in --tolerance-mm", name, classes)
        lacking = [name for name in classes if self._tolerance(name) is None]
        if "nsd" in self.names and lacking:
            raise UserError(
                f"nsd counts the surface within a tolerance, and '{lacking[0]}' has none; give "
                f"--tolerance-mm 2 for all classes, or --tolerance-mm '{lacking[0]}=2,...'"
            )

    def figures(
        self, name: str, prediction: Array, truth: Array, spacing_mm: Sequence[float]
    ) -> tuple[float, ...]:
        """Of one class of one case, as `metrics`; NaN where a figure does not apply."""
        found: dict[str, float] = {}
        if {"nsd", "assd"} & {*self.names}:
            found |= surface_figures(prediction, truth, spacing_mm, self._tolerance(name) or 0.0)
        if "volume" in self.names:
            found |= volume_errors(prediction, truth, spacing_mm)
        if "lesions" in self.names:
            found |= lesion_figures(prediction, truth)
        return tuple(found[metric.key] for metric in self.metrics)

    def _tolerance(self, name: str) -> float | None:
        return self.tolerance_mm.get(name, self.tolerance_mm.get(""))


def parse_asked(metrics: str, tolerance_mm: str = "") -> Asked:
    """Read "nsd,lesions" and "2" or "liver=3,tumour=1,2"; raises UserError for anything else."""
    names = tuple(dict.fromkeys(filter(None, (name.strip() for name in metrics.split(",")))))
    for name in names:
        if name not in CHOICES:
            raise unknown("metric", name, CHOICES)
    tolerances = {}
    for part in filter(None, tolerance_mm.split(",")):
        of_class, _, value = part.strip().rpartition("=")
        try:
            tolerances[of_class] = float(value)
        except ValueError:
            tolerances[of_class] = math.nan
        if not 0 <= tolerances[of_class] < math.inf:
            raise UserError(
                f"--tolerance-mm '{part}': expected a length in mm, such as 2, or CLASS=2; several "
                "with commas"
            )
    return Asked(names, tolerances)


def surface_figures(
    prediction: Array, truth: Array, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """Of the distances of both surfaces' voxels to the other surface, pooled.

    nsd: the share within the tolerance; 0 where one mask is empty. assd_mm: the mean (MedPy's
    `assd`).
    """
    some = prediction.any(), truth.any()
    if not all(some):
        return {"nsd": 0.0 if any(some) else math.nan, "assd_mm": math.nan}
    distances = np.concatenate(surface_distances(prediction, truth, spacing_mm))
    near = distances <= tolerance_mm * (1 + ROUNDING)
    return {"nsd": float(near.mean()), "assd_mm": float(distances.mean())}


def volume_errors(prediction: Array, truth: Array, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Prediction less truth, in ml and in per cent of the truth."""
    n_pred, n_ref = np.count_nonzero(prediction), np.count_nonzero(truth)
    more = n_pred - n_ref
    return {
        "volume_error_ml": more * math.prod(spacing_mm) / 1000 if n_pred or n_ref else math.nan,
        "volume_error_percent": 100 * more / n_ref if n_ref else math.nan,
    }


def lesion_figures(prediction: Array, truth: Array) -> dict[str, float]:
    """Of connected components, corners included, matched one to one.

    The pair with the largest IoU is matched first; a lesion is found by an IoU of LESION_IOU or
    more. lesion_f1: 2 found / (all of both sides). lesion_dice: mean over the truth's lesions of
    the Dice with its match, 0 without one.
    """
    corners = np.ones((3,) * truth.ndim)
    (ours, n_pred), (theirs, n_ref) = label(prediction, corners), label(truth, corners)
    if not n_pred + n_ref:
        return {"lesion_f1": math.nan, "lesion_dice": math.nan}
    both = (ours > 0) & (theirs > 0)
    pairs, shared = np.unique(np.stack([ours[both], theirs[both]]), axis=1, return_counts=True)
    of_pair = np.bincount(ours.ravel())[pairs[0]] + np.bincount(theirs.ravel())[pairs[1]]
    iou = shared / (of_pair - shared)
    free, dice = [{*range(1, n_pred + 1)}, {*range(1, n_ref + 1)}], []
    for place in np.argsort(-iou, kind="stable"):
        pair = pairs[:, place].tolist()
        if iou[place] >= LESION_IOU and pair[0] in free[0] and pair[1] in free[1]:
            free[0].remove(pair[0])
            free[1].remove(pair[1])
            dice.append(2 * shared[place] / of_pair[place])
    return {
        "lesion_f1": 2 * len(dice) / (n_pred + n_ref),
        "lesion_dice": float(np.sum(dice)) / n_ref if n_ref else math.nan,
    }
