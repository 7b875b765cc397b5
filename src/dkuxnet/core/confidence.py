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
from collections.abc import Mapping, Sequence

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


def structure_confidence(
    prob: np.ndarray, structures: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Name -> confidence, of structures that are unions of classes: see `class_confidence`.

    structures: name -> indices of classes, the probabilities of which are summed.
    """
    if all(len(classes) == 1 for classes in structures.values()):
        known = class_confidence(prob)
        return {name: known[classes[0]] for name, classes in structures.items()}
    winner, found = prob.argmax(axis=0), {}
    for name, classes in structures.items():
        inside = np.isin(winner, classes)
        total = float(sum(prob[index][inside].sum(dtype=np.float64) for index in classes))
        voxels = np.count_nonzero(inside)
        found[name] = round(total / voxels, 4) if voxels else math.nan
    return found


def structure_volumes(
    voxels: Sequence[int], structures: Mapping[str, Sequence[int]], voxel_ml: float
) -> dict[str, float]:
    """Name -> ml, of structures that were found. voxels: of each class."""
    found = {name: sum(voxels[index] for index in each) for name, each in structures.items()}
    return {name: count * voxel_ml for name, count in found.items() if count}


def unsure(confidence: Mapping[str, float]) -> str:
    """The sentence about the classes that are unsure; "" where none is."""
    doubted = {name: value for name, value in confidence.items() if value < UNSURE_BELOW}
    names = ", ".join(f"{name} (confidence {value:.2f})" for name, value in doubted.items())
    return f"the model is unsure of {names}; {UNSURE_BELOW:.2f} is the least" if doubted else ""
