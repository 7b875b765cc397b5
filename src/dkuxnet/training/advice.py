"""What would fit where memory runs out, or would run out; which classes nobody can learn."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from dkuxnet.core.errors import UserError
from dkuxnet.core.shares import WHOLE, own_patches, taking
from dkuxnet.core.types import Batch, Views
from dkuxnet.data.plan import plan_patch
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.machine.distributed import any_rank, on_rank_zero, world
from dkuxnet.machine.memory import GIB
from dkuxnet.models.methods.base import Method
from dkuxnet.training.job import Job, unlabelled_patches
from dkuxnet.training.loop import uses_bfloat16

# A step's memory over what its forward pass keeps: measured 1.1 to 1.6 for five methods and five
# networks on a CPU
STEP_OVER_KEPT = 1.5
LEAVE_SOME = 0.9
PROBES = (16, 32)  # edges of patches to measure on; some networks take no smaller one than 32


def check_step_fits(method: Method[Any], job: Job, free: int | None, resume: bool) -> None:
    """Raises UserError, as `memory_advice` says it, where a step cannot fit into what is free.

    Asked before the first step: on a CPU the system may end a program that takes too much before
    any allocation fails. What counts is what the losses keep, less than any step takes: one that
    might fit is tried. free: as for `memory_advice`. The method stays as it is. Of several
    processes all must call this, and all raise.
    """
    if free is None:
        return
    trial = copy.deepcopy(method)  # running statistics change
    voxel = step_bytes_per_voxel(trial, job, unlabelled_patches(job))
    too_much = voxel is not None and voxel / STEP_OVER_KEPT * math.prod(job.patch) > free
    if any_rank(too_much, job.device):
        keeps = "; a run keeps its settings: begin a new one, or go on where there is more memory"
        advice = memory_advice(trial, job, free)

        def refuse() -> None:
            raise UserError(f"out of memory: {advice}{keeps if resume else ''}")

        on_rank_zero(refuse)


def missing_classes(job: Job) -> list[str]:
    """Classes that no labelled case of the training, or of the validation, has: a sentence each.

    Reads labels until every class was met: one file, most often.
    """
    lists = (
        (job.split.labelled, job.training, "labelled training", "the network cannot learn it"),
        (job.split.validation, job.validation, "validation", "the best weights are chosen without"),
    )
    told = []
    for cases, data, what, so in lists:
        if cases and (absent := _absent(data, cases)):
            several = len(absent) == len(data.meta.labels) - 1
            names = "any foreground" if several else ", ".join(f"'{name}'" for name in absent)
            none = f"none of the {len(cases)} {what} cases has"
            if len(cases) == 1:
                none = f"the only {what} case does not have"
            told.append(f"{none} {names}: {so}")
    return told


def _absent(data: PreparedSet, cases: Sequence[str]) -> list[str]:
    """The classes but the background that no label on the network's grid has."""
    names = list(data.meta.labels)
    missing = set(range(1, len(names)))
    for case in cases:
        if not missing:
            break
        missing -= set(data.classes(case).tolist())
    return [names[index] for index in sorted(missing)]


def memory_advice(method: Method[Any], job: Job, free: int | None) -> str:
    """What a step would need, what there was, and which batch or patch would fit.

    Runs the method on a small patch: not for one that trains on, since that changes running
    statistics.

    free: bytes that were free before the first step; None where the system does not say.
    """
    train, patch, room = job.settings.train, job.patch, int(LEAVE_SOME * (free or 0))
    unlabelled = unlabelled_patches(job)
    patches, least = train.labelled_batch + unlabelled, world() * (1 + min(unlabelled, 1))
    step = f"a step on {patches} {'patches' if patches > 1 else 'patch'} of {_listed(patch)}"
    # gradients, and the optimiser's two averages
    fixed = 3 * sum(parameter.nbytes for parameter in method.parameters())
    voxel = step_bytes_per_voxel(method, job, unlabelled)
    # not known, or it was not the step alone
    if voxel is None or free is None or fixed + voxel * math.prod(patch) <= room:
        half = plan_patch(patch, math.prod(patch) // 2, job.shape.divisor)
        share = math.prod(half) / math.prod(patch)
        return (
            f"{step} was too much; train.patch={_listed(half)} would need about {share:.0%} of it"
        )

    def needed(voxels: float) -> int:
        return int(fixed + voxel * voxels)

    fits, few = [], needed(math.prod(patch) * least / patches)
    if few <= room:
        fits.append(
            f"train.labelled_batch={world()} and train.unlabelled_batch="
            f"{world() * min(train.unlabelled_batch, 1)} would need about {_gib(few)}"
        )
    smaller = plan_patch(patch, max(int((room - fixed) / voxel), 0), job.shape.divisor)
    if needed(math.prod(smaller)) <= room:
        fits.append(
            f"train.patch={_listed(smaller)} would need about {_gib(needed(math.prod(smaller)))}"
        )
    return (
        f"{step} needs about {_gib(needed(math.prod(patch)))}, {_gib(free)} were free; "
        f"{', or '.join(fits) or 'no patch would fit: take a smaller network'}"
    )


def step_bytes_per_voxel(method: Method[Any], job: Job, unlabelled: int) -> float | None:
    """Bytes of a step for each voxel of a patch; None where that cannot be found out.

    From what the losses of small patches keep for the gradients, which grows with the voxels. Of
    several processes each computes its own share alone. Raises UserError where the batch cannot be
    shared.
    """
    for edge in PROBES:
        patch = [min(edge, n) for n in job.patch]
        try:
            return STEP_OVER_KEPT * _kept_bytes(method, job, unlabelled, patch) / math.prod(patch)
        except (RuntimeError, ValueError, MemoryError):
            continue  # too small for the network, or too large for what is left
    return None


def _kept_bytes(method: Method[Any], job: Job, unlabelled: int, patch: list[int]) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    def views(count: int, labelled: bool) -> Views:
        image = torch.zeros(count, job.shape.in_channels, *patch, device=job.device)
        return Views(
            image,
            image,
            torch.zeros(count, *patch, dtype=torch.int64, device=job.device) if labelled else None,
        )

    batch = Batch(
        views(len(own_patches(job.settings.train.labelled_batch)), True),
        views(len(own_patches(unlabelled)), False) if unlabelled else None,
    )
    short = uses_bfloat16(job.settings.train.precision, job.device)
    with (
        torch.autocast(job.device.type, torch.bfloat16, enabled=short),
        saved_tensors_hooks(keep, lambda tensor: tensor),
        taking(WHOLE),  # without the others' sums
    ):
        last = job.settings.train.steps - 1  # what ramps up is there by then
        losses = method.train().losses(batch, last)
    return sum(storage.nbytes() for storage in kept.values()) if losses else 0


def _listed(patch: Sequence[int]) -> str:
    return f"[{','.join(map(str, patch))}]"


def _gib(count: float) -> str:
    return f"{count / GIB:.2g} GiB" if count < 99 * GIB else f"{count / GIB:.0f} GiB"
