"""UniMatch: FixMatch with two strong streams and one of perturbed features.

Source: Yang et al., CVPR 2023, arXiv 2208.09910.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import probabilities
from dkuxnet.models.methods.losses import consistency_loss
from dkuxnet.models.methods.mixing import cutmix
from dkuxnet.models.methods.options import Drop
from dkuxnet.models.methods.streams import StreamMethod, StreamOptions


@dataclass(frozen=True)
class UniMatchOptions(StreamOptions):
    """dropout: share of feature channels dropped. The others: see `streams.StreamOptions`."""

    dropout: Drop = 0.5


class UniMatch(StreamMethod[UniMatchOptions]):
    """L_seg + w_qd L_qd + w (1/4 of each strong stream + 1/2 of the feature stream).

    Every stream learns from the weak view's confident pseudo-labels. The strong streams are CutMix
    of strong views, see `strong_streams`. The feature stream decodes the weak view's features after
    channel dropout.
    """

    Options = UniMatchOptions

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        network, options, labelled = self.networks[0], self.options, batch.labelled
        if batch.unlabelled is None:
            return self.supervision([network(labelled.strong)], batch.label)
        weak = batch.unlabelled.weak
        features, target = self.features_and_target(weak)
        (one, box_one), (two, box_two) = self.strong_streams(batch, batch.unlabelled)
        output = network(torch.cat([labelled.strong, one, two]))
        losses = self.supervision([output], batch.label)

        def pseudo_label_loss(prob: Tensor, target: Tensor) -> Tensor:
            return consistency_loss(prob, target, "pseudo", "strong", options.threshold)

        of_one, of_two = probabilities(output)[len(batch.label) :].chunk(2)
        strong = pseudo_label_loss(of_one, cutmix(target, box_one)) + pseudo_label_loss(
            of_two, cutmix(target, box_two)
        )
        dropped = probabilities(self.decode_dropped(weak, features, options.dropout))
        losses["strong"] = options.w * strong / 4
        losses["features"] = options.w * pseudo_label_loss(dropped, target) / 2
        return losses
