"""Supervised training on the labelled scans alone: the bound that every other method is measured
against.
"""

from dataclasses import dataclass

from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import Method, Weight


class Supervised(Method):
    """L_seg + w_qd L_qd on the strong view; the query loss counts only for networks that have
    queries.
    """

    uses_unlabelled = False

    @dataclass(frozen=True)
    class Options:
        """w_qd: weight of the query loss."""

        w_qd: Weight = 0.1

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        output = self.networks[0](batch.labelled.strong)
        return self.supervision([output], batch.labelled.label, self.options.w_qd)
