"""How far a model's probabilities are from how often it is right, and the temperature for that.

Only voxels count that are in question: where a class other than the background is true or has at
least ASKED. The air around would make every model look calibrated.

Source of both: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from dkuxnet.core.schemas import Calibration
from dkuxnet.evaluation.metrics import Array

BINS = 15
ASKED = 0.01
MOST = 20_000  # voxels of a case, at even distances: enough, and few enough to keep
COLDEST, HOTTEST = 0.1, 10.0


def in_question(prob: Array, label: Array) -> tuple[Array, Array]:
    """Probabilities (N, K) and labels (N,) of the voxels that count, at most MOST of them.

    prob: (K, X, Y, Z); label: (X, Y, Z) class indices, a larger one where the class is not known.
    """
    asked = ((prob[0] <= 1 - ASKED) | (label > 0)) & (label < len(prob))
    (places,) = np.nonzero(asked.ravel())
    places = places[:: max(1, -(-len(places) // MOST))]
    return prob.reshape(len(prob), -1)[:, places].T, label.ravel()[places]


def calibration(cases: list[tuple[Array, Array]]) -> Calibration | None:
    """Over cases, each with what `in_question` gives; None with fewer than two.

    The temperature is fitted on all; ece_scaled is of each half with that of the other.
    """
    cases = [case for case in cases if len(case[1])]
    if len(cases) < 2:
        return None
    prob, label = together(cases)
    halves = [together(cases[first::2]) for first in (0, 1)]
    scaled = [
        (at_temperature(mine[0], temperature(*other)), mine[1])
        for mine, other in (halves, halves[::-1])
    ]
    return Calibration(
        ece=ece(prob, label),
        temperature=temperature(prob, label),
        ece_scaled=ece(*together(scaled)),
    )


def together(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Voxels of several cases as those of one."""
    probs, labels = zip(*parts, strict=True)
    return np.concatenate(probs), np.concatenate(labels)


def ece(prob: Array, label: Array) -> float:
    """Expected calibration error: the mean of |confidence - share of right ones| over BINS.

    prob: (N, K), label: (N,). The confidence is the highest probability.
    """
    sure, right = prob.max(axis=1), prob.argmax(axis=1) == label
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    apart = np.bincount(place, weights=sure - right, minlength=BINS)
    return float(np.abs(apart).sum() / len(label))


def at_temperature(prob: Array, value: float) -> Array:
    """The probabilities (N, K) as they are with the logits divided by a temperature."""
    logs = np.log(np.maximum(prob, 1e-12)) / value
    powers: Array = np.exp(logs - logs.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def temperature(prob: Array, label: Array) -> float:
    """That with the lowest mean -log of the true class's probability; above 1 is over-confident."""
    rows = np.arange(len(label))

    def loss(log: float) -> float:
        true = at_temperature(prob, float(np.exp(log)))[rows, label]
        return float(-np.log(np.maximum(true, 1e-12)).mean())

    found = minimize_scalar(loss, bounds=np.log([COLDEST, HOTTEST]), method="bounded")
    return float(np.exp(found.x))
