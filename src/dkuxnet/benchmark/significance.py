"""How sure a comparison is: spreads, intervals, paired tests and their correction.

Dice of an arm is given as seed -> (cases,), the same cases in the same order for every arm. Only
the seeds that all sides have are compared, over the cases to which the figure applies on all sides
(elsewhere it is NaN).

All intervals are those of `evaluation.statistics.mean_interval`. A difference is called clear only
where its interval leaves out 0, there are at least LEAST_CASES cases and Wilcoxon's p is at most
ALPHA, each corrected for the number of comparisons. With fewer cases the test cannot reach that p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import wilcoxon

from dkuxnet.evaluation.metrics import Array
from dkuxnet.evaluation.statistics import mean_interval, within

LEAST_CASES, ALPHA = 6, 0.05
BySeed = dict[int, Array]  # seed -> (cases,)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; the ends are None where none can be told.

    cases: how many it comes from. p: Wilcoxon's, of a difference, corrected as the interval is.
    """

    value: float
    low: float | None = None
    high: float | None = None
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

    arms: how many it was picked from, which the interval and p are corrected for.
    """
    seeds, sides = _common(arm, bound)
    return _estimate(sides[0] - sides[1], arms) if seeds else None


def _estimate(differences: Array, comparisons: int = 1) -> Estimate:
    """The mean of differences in Dice (seeds, cases); p: of their means over seeds (Bonferroni)."""
    ends = mean_interval(differences, comparisons)
    low, high = (None, None) if ends is None else within(ends, (-1, 1))
    p = min(1.0, comparisons * signed_rank(differences.mean(axis=0)))
    return Estimate(float(differences.mean()), low, high, differences.shape[1], p)


def share_of_gap(arm: BySeed, low: BySeed, high: BySeed) -> Share | None:
    """(arm - low) / (high - low) of mean Dice; None without a common seed.

    low, high: the bound with as many labels and with all.
    """
    seeds, sides = _common(arm, low, high)
    if not seeds:
        return None
    ours, bottom, top = sides
    gap, share = _estimate(top - bottom), None
    if gap.value > 0:
        share = _quotient(ours - bottom, top - bottom, gap)
    return Share(share, gap, seeds, gap.above_zero and gap.clear)


def _quotient(gains: Array, gaps: Array, gap: Estimate) -> Estimate:
    """Mean gain / mean gap, both (seeds, cases); no interval where the gap may be 0 or less.

    The interval holds each share whose multiple of the gaps may be all that the gains are (Fieller,
    JRSS B 16, 1954): what gain and gap share does not widen it.
    """
    share = float(gains.mean() / gap.value)
    if not gap.above_zero:
        return Estimate(share)

    def end(side: int) -> float:
        def beyond(step: float) -> float:
            """Above 0 while the share may be so far on this side (+1, -1)."""
            rest = side * (gains - (share + side * step) * gaps)
            return (mean_interval(rest) or (0, float(rest.mean())))[1] + 1e-12

        step = 1.0
        while beyond(step) > 0:
            step *= 2
        return share + side * float(brentq(beyond, 0, step))

    return Estimate(share, end(-1), end(+1))


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
