"""What a run folder says about how good the run is: evaluation/summary.json, read and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Document, Found, Statistic, read_document
from dkuxnet.data import formats
from dkuxnet.evaluation.evaluate import EXTRAS
from dkuxnet.evaluation.found import count_found
from dkuxnet.evaluation.metrics import DICE, SHOWN, Array
from dkuxnet.evaluation.statistics import FOREGROUND_MEAN, known_mean, summarise

NEEDED = [*(metric.summary for metric in SHOWN), "n_pred", "n_ref"]
DAMAGED = "it is damaged, or not what dkuxnet writes; evaluate the run again"
# key of summary.json ("Dice", "HD95_mm", "n_ref", ...) -> figure, NaN where it does not apply
Figures = dict[str, float]


@dataclass(frozen=True)
class CaseResult:
    """One test case. file: the predicted label map. classes: class name -> figures."""

    name: str
    file: Path
    classes: dict[str, Figures]

    @property
    def dice(self) -> float:
        """Mean over the foreground classes that label or prediction have; NaN without any."""
        dice = [figures[DICE.summary] for figures in self.classes.values()]
        return float(known_mean(np.array(dice), axis=0))

    @property
    def missed(self) -> bool:
        """Whether a class is empty in the prediction or in the truth alone.

        Its distances are then a convention.
        """
        return any(
            (figures["n_pred"] == 0) != (figures["n_ref"] == 0) for figures in self.classes.values()
        )


@dataclass(frozen=True)
class Results:
    """cases: worst first; those without any class are last.

    statistics: class name, or FOREGROUND_MEAN -> key of a metric -> figures. found: by class name.
    """

    cases: list[CaseResult]
    statistics: dict[str, dict[str, Statistic]]
    found: dict[str, Found]
    notes: list[str]

    def chosen(self) -> list[tuple[str, CaseResult]]:
        """(title, case) of those that the page pictures: the worst, the median, the best.

        Of an even number the median is the worse of the two in the middle.
        """
        cases = [case for case in self.cases if not math.isnan(case.dice)]
        if not cases:
            return [("A test case, without any class", self.cases[0])]
        if len(cases) == 1:
            only = "test case" if len(self.cases) == 1 else "test case with any class"
            return [(f"The only {only}", cases[0])]
        chosen = [
            ("Worst case", cases[0]),
            ("Median case", cases[(len(cases) - 1) // 2]),
            ("Best case", cases[-1]),
        ]
        return chosen if len(cases) > 2 else [chosen[0], chosen[2]]


class _Case(Document):
    prediction_file: str
    metrics: dict[str, dict[str, float | None]]  # by the class's value, as text


class _Summary(Document):
    """What the page needs of summary.json.

    Its statistics must be there and are computed anew: those of older files count a class that is
    neither in label nor in prediction as perfectly found.
    """

    labels: Annotated[dict[str, int], Field(min_length=1)]
    metric_per_case: Annotated[list[_Case], Field(min_length=1)]
    statistics: dict[str, dict[str, Statistic]]
    notes: list[str]


def read_results(evaluation: Path) -> Results | None:
    """The test cases' figures; None where the run has no summary.json.

    Raises UserError where it is damaged.
    """
    path = evaluation / "summary.json"
    if not path.exists():
        return None
    summary = read_document(path, _Summary, DAMAGED)
    try:
        if missing := {*summary.labels, FOREGROUND_MEAN} - summary.statistics.keys():
            raise KeyError(*sorted(missing))
        cases = [_read_case(case, summary.labels, evaluation) for case in summary.metric_per_case]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}; {DAMAGED}") from error
    cases.sort(key=lambda case: (math.isnan(case.dice), case.dice, case.name))
    return Results(cases, *_counted(cases, list(summary.labels)), summary.notes)


def _counted(
    cases: list[CaseResult], classes: list[str]
) -> tuple[dict[str, dict[str, Statistic]], dict[str, Found]]:
    def table(keys: Sequence[str]) -> Array:
        """(cases, classes, keys)."""
        return np.array(
            [[[case.classes[c][key] for key in keys] for c in classes] for case in cases]
        )

    n_pred, n_ref, pred_ml = np.moveaxis(table(["n_pred", "n_ref", "pred_ml"]), 2, 0)
    statistics = summarise(table([metric.summary for metric in SHOWN]), classes, SHOWN)
    return statistics, count_found(classes, n_pred, n_ref, pred_ml)


def _read_case(case: _Case, labels: dict[str, int], evaluation: Path) -> CaseResult:
    classes = {name: _figures(case.metrics[str(value)]) for name, value in labels.items()}
    file = evaluation / case.prediction_file
    if not file.resolve().is_relative_to(evaluation.resolve()):
        raise ValueError(f"its prediction {file} lies outside of it")
    try:
        name = formats.stem(file)
    except UserError as error:
        raise ValueError(str(error)) from error
    return CaseResult(name, file, classes)


def _figures(stored: Mapping[str, float | None]) -> Figures:
    """Raises KeyError for one that is missing, ValueError where counts or figures are unknown.

    Older files have figures where none applies.
    """
    known = {key: stored[key] for key in NEEDED} | {key: stored.get(key) for key in EXTRAS}
    figures = {key: math.nan if value is None else value for key, value in known.items()}
    if math.isnan(figures["n_pred"]) and math.isnan(figures["n_ref"]):  # nobody labelled it
        return dict.fromkeys(figures, math.nan)
    unknown = {metric.summary for metric in SHOWN if not metric.applies(figures)}
    whole = {metric.summary for metric in SHOWN if metric.whole}
    if all(math.isnan(figures[key]) for key in whole):  # nor the whole scan
        unknown |= whole
    if any(math.isnan(figures[key]) for key in NEEDED if key not in unknown):
        raise ValueError("a figure is missing")
    return figures | dict.fromkeys(unknown, math.nan)
