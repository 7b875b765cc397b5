"""How sure a comparison is: spreads, bootstrap intervals, paired tests and their correction.

Dice of an arm is given as seed -> (cases,), the same cases in the same order for every arm. Only
the seeds that all sides have are compared, over the cases to which the figure applies on all sides
(elsewhere it is NaN).

A difference is called clear only where its interval leaves out 0, there are at least LEAST_CASES
cases and Wilcoxon's p is at most ALPHA, each corrected for the number of comparisons. With fewer
cases the test cannot reach that p, and a bootstrap draws the same few again and again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import wilcoxon

from dkuxnet.evaluation.metrics import Array
from dkuxnet.evaluation.statistics import resampled_means

LEAST_CASES, ALPHA = 6, 0.05
BySeed = dict[int, Array]  # seed -> (cases,)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; the ends are None where there is one test case only.

    cases: how many it comes from. p: Wilcoxon's, of a difference, corrected as the interval is.
    """

    value: float
    low: float | None
    high: float | None
    cases: int = 0
    p: float = 1.0

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def clear(self) -> bool:
        """Whether the difference may be called clear, upwards or downwards."""
        excludes = self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]
        return excludes and self.cases >= LEAST_CASES and self.p <= ALPHA

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its ends."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Share:
    """The share of the gap closed, 1 for all of it, and the gap itself in Dice.

    share: None where the gap is not above 0, so that nothing can be a share of it. seeds: those of
    all three sides. clear: whether the gap is; where it is not, the share says nothing.
    """

    share: Estimate | None
    gap: Estimate
    seeds: list[int]
    clear: bool


@dataclass(frozen=True)
class Tested:
    """Wilcoxon's signed-rank test against the reference over the test cases.

    Dice is averaged over `seeds`. difference: mean Dice of the arm less the reference's. p_holm:
    corrected for the arms of one table.
    """

    difference: float
    p: float
    p_holm: float
    seeds: list[int]


def spread(values: Sequence[float] | Array) -> tuple[float, float | None]:
    """Mean and standard deviation (ddof=1; None of a single value) of the values that apply.

    NaN and None where none does.
    """
    known = np.asarray(values)[np.isfinite(values)]
    if not len(known):
        return math.nan, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def _common(*sides: BySeed) -> tuple[list[int], list[Array]]:
    """The seeds that all sides have, and for each side (seeds, cases) of the cases that apply.

    No seeds where no case does.
    """
    seeds = [seed for seed in sides[0] if all(seed in side for side in sides)]
    if not seeds:
        return [], []
    tables = np.array([[side[seed] for seed in seeds] for side in sides])
    tables = tables[:, :, np.isfinite(tables).all(axis=(0, 1))]
    return (seeds, list(tables)) if tables.size else ([], [])


def gain(arm: BySeed, bound: BySeed, arms: int = 1) -> Estimate | None:
    """Mean Dice of `arm` less that of `bound`; None without a common seed.

    arms: how many it was picked from, which the interval is corrected for.
    """
    seeds, sides = _common(arm, bound)
    if not seeds:
        return None
    ours, theirs = sides
    [resampled] = resampled_means(ours - theirs)
    return _tested(estimate((ours - theirs).mean(), resampled, arms), ours - theirs, arms)


def _tested(found: Estimate, differences: Array, comparisons: int = 1) -> Estimate:
    """With the p of the differences (seeds, cases), averaged over seeds (Bonferroni)."""
    p = min(1.0, comparisons * signed_rank(differences.mean(axis=0)))
    return replace(found, cases=differences.shape[1], p=p)


def share_of_gap(arm: BySeed, low: BySeed, high: BySeed) -> Share | None:
    """(arm - low) / (high - low) of mean Dice; None without a common seed.

    low, high: the bound with as many labels and with all. The gain and the gap are resampled
    together, so that what they share does not widen the interval.
    """
    seeds, sides = _common(arm, low, high)
    if not seeds:
        return None
    ours, bottom, top = sides
    gains, gaps = resampled_means(ours - bottom, top - bottom)
    gap = _tested(estimate((top - bottom).mean(), gaps), top - bottom)
    share = None
    if gap.value > 0:
        share = estimate((ours - bottom).mean() / gap.value, _shares(gains, gaps))
    return Share(share, gap, seeds, gap.above_zero and gap.clear)


def _shares(gains: Array, gaps: Array) -> Array:
    """The share in every draw.

    As the gap shrinks to nothing the share grows beyond all bounds. So a draw without a gap stands
    beyond all that have one, on the side of its gain; its quotient would be on the other side.
    """
    usable = gaps > 0
    if not usable.any():
        return np.full_like(gaps, np.nan)
    shares = gains / np.where(usable, gaps, 1.0)
    return np.where(usable, shares, np.sign(gains) * np.abs(shares[usable]).max())


def estimate(value: float, resampled: Array, comparisons: int = 1) -> Estimate:
    """The value with the percentiles 2.5 and 97.5 of what was resampled.

    Of several comparisons each gets its share of the 5 % outside (Bonferroni), so that all their
    intervals hold at once with 95 %.
    """
    if not resampled.size or not np.isfinite(resampled).all():
        return Estimate(float(value), None, None)
    low, high = np.percentile(resampled, [2.5 / comparisons, 100 - 2.5 / comparisons]).tolist()
    return Estimate(float(value), low, high)


def against_reference(arms: dict[str, BySeed], reference: str) -> dict[str, Tested]:
    """The test of every arm against the reference; arms without a common seed are left out."""
    found = {}
    for arm, dice in arms.items():
        seeds, sides = _common(dice, arms[reference])
        if arm != reference and seeds:
            ours, theirs = (side.mean(axis=0) for side in sides)
            found[arm] = (float((ours - theirs).mean()), signed_rank(ours - theirs), seeds)
    corrected = holm([p for _, p, _ in found.values()])
    return {
        arm: Tested(difference, p, p_holm, seeds)
        for (arm, (difference, p, seeds)), p_holm in zip(found.items(), corrected, strict=True)
    }


def signed_rank(differences: Array) -> float:
    """The two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs."""
    return float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of n times n - k + 1, never falling, <= 1."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
