"""When not to trust a label map: three questions to what the training left in RUN/reference.json.

Is the scan like those of the training? Its signature (`prediction.signature`) is compared with
theirs: the root mean square of the distances from their means, in their standard deviations. The
limit is MARGIN times what nine in ten of them keep to, each compared with the others.

Is a class as large as in these? And how good is its outline likely to be? A regression of the Dice
of held-out cases on their confidence and their unlikeness, both as logarithms of odds or ratios,
says; what it says of each of them from the others gives the interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, logit, stdtrit

from dkuxnet.core.schemas import HeldOut, Reference

MARGIN = 1.1
FEWEST_SCANS = 8  # fewer do not tell how scans differ
FEWEST_HELD_OUT = 8  # fewer do not tell how Dice follows
STRANGE_RATIO = 1.5  # of a volume to the largest, or to the smallest, of the training scans
USUAL = 0.9  # what so many scans keep to is usual
USUAL_DICE = 0.8  # what so many of the held-out cases are estimated at, or above, is no warning
SHRINK = 1.0  # ridge, in cases: how much a slope must earn


@dataclass(frozen=True)
class Estimate:
    """The Dice that is to be expected, and the 95 % interval for the one scan."""

    dice: float
    low: float
    high: float


@dataclass(frozen=True)
class Trust:
    """unlike: the distance from the training scans, 1 is the limit; None where it is not known.

    dice: of each class, where enough held-out cases tell; of a scan that is too unlike none holds.
    flags: what to look at, in words.
    """

    unlike: float | None = None
    dice: dict[str, Estimate] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class Judge:
    """Compares predictions with the reference of their run."""

    def __init__(self, reference: Reference | None):
        """reference: None of runs that have none, whose predictions are not judged."""
        self.reference = reference or Reference(signatures=[], volumes_ml={}, held_out=[])
        self.familiar = Familiar.of(self.reference.signatures)
        self.estimators = {
            name: estimator
            for name in self.reference.volumes_ml
            if (estimator := Estimator.fit(name, self.reference.held_out))
        }

    def __call__(
        self,
        signature: np.ndarray | None,
        confidence: Mapping[str, float],
        volumes_ml: Mapping[str, float],
    ) -> Trust:
        """signature: None where the whole scan was not looked at.

        confidence: of each class, NaN where it was not found; volumes_ml: of those found.
        """
        unlike = None
        if self.familiar is not None and signature is not None:
            unlike = self.familiar.unlike(signature)
        flags = [
            said
            for name, volume in volumes_ml.items()
            if (said := _of_size(name, volume, self.reference.volumes_ml.get(name, [])))
        ]
        if unlike is not None and unlike > 1:
            strange = (
                f"this scan is unlike those that the model was trained on ({unlike:.1f} times the "
                "limit): perhaps another modality, part of the body, orientation or size of voxels"
            )
            return Trust(unlike, {}, (strange, *flags))
        estimates = {
            name: estimator.estimate(confidence[name], unlike)
            for name, estimator in self.estimators.items()
            if not math.isnan(confidence.get(name, math.nan))
        }
        poor = [
            f"the Dice of {name} is estimated at {found.dice:.2f} ({found.low:.2f} to "
            f"{found.high:.2f}), low for this model"
            for name, found in estimates.items()
            if found.dice < self.estimators[name].usual
        ]
        return Trust(unlike, estimates, (*flags, *poor))


@dataclass(frozen=True)
class Familiar:
    """Where the signatures of the training scans lie, and how far from there is still usual."""

    mean: np.ndarray
    std: np.ndarray
    limit: float

    @classmethod
    def of(cls, signatures: Sequence[Sequence[float]]) -> "Familiar | None":
        """None where there are too few, or no features."""
        if len(signatures) < FEWEST_SCANS or not signatures[0]:
            return None
        table = np.array(signatures)
        alone = [
            cls._far(each, *cls._place(np.delete(table, i, axis=0))) for i, each in enumerate(table)
        ]
        return cls(*cls._place(table), MARGIN * float(np.quantile(alone, USUAL)))

    def unlike(self, signature: np.ndarray) -> float:
        """1 is the limit."""
        return self._far(signature, self.mean, self.std) / self.limit

    @staticmethod
    def _place(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return table.mean(axis=0), table.std(axis=0, ddof=1) + 1e-6

    @staticmethod
    def _far(signature: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
        return float(np.sqrt(np.mean(((signature - mean) / std) ** 2)))


@dataclass(frozen=True)
class Estimator:
    """The logit of Dice, linear in the logit of the confidence and the logarithm of unlikeness.

    spread: of the true Dice about the estimates of cases left out, in Dice, as a half interval.
    usual: below this an estimate is low for the model.
    """

    centre: np.ndarray
    scale: np.ndarray
    slopes: np.ndarray
    level: float
    spread: float
    usual: float

    @classmethod
    def fit(cls, name: str, held_out: Sequence[HeldOut]) -> "Estimator | None":
        """None where too few cases have the class."""
        known = [case for case in held_out if name in case.dice]
        if len(known) < FEWEST_HELD_OUT:
            return None
        x = np.array([explains(case.confidence[name], case.unlike) for case in known])
        dice = np.array([case.dice[name] for case in known])
        estimated, usual = cls.left_out(x, dice)
        error = math.sqrt(float(np.mean((estimated - dice) ** 2)))
        return cls._fit(x, dice, error * float(stdtrit(len(known) - 1, 0.975)), usual)

    @classmethod
    def left_out(cls, x: np.ndarray, dice: np.ndarray) -> tuple[np.ndarray, float]:
        """The Dice (cases,) that the other cases let expect, and what is usual.

        x: a row a case, see `explains`.
        """
        fits = (cls._fit(np.delete(x, i, 0), np.delete(dice, i)) for i in range(len(dice)))
        estimated = np.array([fit.at(row) for fit, row in zip(fits, x, strict=True)])
        return estimated, float(np.quantile(estimated, 1 - USUAL_DICE))

    @classmethod
    def _fit(
        cls, x: np.ndarray, dice: np.ndarray, spread: float = 0.0, usual: float = 0.0
    ) -> "Estimator":
        y = logit(dice.clip(0.02, 0.99))
        centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        z, level = (x - centre) / scale, float(y.mean())
        slopes = np.linalg.solve(z.T @ z + SHRINK * np.eye(z.shape[1]), z.T @ (y - level))
        return cls(centre, scale, slopes, level, spread, usual)

    def at(self, x: np.ndarray) -> float:
        """Dice for a row of what explains it."""
        return float(expit(self.level + (x - self.centre) / self.scale @ self.slopes))

    def estimate(self, confidence: float, unlike: float | None) -> Estimate:
        dice = self.at(explains(confidence, unlike))
        return Estimate(dice, max(dice - self.spread, 0.0), min(dice + self.spread, 1.0))


def explains(confidence: float, unlike: float | None) -> np.ndarray:
    """What the Dice of a class follows from, (2,)."""
    sure = float(logit(np.clip(confidence, 0.01, 0.999)))
    return np.array([sure, 0.0 if unlike is None else math.log(max(unlike, 0.01))])


def _of_size(name: str, volume_ml: float, known_ml: Sequence[float]) -> str:
    """A sentence where a class is far larger or smaller than in the training scans; or ""."""
    if len(known_ml) < FEWEST_SCANS:
        return ""
    low, high = min(known_ml), max(known_ml)
    if low / STRANGE_RATIO <= volume_ml <= high * STRANGE_RATIO:
        return ""
    return (
        f"{name} has {volume_ml:.3g} ml, but {low:.3g} to {high:.3g} ml in the scans that the "
        "model was trained on"
    )
