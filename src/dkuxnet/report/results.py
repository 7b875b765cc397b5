"""What a run folder says about how good the run is: evaluation/summary.json, read and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Document, Statistic, read_document
from dkuxnet.data import formats
from dkuxnet.evaluation.evaluate import FOREGROUND_MEAN
from dkuxnet.evaluation.metrics import DICE, SHOWN

NEEDED = [*(metric.summary for metric in SHOWN), "n_pred", "n_ref"]
DAMAGED = "it is damaged, or not what dkuxnet writes; evaluate the run again"
Figures = dict[str, float]  # key of summary.json ("Dice", "HD95_mm", "n_ref", ...) -> figure


@dataclass(frozen=True)
class CaseResult:
    """One test case. file: the predicted label map. classes: class name -> figures."""

    name: str
    file: Path
    classes: dict[str, Figures]

    @property
    def dice(self) -> float:
        """Mean over the foreground classes."""
        return sum(figures[DICE.summary] for figures in self.classes.values()) / len(self.classes)

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
    """cases: worst first. statistics: class name, or FOREGROUND_MEAN -> key of summary.json."""

    cases: list[CaseResult]
    statistics: dict[str, dict[str, Statistic]]
    notes: list[str]

    def chosen(self) -> list[tuple[str, CaseResult]]:
        """(title, case) of those that the page pictures: the worst, the median, the best.

        Of an even number the median is the worse of the two in the middle.
        """
        if len(self.cases) == 1:
            return [("The only test case", self.cases[0])]
        chosen = [
            ("Worst case", self.cases[0]),
            ("Median case", self.cases[(len(self.cases) - 1) // 2]),
            ("Best case", self.cases[-1]),
        ]
        return chosen if len(self.cases) > 2 else [chosen[0], chosen[2]]


class _Case(Document):
    prediction_file: str
    metrics: dict[str, Figures]  # by the class's value, as text


class _Summary(Document):
    """What the page needs of summary.json."""

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
        cases = [_read_case(case, summary.labels, evaluation) for case in summary.metric_per_case]
        statistics = {
            name: {metric.summary: summary.statistics[name][metric.summary] for metric in SHOWN}
            for name in (*summary.labels, FOREGROUND_MEAN)
        }
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}; {DAMAGED}") from error
    cases.sort(key=lambda case: (case.dice, case.name))
    return Results(cases, statistics, summary.notes)


def _read_case(case: _Case, labels: dict[str, int], evaluation: Path) -> CaseResult:
    classes = {
        name: {key: case.metrics[str(value)][key] for key in NEEDED}
        for name, value in labels.items()
    }
    file = evaluation / case.prediction_file
    if not file.resolve().is_relative_to(evaluation.resolve()):
        raise ValueError(f"its prediction {file} lies outside of it")
    try:
        name = formats.stem(file)
    except UserError as error:
        raise ValueError(str(error)) from error
    return CaseResult(name, file, classes)
