"""The coarse stage of a training, as the fine one uses it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from dkuxnet.core.types import CountProgress
from dkuxnet.data.prepared_set import packed
from dkuxnet.machine.distributed import all_gather, rank, world
from dkuxnet.machine.files import inside, whole_folder, write_bytes
from dkuxnet.models.build import StateDict, networks_of
from dkuxnet.prediction.refine import refine
from dkuxnet.prediction.windows import GridPrediction, Windows, sliding_window
from dkuxnet.training.job import Job, windows_of
from dkuxnet.training.priors import Priors

Which = Literal["training", "validation", "test"]  # the view of the prepared set
COPIED = ("settings.json", "manifest.json", "metrics.jsonl", "final.safetensors")


@dataclass(frozen=True)
class CoarseStage:
    """The trained coarse stage: its predictor, and what it says of the unlabelled cases."""

    predictor: nn.Module
    priors: Priors

    @property
    def weights(self) -> list[StateDict]:
        """Of each network that predicts."""
        return [each.state_dict() for each in networks_of(self.predictor)]


def copy_run(run: Path, target: Path) -> None:
    """Copy what a run needs to predict; a target that is there stays."""
    if target.exists():
        return
    with whole_folder(target) as folder:
        for name in (*COPIED, "best.safetensors"):
            if name in COPIED or (run / name).exists():
                shutil.copyfile(run / name, folder / name)


def write_priors(
    job: Job,
    cases: Sequence[str],
    run: Path,
    predictor: nn.Module,
    progress: CountProgress | None = None,
) -> Priors:
    """Predict unlabelled cases with the coarse stage; those that are there stay.

    job: its own. run: the folder of the coarse stage. Several processes share the cases.
    """
    priors = Priors(inside(run, "priors"), job.data)
    priors.folder.mkdir(exist_ok=True)
    windows = windows_of(job)
    for done, name in enumerate(cases[rank() :: world()], 1):
        if not priors.path(name).exists():
            prob = sliding_window(predictor, job.training.array(name, "image"), windows).prob
            write_bytes(priors.path(name), packed(np.rint(255 * prob[1:]).astype(np.uint8)))
        if progress:
            progress(min(done * world(), len(cases)), len(cases))
    all_gather([None])  # no process reads before all have written
    return priors


def predicted(
    predictor: nn.Module,
    job: Job,
    coarse: CoarseStage | None,
    of: Which,
    name: str,
    windows: Windows,
) -> GridPrediction:
    """A case on the network's grid, by both stages where there are two."""
    image: np.ndarray = getattr(job, of).array(name, "image")
    if coarse is None or job.coarse is None:
        return sliding_window(predictor, image, windows)
    first = job.coarse
    coarse_image = getattr(first, of).array(name, "image")
    prob = sliding_window(coarse.predictor, coarse_image, windows_of(first)).prob
    return refine(predictor, image, prob, job.settings.coarse.share, windows)
