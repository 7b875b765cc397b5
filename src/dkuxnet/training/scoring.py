"""How good a network is: on the validation cases while it trains, on the test list at the end."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from dkuxnet.core.confidence import structure_confidence
from dkuxnet.core.types import IGNORED, CountProgress, Volume
from dkuxnet.data import formats
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.evaluation.calibration import calibration, in_question
from dkuxnet.evaluation.evaluate import Evaluation, Score, evaluate_pair
from dkuxnet.evaluation.found import notes_on
from dkuxnet.evaluation.metrics import dice
from dkuxnet.evaluation.statistics import known_mean
from dkuxnet.machine.distributed import all_gather, on_rank_zero, rank, world
from dkuxnet.machine.files import inside, write_json
from dkuxnet.models.components import Cleaning
from dkuxnet.prediction.windows import GridPrediction, label_on_scan, label_volume
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.coarse import CoarseStage, predicted
from dkuxnet.training.job import Job, asked_of, windows_of
from dkuxnet.training.reference import keep_held_out, short


def validation_dice(predictor: nn.Module, job: Job, coarse: CoarseStage | None = None) -> float:
    """Mean Dice over the validation cases, of each case's foreground classes; the prepared grid.

    What is scored is what would be predicted: without the pieces that `infer` removes. What a
    case has neither in label nor prediction does not count; NaN where that is all of it.
    """
    scores = []
    windows, cleaning = windows_of(job), Cleaning.of(job.settings.infer, list(job.data.meta.labels))
    voxel_ml = math.prod(job.data.meta.plan.spacing_mm) / 1000
    for name in job.split.validation[rank() :: world()]:
        truth = job.validation.array(name, "label")
        prob = predicted(predictor, job, coarse, "validation", name, windows).prob
        label = cleaning(prob.argmax(axis=0), voxel_ml)
        known = truth < job.shape.classes  # the others nobody labelled
        left_out = job.validation.not_labelled(name)
        scores.append(
            [
                math.nan
                if each in left_out
                else dice(np.isin(label, classes) & known, np.isin(truth, classes))
                for each, classes in job.validation.meta.structures.items()
            ]
        )
    return float(known_mean(known_mean(np.array(all_gather(scores)), axis=1), axis=0))


def evaluate_test(
    folder: RunFolder,
    predictor: nn.Module,
    job: Job,
    progress: CountProgress,
    coarse: CoarseStage | None = None,
) -> Evaluation:
    """Predict the test cases, score them on their own grids, write RUN/evaluation/.

    The summary goes to the manifest. progress: told how many cases are done, of how many.
    """
    target = inside(folder.folder, "evaluation")

    def prepare_folder() -> None:
        inside(target, "predictions").mkdir(parents=True, exist_ok=True)
        write_json(target / "predictions" / "dataset.json", job.data.meta.description)

    on_rank_zero(prepare_folder)
    groups = len(job.shape.groups)
    windows = windows_of(job, with_uncertainty=True, groups=groups, with_signature=True)
    started, mine = time.monotonic(), []
    for done, name in enumerate(job.split.test[rank() :: world()], 1):
        grid = predicted(predictor, job, coarse, "test", name, windows)
        mine.append(score_case(name, grid, job, target))
        progress(min(done * world(), len(job.split.test)), len(job.split.test))
    order = list(job.split.test)
    scored = sorted(all_gather(mine), key=lambda case: order.index(case.name))
    result = Evaluation(
        [row for case in scored for row in case.rows],
        {case.name: case.files for case in scored},
        ignored=tuple(case.name for case in scored if job.data.has_ignored(case.name)),
        asked=asked_of(job.settings).metrics,
    )
    label_notes = [*result.label_notes(), *agreement_of_raters(job)]
    result.notes += [*label_notes, *notes_on(result.found())]
    on_rank_zero(lambda: result.write_json(target / "summary.json"))
    on_rank_zero(lambda: result.write_csv(target / "cases.csv"))
    signatures = {case.name: case.signature for case in scored}
    on_rank_zero(lambda: keep_held_out(folder, result, signatures))
    calibrated = calibration([case.asked for case in scored])
    folder.update_manifest(
        calibration=calibrated and calibrated.to_json(),
        evaluate_seconds=round(time.monotonic() - started, 1),
        test=result.summary(),
        found=result.found(),
        **({"label_notes": label_notes} if label_notes else {}),
    )
    return result


def agreement_of_raters(job: Job) -> list[str]:
    """A sentence on how far several raters of one scan agree, which no model can pass.

    Of the test cases, or of all where these have one rater.
    """
    cases = [case for case in job.data.meta.cases if case.rater_dice]
    tested = [case for case in cases if case.name in job.split.test] or cases
    if not tested:
        return []
    told = []
    for name in job.data.meta.structures:
        known = [case.rater_dice[name] for case in tested if name in case.rater_dice]
        told += [f"{float(np.mean(known)):.3f} on '{name}'"] * bool(known)
    return [
        f"raters agree with each other by a Dice of {', '.join(told)} ({len(tested)} scans): what "
        "a model can reach"
    ]


@dataclass(frozen=True)
class Scored:
    """Of a test case: scores, label map and truth, signature, and what calibration asks."""

    name: str
    rows: list[Score]
    files: tuple[Path, Path]
    signature: list[float]
    asked: tuple[np.ndarray, np.ndarray]


def score_case(name: str, grid: GridPrediction, job: Job, target: Path) -> Scored:
    """Write the maps of a test case, and score it on its own grid."""
    info, labels = job.data.info(name), job.data.meta.labels
    affine, values = np.array(info.affine), list(labels.values())
    cleaning = Cleaning.of(job.settings.infer, list(labels))
    label = label_on_scan(grid.prob, info.shape, affine, cleaning, device=job.device)
    prediction = label_volume(label, affine, values)
    path = target / "predictions" / f"{name}.nii.gz"
    formats.write(replace(prediction, nifti=formats.place_of(info.nifti)), path)
    write_maps(inside(target, "maps"), name, grid, np.array(info.prepared_affine))
    truth = job.test.array(name, "truth")
    confidence = structure_confidence(grid.prob, job.data.meta.structures)
    stored = label_volume(truth, affine, job.data.values)
    left_out, asked = job.data.not_labelled(name), asked_of(job.settings)
    scored, ignore = job.data.meta.scored, job.data.meta.ignore
    rows = evaluate_pair(
        name, prediction, stored, scored, asked=asked, ignore=ignore, not_labelled=left_out
    )
    on_grid = resample_label(to_ras(Volume(truth, affine)).array, grid.prob.shape[1:], len(labels))
    return Scored(
        name,
        [row._replace(confidence=confidence[row.class_name]) for row in rows],
        (path.relative_to(target), job.data.folder / "cases" / f"{name}.truth.b2nd"),
        short(grid.signature),
        in_question(grid.prob, np.full_like(on_grid, IGNORED) if left_out else on_grid),
    )


def write_maps(folder: Path, name: str, grid: GridPrediction, affine: np.ndarray) -> None:
    """Uncertainty (X, Y, Z) and query groups (G, X, Y, Z) on the network's grid, for the report.

    As uint8, with 255 for 1.
    """
    for kind, values in (("uncertainty", grid.uncertainty), ("groups", grid.groups)):
        if values is not None:
            inside(folder, kind).mkdir(parents=True, exist_ok=True)
            formats.write(
                Volume(np.rint(255 * values).astype(np.uint8), affine),
                folder / kind / f"{name}.nii.gz",
            )
