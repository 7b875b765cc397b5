"""FixMatch (Sohn et al., NeurIPS 2020, arXiv 2001.07685) on voxels: what is surely seen in the
weak view is taught in the strong one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import Method, Share, Weight, all_patches, probabilities
from dkuxnet.models.methods.losses import consistency_loss


class FixMatch(Method):
    """L_seg + w_qd L_qd + w (cross-entropy of the strong view against the weak view's hard
    decision, where that is sure).
    """

    @dataclass(frozen=True)
    class Options:
        """w: weight of the pseudo labels. threshold: least probability of a decision that counts.
        w_qd: weight of the query loss.
        """

        w: Weight = 1.0
        threshold: Share = 0.95
        w_qd: Weight = 0.1

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        network, options = self.networks[0], self.options
        output = network(all_patches(batch, "strong"))
        losses = self.supervision([output], batch.labelled.label, options.w_qd)
        if batch.unlabelled is not None:
            with torch.no_grad():
                target = probabilities(network(batch.unlabelled.weak))
            strong = probabilities(output)[len(batch.labelled.label) :]
            losses["pseudo"] = options.w * consistency_loss(
                strong, target, "pseudo", "strong", options.threshold
            )
        return losses
