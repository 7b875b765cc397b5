"""How sure the program is of each class that it outlined: one quantity for every output.

The confidence of a class is the mean of its probability over the voxels where it is the most
probable one, on the network's grid. Of K classes it lies between 1 / K and 1, whatever the method,
since every method gives probabilities; the map of uncertainty (disagreement of several networks, or
entropy) does not compare between methods.

Below UNSURE_BELOW a class is called unsure. Its border is never sure: of a structure a few voxels
thick, well outlined, the confidence is about 0.8. Where two classes are alike throughout it is
between 0.5 and 0.6, and lower where more are. The threshold lies between these; it is no calibrated
probability of being wrong, and a model can be sure and wrong.
"""

import math
from collections.abc import Mapping

import numpy as np

UNSURE_BELOW = 0.7


def class_confidence(prob: np.ndarray) -> list[float]:
    """The confidence of each class; NaN of one that is the most probable nowhere.

    prob: (K, X, Y, Z) probabilities.
    """
    winner, classes = prob.argmax(axis=0).ravel(), len(prob)
    highest = prob.max(axis=0).ravel()
    voxels = np.bincount(winner, minlength=classes)
    sums = np.bincount(winner, weights=highest, minlength=classes)
    return [
        round(float(total / n), 4) if n else math.nan for total, n in zip(sums, voxels, strict=True)
    ]


def unsure(confidence: Mapping[str, float]) -> str:
    """The sentence about the classes that are unsure; "" where none is."""
    doubted = {name: value for name, value in confidence.items() if value < UNSURE_BELOW}
    names = ", ".join(f"{name} (confidence {value:.2f})" for name, value in doubted.items())
    return f"the model is unsure of {names}; {UNSURE_BELOW:.2f} is the least" if doubted else ""
