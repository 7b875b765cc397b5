"""Which pieces of each class go, chosen by Dice on the validation cases, never on the test list.

Classes do not touch each other: a piece that goes becomes background. So each is chosen alone: the
smallest volume that stays, of 1, 2 and 5 times powers of ten up to half of the smallest volume that
a label of the class has, or the largest piece alone. Taken is the mildest of those within
LEAST_GAIN of the highest mean Dice, where that is LEAST_GAIN above what it was. What costs any case
more than MOST_LOSS is not taken, and nothing is with fewer than FEWEST cases: so few, or a gain in
the mean alone, did not say what other cases lose (docs/data.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from dkuxnet.core.schemas import Postprocessing
from dkuxnet.evaluation.statistics import known_mean
from dkuxnet.machine.distributed import all_gather, rank, world
from dkuxnet.models.components import Cleaning
from dkuxnet.training.coarse import CoarseStage, predicted
from dkuxnet.training.job import Job, windows_of

LEAST_GAIN, MOST_LOSS, FEWEST = 0.001, 0.01, 5
STEPS_ML = [factor * 10.0**power for power in range(-3, 4) for factor in (1, 2, 5)]


@dataclass(frozen=True)
class Pieces:
    """Of one class of one case: voxels of each piece, of these in the truth, of the truth."""

    sizes: np.ndarray
    shared: np.ndarray
    truth: int

    @classmethod
    def of(cls, predicted: np.ndarray, truth: np.ndarray) -> "Pieces":
        """Of two masks (X, Y, Z)."""
        from scipy.ndimage import label as connected

        pieces, count = connected(predicted)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        shared = np.bincount(pieces[truth], minlength=count + 1)[1:]
        return cls(sizes, shared, int(truth.sum()))

    def dice(self, largest: bool, least: float) -> float:
        """Where the pieces of less than `least` voxels go; NaN where both masks are empty."""
        stay = self.sizes >= least
        if largest and len(stay):
            stay &= np.arange(len(stay)) == self.sizes.argmax()
        both = int(self.sizes[stay].sum()) + self.truth
        return 2 * int(self.shared[stay].sum()) / both if both else math.nan


def choose_postprocessing(
    predictor: nn.Module, job: Job, coarse: CoarseStage | None
) -> Postprocessing:
    """What is chosen on the validation cases of a job, beside what its settings remove anyway.

    On the network's grid. Several processes share the cases.
    """
    names, voxel_ml = job.data.class_names, math.prod(job.data.meta.plan.spacing_mm) / 1000
    windows, cleaning = windows_of(job), Cleaning.of(job.settings.infer, names)
    tables = []
    for name in job.split.validation[rank() :: world()]:
        truth = job.validation.array(name, "label")
        prob = predicted(predictor, job, coarse, "validation", name, windows).prob
        label = cleaning(prob.argmax(axis=0), voxel_ml)
        known = truth < len(names)  # the others nobody labelled
        masks = [((label == k) & known, truth == k) for k in range(1, len(names))]
        tables.append([Pieces.of(*each) for each in masks])
    by_class = list(zip(*all_gather(tables), strict=True))
    smallest = smallest_ml(job, voxel_ml)
    return chosen(dict(zip(names[1:], by_class, strict=True)), smallest, voxel_ml)


def smallest_ml(job: Job, voxel_ml: float) -> dict[str, float]:
    """Class -> the smallest volume that a label of the training or validation has; 0 without."""
    names, found = job.data.class_names, []
    for data, cases in ((job.training, job.split.labelled), (job.validation, job.split.validation)):
        for case in cases:
            label = data.array(case, "label")
            found.append(np.bincount(label.ravel(), minlength=len(names))[1 : len(names)])
    table = np.array(found)
    least = np.where(table > 0, table, np.iinfo(np.int64).max).min(axis=0)
    there = (table > 0).any(axis=0)
    return dict(zip(names[1:], np.where(there, least * voxel_ml, 0.0).tolist(), strict=True))


def chosen(
    tables: dict[str, Sequence[Pieces]], smallest: dict[str, float], voxel_ml: float
) -> Postprocessing:
    """tables: class -> the pieces of each case. smallest: class -> ml, see `smallest_ml`."""
    largest, least_ml = list[str](), dict[str, float]()
    before, after = dict[str, float](), dict[str, float]()
    for name, cases in tables.items():
        ways = candidates(smallest[name])
        dice = np.array([[c.dice(alone, ml / voxel_ml) for c in cases] for alone, ml in ways])
        means, known = known_mean(dice, axis=1), np.isfinite(dice[0]).sum()
        harmless = ~(dice < dice[0] - MOST_LOSS).any(axis=1)
        best = np.nanmax(means[harmless], initial=-1.0)
        if known < FEWEST or best < means[0] + LEAST_GAIN:
            continue
        way = int(np.argmax(harmless & (means >= best - LEAST_GAIN) & (means > means[0])))
        alone, ml = ways[way]
        before[name], after[name] = round(float(means[0]), 4), round(float(means[way]), 4)
        largest += [name] * alone
        least_ml |= {name: ml} if ml else {}
    return Postprocessing(
        largest_component=tuple(largest), min_ml=least_ml, dice_before=before, dice_after=after
    )


def candidates(smallest: float) -> list[tuple[bool, float]]:
    """(the largest piece alone?, the least ml): the mildest first."""
    steps = [ml for ml in STEPS_ML if ml <= smallest / 2]
    return [(False, 0.0), *((False, ml) for ml in steps), (True, 0.0)]
