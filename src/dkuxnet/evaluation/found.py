"""Which scans have a class at all: what is counted beside every mean, and said in words.

A scan that has the class in its label and none in its prediction is missed; one with some in the
prediction alone is a false alarm. Both have Dice 0 and no distance. A scan that has it in
neither takes no part in a mean.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dkuxnet.core.schemas import Found
from dkuxnet.evaluation.metrics import NOTHING, Array

FOUND_HEADINGS = ("scans with it", "missed", "false alarms")
MOST_NAMES = 8  # of classes that a sentence lists


def count_found(
    classes: Sequence[str], n_pred: Array, n_ref: Array, pred_ml: Array
) -> dict[str, Found]:
    """Class -> its counts.

    n_pred, n_ref: voxels of prediction and label, pred_ml: volume of the prediction, each (cases,
    classes); NaN where a label does not say.
    """
    present, predicted, scored = n_ref > 0, n_pred > 0, np.isfinite(n_ref)
    alarms = predicted & ~present
    return {
        name: Found(
            scans=int(scored[:, k].sum()),
            present=int(present[:, k].sum()),
            missed=int((present[:, k] & ~predicted[:, k]).sum()),
            false_alarms=int(alarms[:, k].sum()),
            false_alarm_ml=_rounded(float(pred_ml[alarms[:, k], k].sum())),
        )
        for k, name in enumerate(classes)
    }


def together(found: Sequence[Found]) -> Found:
    """The counts of several classes, or of several seeds, added up."""
    return Found(
        scans=sum(each.scans for each in found),
        present=sum(each.present for each in found),
        missed=sum(each.missed for each in found),
        false_alarms=sum(each.false_alarms for each in found),
        false_alarm_ml=_rounded(sum(each.false_alarm_ml for each in found)),
    )


def show_found(found: Found) -> tuple[str, str, str]:
    """A cell under each of FOUND_HEADINGS: "3 of 5", "1 of 3", "1 of 2 (0.4 ml)"."""
    absent = found.scans - found.present
    return (
        f"{found.present} of {found.scans}",
        f"{found.missed} of {found.present}" if found.present else NOTHING,
        _alarms(found, absent) if absent else NOTHING,
    )


def _alarms(found: Found, absent: int) -> str:
    # 0 where a file of an earlier version holds no volumes
    volume = f" ({show_ml(found.false_alarm_ml)})" if found.false_alarm_ml else ""
    return f"{found.false_alarms} of {absent}{volume}"


def show_ml(volume: float) -> str:
    """As in "0.4 ml"; three digits of a small one."""
    return f"{volume:.1f} ml" if volume >= 1 else f"{volume:.2g} ml"


def notes_on(found: Mapping[str, Found]) -> list[str]:
    """What a reader of the means must know, a sentence for each kind of case."""
    nowhere = [f"'{name}'" for name, each in found.items() if not each.present]
    some = [
        f"'{name}' in {each.present} of {each.scans}"
        for name, each in found.items()
        if 0 < each.present < each.scans
    ]
    missed = [
        f"'{name}' in {each.missed} of {each.present}"
        for name, each in found.items()
        if each.missed
    ]
    alarms = [
        f"'{name}' in {show_found(each)[2]}" for name, each in found.items() if each.false_alarms
    ]
    told = []
    if len(nowhere) == len(found):
        told.append("no label has any foreground: there is nothing that could be found")
    elif nowhere:
        told.append(f"in no label, so that nothing is known of it: {_some(nowhere)}")
    if some:
        told.append(
            f"not in every scan: {_some(some)}; where label and prediction have none of a class, "
            "no figure applies, and no mean counts it"
        )
    if missed:
        told.append(f"missed where it is: {_some(missed)} scans; that is Dice 0, and no distance")
    if alarms:
        told.append(f"found where it is not, a false alarm with Dice 0: {_some(alarms)} scans")
    return told


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_NAMES} more" if len(texts) > MOST_NAMES else ""
    return ", ".join(texts[:MOST_NAMES]) + more


def _rounded(volume: float) -> float:
    """In steps of a cubic millimetre; 0 where no volume is known, as in older files."""
    return 0.0 if math.isnan(volume) else round(volume, 3)
