"""Mean, spread and interval of figures over cases; resampling for all intervals of the project."""

import numpy as np

from dkuxnet.core.schemas import Statistic
from dkuxnet.evaluation.metrics import Array

RESAMPLES, SEED = 10_000, 0


def statistics(values: Array) -> list[Statistic]:
    """Mean, standard deviation (ddof=1) and interval of each column of `values`, (cases, metrics).

    ci95: percentiles 2.5 and 97.5 of `resampled_means`. It and the deviation are None where there
    is one case only: it has no spread to speak of.
    """
    means = values.mean(axis=0).tolist()
    if len(values) < 2:
        return [Statistic(mean=mean, std=None, ci95=None) for mean in means]
    resampled = resampled_means(*(column[np.newaxis] for column in values.T))
    intervals = np.percentile(resampled, [2.5, 97.5], axis=1).T.tolist()
    stds = values.std(axis=0, ddof=1).tolist()
    return [
        Statistic(mean=mean, std=std, ci95=(low, high))
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
