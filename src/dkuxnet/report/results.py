"""What a run folder says about how well the run went: evaluation/summary.json, read and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkuxnet.core.documents import read_json
from dkuxnet.core.errors import UserError
from dkuxnet.data import formats
from dkuxnet.evaluation.evaluate import FOREGROUND_MEAN, METRICS

SHOWN = ("dice", "jaccard", "hd95_mm", "asd_mm")
NEEDED = [*(METRICS[column] for column in SHOWN), "n_pred", "n_ref"]


@dataclass(frozen=True)
class CaseResult:
    """One test case. classes: class name -> key of summary.json ("Dice", "HD95_mm", "n_ref", ...)
    -> figure. file: the predicted label map.
    """

    name: str
    file: Path
    classes: dict[str, dict[str, float]]

    @property
    def dice(self) -> float:
        """Mean over the foreground classes."""
        return sum(figures["Dice"] for figures in self.classes.values()) / len(self.classes)

    @property
    def missed(self) -> bool:
        """Whether a class is empty in the prediction or in the truth alone: its distances are then
        a convention.
        """
        return any(
            (figures["n_pred"] == 0) != (figures["n_ref"] == 0) for figures in self.classes.values()
        )


@dataclass(frozen=True)
class Results:
    """cases: worst first. statistics: class name, or evaluate.FOREGROUND_MEAN -> key -> mean, std,
    ci95 (or None).
    """

    cases: list[CaseResult]
    statistics: dict[str, dict[str, dict[str, Any]]]
    notes: list[str]

    def chosen(self) -> list[tuple[str, CaseResult]]:
        """(title, case) of those that the page pictures: the worst, the median (of an even number
        the worse), the best.
        """
        if len(self.cases) == 1:
            return [("The only test case", self.cases[0])]
        chosen = [
            ("Worst case", self.cases[0]),
            ("Median case", self.cases[(len(self.cases) - 1) // 2]),
            ("Best case", self.cases[-1]),
        ]
        return chosen if len(self.cases) > 2 else [chosen[0], chosen[2]]


def read_results(evaluation: Path) -> Results | None:
    """The test cases' figures; None where the run has no summary.json. Raises UserError where it
    is damaged.
    """
    path = evaluation / "summary.json"
    if not path.exists():
        return None
    content = read_json(path)
    try:
        names = {str(value): name for name, value in content["labels"].items()}
        cases = [_read_case(entry, names, evaluation) for entry in content["metric_per_case"]]
        if not cases or not names:
            raise ValueError("it holds no case or no class")
        for name in (*names.values(), FOREGROUND_MEAN):
            for column in SHOWN:
                statistic = content["statistics"][name][METRICS[column]]
                [
                    float(value)
                    for value in (
                        statistic["mean"],
                        *(statistic["ci95"] or (0, 0)),
                        statistic["std"] or 0,
                    )
                ]
        cases.sort(key=lambda case: (case.dice, case.name))
        return Results(cases, content["statistics"], list(content["notes"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged, or not what dkuxnet writes ({type(error).__name__}: {error}); "
            "evaluate the run again"
        ) from error


def _read_case(entry: dict[str, Any], names: dict[str, str], evaluation: Path) -> CaseResult:
    classes = {
        name: {key: float(entry["metrics"][value][key]) for key in NEEDED}
        for value, name in names.items()
    }
    file = evaluation / entry["prediction_file"]
    if not file.resolve().is_relative_to(evaluation.resolve()):
        raise ValueError(f"its prediction {file} lies outside of it")
    try:
        name = formats.stem(file)
    except UserError as error:
        raise ValueError(str(error)) from error
    return CaseResult(name, file, classes)
