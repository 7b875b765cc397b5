"""Supervised training on the labelled scans alone: the bound that every other method is measured against."""

from dataclasses import dataclass

from torch import Tensor

from dkuxnet.losses import query_loss_all, segmentation_loss
from dkuxnet.methods.base import Method
from dkuxnet.types import Batch


class Supervised(Method):
    """L_seg + w_qd L_qd on the strong view; the query loss counts only for networks that have queries."""

    uses_unlabelled = False

    @dataclass(frozen=True)
    class Options:
        """w_qd: weight of the query loss."""

        w_qd: float = 0.1

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        labelled = batch.labelled
        output = self.networks[0](labelled.strong)
        losses = {"seg": segmentation_loss(output.logits, labelled.label)}
        if self.options.w_qd and output.group_prob is not None:
            losses["qd"] = self.options.w_qd * query_loss_all(output, labelled.label, self.shape.groups)
        return losses
