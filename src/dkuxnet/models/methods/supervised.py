"""Supervised training on the labelled scans alone: the lower bound for every other method."""

from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import Method
from dkuxnet.models.methods.options import MethodOptions


class Supervised(Method[MethodOptions]):
    """L_seg + w_qd L_qd on the strong view."""

    uses_unlabelled = False

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.supervision([self.networks[0](batch.labelled.strong)], batch.label)
