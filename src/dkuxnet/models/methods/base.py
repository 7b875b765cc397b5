"""The contract of a method, and what many methods share.

Letters of shapes: see `core.types`.
"""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape, Output
from dkuxnet.models.methods.losses import PLAIN, query_loss_all, segmentation_loss, total
from dkuxnet.models.methods.merging import merge_classes, said
from dkuxnet.models.methods.options import Branch, MethodOptions

OptionsT = TypeVar("OptionsT", bound=MethodOptions)


class Method(nn.Module, Generic[OptionsT]):
    """Turns a batch into losses. Owns its networks; knows no optimiser, device, file or loop.

    Subclasses state how many networks they take (`branches`), whether they look at unlabelled
    patches, and what can be set (`Options`). Being a module, a method's state_dict carries
    everything that it owns: saving, resuming and moving are the loop's business.
    """

    branches: ClassVar[int] = 1
    uses_unlabelled: ClassVar[bool] = True
    # of which patches it mixes one with another
    mixes: ClassVar[Literal["", "labelled", "unlabelled"]] = ""
    Options: ClassVar[type[MethodOptions]] = MethodOptions  # in a subclass: its OptionsT

    def __init__(self, networks: Sequence[nn.Module], options: OptionsT, shape: NetworkShape):
        """networks: `branches` of them, built alike and initialised apart.

        Raises ValueError where they do not fit.
        """
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.options = options
        self.shape = shape
        self.form = PLAIN  # of L_seg, which a training may change

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named, weighted scalars; the loop sums them. `step` counts optimiser steps from 0.

        Each is a mean over the patches, or a function of `batch_sum`s, and what is drawn for each
        patch is drawn by `draw_own`: see `core.shares`. It comes from torch's own generator, which
        the loop seeds with every step.
        """
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after each optimiser step: a teacher follows its student here."""

    def predictor(self) -> nn.Module:
        """What validation, prediction and export use: image (B, C, X, Y, Z) -> Output."""
        return self.networks[0]

    def supervision(self, outputs: Sequence[Output], label: Tensor) -> dict[str, Tensor]:
        """L_seg as "seg" and w_qd L_qd as "qd", summed over the outputs.

        label: (B, X, Y, Z) int64 of the outputs' first B patches.
        """
        outputs = [first_patches(output, len(label)) for output in outputs]
        losses = {"seg": total(self.segmentation(output.logits, label) for output in outputs)}
        return losses | self.query_supervision(outputs, label)

    def segmentation(self, logits: Tensor, label: Tensor, mask: Tensor | None = None) -> Tensor:
        """L_seg of (B, K, X, Y, Z), see `losses.segmentation_loss`.

        label: (B, X, Y, Z) int64, which may hold values of `NetworkShape.merged`.
        """
        logits, label, mask = merge_classes(logits, label, self.shape, mask)
        return segmentation_loss(logits, label, mask, self.form)

    def query_supervision(
        self, outputs: Sequence[Output], label: Tensor, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """w_qd L_qd as "qd", summed over the outputs, or nothing where there are no queries.

        label: (B, X, Y, Z) int64. mask: (B, X, Y, Z), voxels whose label counts.
        """
        mask = said(label, self.shape, mask)
        if not self.options.w_qd or outputs[0].group_prob is None:
            return {}
        groups, merged = self.shape.groups, self.shape.merged
        loss = total(query_loss_all(output, label, groups, mask, merged) for output in outputs)
        return {"qd": self.options.w_qd * loss}


class EncoderDecoder(Protocol):
    """A network whose two halves can be called apart: see `models.networks`."""

    def encoder(self, image: Tensor) -> Sequence[Tensor]: ...

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output: ...


def all_patches(batch: Batch, view: Literal["weak", "strong"]) -> Tensor:
    """One view of the labelled patches, then of the unlabelled ones, (B, C, X, Y, Z)."""
    parts = [batch.labelled] if batch.unlabelled is None else [batch.labelled, batch.unlabelled]
    return torch.cat([part.strong if view == "strong" else part.weak for part in parts])


def first_patches(output: Output, count: int) -> Output:
    """What the losses on labels read, of the first `count` patches of a batch."""
    return Output(
        logits=output.logits[:count],
        group_prob=None if output.group_prob is None else output.group_prob[:count],
        layer_group_prob=tuple(layer[:count] for layer in output.layer_group_prob),
    )


def probabilities(output: Output) -> Tensor:
    """Softmax over the classes in float32, (B, K, X, Y, Z)."""
    return output.logits.float().softmax(dim=1)


def ramp_up(step: int, length: int) -> float:
    """r(t): the Gaussian ramp exp(-5 (1 - t)^2), t from 0 to 1 over `length` steps.

    Source: Laine and Aila, arXiv 1610.02242.
    """
    t = min(step / length, 1.0) if length > 0 else 1.0
    return math.exp(-5 * (1 - t) ** 2)


def branch_predictor(branches: nn.ModuleList, predict: Branch) -> nn.Module:
    """The mean of two branches, or one of them."""
    a, b = branches
    return {"mean": Ensemble([a, b]), "a": a, "b": b}[predict]


class Ensemble(nn.Module):
    """The mean of networks' probabilities and their disagreement: see `mean_output`."""

    def __init__(self, networks: Iterable[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Output:
        return mean_output([network(image) for network in self.networks])


def mean_output(outputs: Sequence[Output]) -> Output:
    """The mean of the probabilities, as logits, and of the grouped assignments where all have one.

    features: of the first output, since those of two networks have nothing in common.
    uncertainty: the Jensen-Shannon divergence of the outputs over its maximum, the log of their
    number: 0 agreement, 1 contradiction.
    """
    logs = [output.logits.float().log_softmax(dim=1) for output in outputs]
    log_mean = reduce(torch.logaddexp, logs) - math.log(len(outputs))  # faster than on a stack
    divergence = total((log.exp() * (log - log_mean)).sum(dim=1) for log in logs) / len(outputs)
    groups = [output.group_prob.float() for output in outputs if output.group_prob is not None]
    return Output(
        logits=log_mean,
        group_prob=total(groups) / len(groups) if len(groups) == len(outputs) else None,
        features=outputs[0].features,
        uncertainty=(divergence / math.log(len(outputs))).clamp(0, 1),
    )
