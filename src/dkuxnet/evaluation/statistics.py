"""Mean, spread and interval of figures over cases; resampling for all intervals of the project.

NaN is a figure that does not apply. No mean counts it.
"""

from collections.abc import Sequence

import numpy as np

from dkuxnet.core.schemas import Statistic
from dkuxnet.evaluation.metrics import Array, Metric

FOREGROUND_MEAN = "foreground mean"
RESAMPLES, SEED = 10_000, 0


def known_mean(values: Array, axis: int) -> Array:
    """The mean of what applies along an axis; NaN where nothing does."""
    known = np.isfinite(values)
    counts = known.sum(axis=axis)
    means: Array = np.where(known, values, 0.0).sum(axis=axis) / np.maximum(counts, 1)
    return np.where(counts, means, np.nan)


def unmeasured(figures: Array, both: Array, metrics: Sequence[Metric]) -> Array:
    """`figures` (cases, classes, metrics) without distances that nobody measured.

    both: (cases, classes), whether prediction and label have the class. Where that is so in no
    case, its distances are nothing but the scans' diagonals: NaN.
    """
    distances = np.array([not metric.higher_is_better for metric in metrics])
    return np.where(np.outer(~both.any(axis=0), distances), np.nan, figures)


def summarise(
    figures: Array, both: Array, classes: Sequence[str], metrics: Sequence[Metric]
) -> dict[str, dict[str, Statistic]]:
    """Class, or FOREGROUND_MEAN (over each case's classes) -> key of a metric -> statistic.

    figures: (cases, classes, metrics). both: see `unmeasured`. A case's mean is over the classes
    that apply to it.
    """
    figures = np.concatenate([figures, known_mean(figures, axis=1)[:, np.newaxis]], axis=1)
    both = np.concatenate([both, both.any(axis=1, keepdims=True)], axis=1)
    figures = unmeasured(figures, both, metrics)
    found = iter(statistics(figures.reshape(len(figures), -1)))
    return {
        name: {metric.key: next(found) for metric in metrics}
        for name in (*classes, FOREGROUND_MEAN)
    }


def statistics(values: Array) -> list[Statistic]:
    """Mean, standard deviation (ddof=1) and interval of each column of `values`, (cases, figures).

    Of a column the cases count to which it applies. ci95: percentiles 2.5 and 97.5 of
    `resampled_means`. It and the deviation are None where there is one such case only: it has no
    spread to speak of; the mean is None where there is none.
    """
    known = np.isfinite(values)
    found: dict[int, Statistic] = {}
    for rows in np.unique(known, axis=1).T:  # columns of the same cases share their draws
        columns = np.flatnonzero((known == rows[:, np.newaxis]).all(axis=0))
        figures = _statistics(values[rows][:, columns])
        found |= dict(zip(columns.tolist(), figures, strict=True))
    return [found[column] for column in range(values.shape[1])]


def _statistics(values: Array) -> list[Statistic]:
    cases, columns = values.shape
    if not cases:
        return [Statistic(mean=None, std=None, ci95=None, cases=0)] * columns
    means = values.mean(axis=0).tolist()
    if cases < 2:
        return [Statistic(mean=mean, std=None, ci95=None, cases=cases) for mean in means]
    resampled = resampled_means(*(column[np.newaxis] for column in values.T))
    intervals = np.percentile(resampled, [2.5, 97.5], axis=1).T.tolist()
    stds = values.std(axis=0, ddof=1).tolist()
    return [
        Statistic(mean=mean, std=std, ci95=(low, high), cases=cases)
        for mean, std, (low, high) in zip(means, stds, intervals, strict=True)
    ]


def resampled_means(*tables: Array) -> list[Array]:
    """Means of tables (seeds, cases) of one shape over seeds and cases drawn with replacement.

    The same 10,000 draws, of a fixed generator, for each: (RESAMPLES,) a table. NaN where there is
    one case only: nothing can be drawn.
    """
    seeds, cases = tables[0].shape
    if cases < 2:
        return [np.full(RESAMPLES, np.nan) for _ in tables]
    rng = np.random.default_rng(SEED)
    # how often each is drawn, as shares: the mean of a draw is then a product of matrices
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    by_case = rng.multinomial(cases, np.full(cases, 1 / cases), size=RESAMPLES) / cases
    return [np.einsum("rc,rc->r", by_seed @ table, by_case) for table in tables]
