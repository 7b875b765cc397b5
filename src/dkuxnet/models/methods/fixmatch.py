"""FixMatch on voxels: confident pseudo-labels of the weak view teach the strong view.

Source: Sohn et al., NeurIPS 2020, arXiv 2001.07685.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import Method, all_patches, probabilities
from dkuxnet.models.methods.losses import consistency_loss
from dkuxnet.models.methods.options import MethodOptions, Share, Weight


@dataclass(frozen=True)
class FixMatchOptions(MethodOptions):
    """w: weight of the pseudo-labels. threshold: least probability of one that counts."""

    w: Weight = 1.0
    threshold: Share = 0.95


class FixMatch(Method[FixMatchOptions]):
    """L_seg + w_qd L_qd + w L_pseudo.

    L_pseudo: the cross-entropy of the strong view against the weak view's pseudo-label, in voxels
    where that is confident.
    """

    Options = FixMatchOptions

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        network, options = self.networks[0], self.options
        output = network(all_patches(batch, "strong"))
        losses = self.supervision([output], batch.label)
        if batch.unlabelled is not None:
            with torch.no_grad():
                target = probabilities(network(batch.unlabelled.weak))
            strong = probabilities(output)[len(batch.label) :]
            losses["pseudo"] = options.w * consistency_loss(
                strong, target, "pseudo", "strong", options.threshold
            )
        return losses
