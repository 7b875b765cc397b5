"""A training that begins with the weights of an earlier run: of fewer labels, other classes."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.machine.distributed import rank
from dkuxnet.models.build import StateDict, misfits_of, networks_of
from dkuxnet.prediction.predictor import load_predictor
from dkuxnet.training.job import Job

PER_CLASS = ("head.", "classify.")  # where the rows of a tensor may be those of the classes


def earlier_weights(run: Path, job: Job, network: nn.Module) -> list[StateDict]:
    """The weights of each network of `run` that predicts, for the classes of the job.

    network: one that is to begin with
    them; what does not fit it is a DataWarning. Raises UserError where `run` is not finished, and
    where nothing fits.
    """
    predictor, _, manifest = load_predictor(run)
    theirs, ours = list(manifest.labels), job.data.class_names
    if not set(theirs[1:]) & set(ours[1:]):
        raise UserError(
            f"{run} cannot be begun with: it has no class of this data set; its classes are "
            f"{', '.join(theirs[1:])}"
        )
    found = [for_classes(each.state_dict(), theirs, ours) for each in networks_of(predictor)]
    new, of = misfits_of(network, found[0]), len(network.state_dict())
    if len(new) == of:
        raise UserError(
            f"{run} cannot be begun with: it has another network, no weights of which fit; choose "
            "the same with --network, or leave --from out"
        )
    if new and not rank():
        warnings.warn(
            f"{len(new)} of {of} weights do not fit those of {run} and begin anew, {new[0]} the "
            "first of them",
            DataWarning,
            stacklevel=2,
        )
    return found


def for_classes(weights: StateDict, theirs: Sequence[str], ours: Sequence[str]) -> StateDict:
    """The rows that are of classes, by the names of these; of a class that is new they are 0."""
    if list(theirs) == list(ours):
        return weights

    def moved(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not name.startswith(PER_CLASS) or len(tensor) != len(theirs):
            return tensor
        rows = tensor.new_zeros(len(ours), *tensor.shape[1:])
        for place, each in enumerate(ours):
            if each in theirs:
                rows[place] = tensor[theirs.index(each)]
        return rows

    return {name: moved(name, tensor) for name, tensor in weights.items()}
