"""What later predictions are compared with: the model on its training scans and held-out ones."""

import math
from collections.abc import Mapping

import numpy as np
from torch import nn

from dkuxnet.core.confidence import structure_volumes
from dkuxnet.core.schemas import HeldOut, Reference
from dkuxnet.core.types import CountProgress
from dkuxnet.evaluation.evaluate import Evaluation
from dkuxnet.machine.distributed import all_gather, on_rank_zero, rank, world
from dkuxnet.models.components import Cleaning
from dkuxnet.prediction.trust import FEWEST_SCANS, Familiar
from dkuxnet.prediction.windows import GridPrediction
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.coarse import CoarseStage, predicted
from dkuxnet.training.job import Job, windows_of


def write_reference(
    folder: RunFolder,
    predictor: nn.Module,
    job: Job,
    coarse: CoarseStage | None,
    progress: CountProgress,
) -> None:
    """RUN/reference.json, of `train.reference_cases` training scans.

    Nothing where that setting, or the number of scans, is below FEWEST_SCANS. Several processes
    share the cases. progress: told how many
    cases are done, of how many.
    """
    known = (*job.split.labelled, *job.split.unlabelled)
    most = min(job.settings.train.reference_cases, len(known))
    if most < FEWEST_SCANS:
        return
    places = np.linspace(0, len(known) - 1, most).round().astype(int)
    windows = windows_of(job, with_signature=True)
    mine = []
    for done, place in enumerate(places[rank() :: world()], 1):
        grid = predicted(predictor, job, coarse, "training", known[place], windows)
        mine.append((int(place), short(grid.signature), _volumes_ml(grid, job)))
        progress(min(done * world(), most), most)
    looked_at = sorted(all_gather(mine))
    volumes_ml: dict[str, list[float]] = {each: [] for each in job.data.meta.structures}
    for _, _, found in looked_at:
        for each, volume_ml in found.items():
            volumes_ml[each].append(volume_ml)
    signatures = [signature for _, signature, _ in looked_at]
    reference = Reference(signatures=signatures, volumes_ml=volumes_ml, held_out=[])
    on_rank_zero(lambda: folder.write_reference(reference))


def _volumes_ml(grid: GridPrediction, job: Job) -> dict[str, float]:
    """Of each class that was found."""
    voxel_ml = math.prod(job.data.meta.plan.spacing_mm) / 1000
    cleaning = Cleaning.of(job.settings.infer, job.data.class_names)
    label = cleaning(grid.prob.argmax(axis=0), voxel_ml)
    voxels = np.bincount(label.ravel(), minlength=job.shape.classes).tolist()
    return structure_volumes(voxels, job.data.meta.structures, voxel_ml)


def keep_held_out(
    folder: RunFolder, evaluation: Evaluation, signatures: Mapping[str, list[float]]
) -> None:
    """Add the test cases to RUN/reference.json, where there is one: how good, how sure, how unlike.

    signatures: name of a test case -> its own.
    """
    if (reference := folder.reference) is None:
        return
    familiar = Familiar.of(reference.signatures)
    rows = [row for row in evaluation.rows if row.n_pred > 0 and row.n_ref > 0]
    cases = [
        HeldOut(
            name=name,
            unlike=familiar.unlike(np.array(signature)) if familiar else None,
            confidence={row.class_name: row.confidence for row in rows if row.case == name},
            dice={row.class_name: row.dice for row in rows if row.case == name},
        )
        for name, signature in signatures.items()
    ]
    folder.write_reference(reference.model_copy(update={"held_out": cases}))


def short(signature: np.ndarray | None) -> list[float]:
    """In five digits, which is more than two scans have in common."""
    return [] if signature is None else [float(f"{value:.5g}") for value in signature]
