"""Mean, spread and interval of figures over cases; the one interval of the whole project.

NaN is a figure that does not apply. No mean counts it.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from dkuxnet.core.schemas import Statistic
from dkuxnet.evaluation.metrics import NOTHING, Array, Metric

FOREGROUND_MEAN = "foreground mean"
FEWEST_CASES = 5  # fewer say too little of how they spread: no interval
# How far skewness may bend an interval: beyond it an end runs away with one odd case. None is more
# than 1.2 times as long as without skewness.
MOST_BEND = 0.25


def known_mean(values: Array, axis: int) -> Array:
    """The mean of what applies along an axis; NaN where nothing does."""
    known = np.isfinite(values)
    counts = known.sum(axis=axis)
    means: Array = np.where(known, values, 0.0).sum(axis=axis) / np.maximum(counts, 1)
    return np.where(counts, means, np.nan)


def summarise(
    figures: Array, classes: Sequence[str], metrics: Sequence[Metric]
) -> dict[str, dict[str, Statistic]]:
    """Class, or FOREGROUND_MEAN (over each case's classes) -> key of a metric -> statistic.

    figures: (cases, classes, metrics). A case's mean is over the classes that apply to it.
    """
    figures = np.concatenate([figures, known_mean(figures, axis=1)[:, np.newaxis]], axis=1)
    return {
        name: {
            metric.key: statistic(figures[:, row, column], metric.bounds)
            for column, metric in enumerate(metrics)
        }
        for row, name in enumerate((*classes, FOREGROUND_MEAN))
    }


def statistic(values: Array, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Statistic:
    """Mean, standard deviation (ddof=1) and interval of those of `values` (cases,) that apply.

    ci95: that of `mean_interval`, within `bounds`, which no value can leave. The mean is None where
    there is no case, the deviation where there is but one.
    """
    known = values[np.isfinite(values)]
    ends = mean_interval(known[np.newaxis])
    return Statistic(
        mean=float(known.mean()) if len(known) else None,
        std=float(known.std(ddof=1)) if len(known) > 1 else None,
        ci95=None if ends is None else within(ends, bounds),
        cases=len(known),
    )


def show_interval(found: Statistic, metric: Metric) -> str:
    """The interval as text, as in "0.812 to 0.874"; where there is none, why."""
    if found.ci95 is not None:
        return " to ".join(map(metric.show, found.ci95))
    return f"< {FEWEST_CASES} cases" if 0 < (found.cases or 0) < FEWEST_CASES else NOTHING


def within(ends: tuple[float, float], bounds: tuple[float, float]) -> tuple[float, float]:
    """The part of an interval that lies between two bounds."""
    low, high = np.clip(ends, *bounds).tolist()
    return low, high


def mean_interval(table: Array, comparisons: int = 1) -> tuple[float, float] | None:
    """The 95 % interval of the mean of a table (seeds, cases), both drawn at random.

    That of Student's t, corrected for the skewness of the cases (Hall, On the removal of skewness
    by transformation, JRSS B 54, 1992). Seeds and cases each add the variance of their own means,
    with the degrees of freedom of Welch and Satterthwaite; with one seed the interval speaks of
    cases alone. comparisons: how many intervals are to hold at once; each gets its share of the 5 %
    outside (Bonferroni).

    None with fewer than FEWEST_CASES cases, and where nothing varies, so that nothing says how
    much other cases would. `measurements/coverage.py` measures how often it holds the true mean.
    """
    seeds, cases = table.shape
    if cases < FEWEST_CASES:
        return None
    mean, by_case = float(table.mean()), table.mean(axis=0)
    of_cases = by_case.var(ddof=1) / cases
    of_seeds = table.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    variance = of_cases + of_seeds
    error = math.sqrt(variance)
    if error < 1e-12 * max(1.0, abs(mean)):  # rounding
        return None
    freedom = variance**2 / (of_cases**2 / (cases - 1) + of_seeds**2 / max(1, seeds - 1))
    third_moment = np.sum((by_case - mean) ** 3) * cases / ((cases - 1) * (cases - 2))
    skewness = third_moment / cases**2 / error**3  # of the mean
    t = float(stdtrit(freedom, 1 - 0.025 / comparisons))
    bend = float(np.clip(skewness / 3, -MOST_BEND / t, MOST_BEND / t))
    low, high = (mean - error * _bent(place, bend) for place in (t, -t))
    return low, high


def _bent(place: float, bend: float) -> float:
    """Where Hall's transformation T + bend T^2 + bend^2 / 3 T^3 + bend / 2 comes to `place`."""
    place -= bend / 2
    return float(np.cbrt(1 + 3 * bend * place) - 1) / bend if abs(bend) > 1e-6 else place
