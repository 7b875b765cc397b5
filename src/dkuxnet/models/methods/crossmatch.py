"""CrossMatch: streams of perturbed views and perturbed features teach each other.

Source: Zhao, Wang, Ding, "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with
Perturbation Strategies and Knowledge Distillation", IEEE JBHI 2024, arXiv 2405.00354.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.methods.base import probabilities
from dkuxnet.models.methods.losses import consistency_loss, total
from dkuxnet.models.methods.mixing import cutmix
from dkuxnet.models.methods.options import Drop, Share, Weight
from dkuxnet.models.methods.streams import StreamMethod, StreamOptions


@dataclass(frozen=True)
class CrossMatchOptions(StreamOptions):
    """eta: share of what perturbed decoders learn from each other, the rest from the plain one.

    weak_dropout, strong_dropout: share of feature channels dropped before the perturbed decoders.
    The others: see `streams.StreamOptions`; the paper's weight is 1 beside half of L_seg.
    """

    w: Weight = 2.0
    threshold: Share = 0.75
    eta: Share = 0.3
    weak_dropout: Drop = 0.25
    strong_dropout: Drop = 0.75


class CrossMatch(StreamMethod[CrossMatchOptions]):
    """L_seg + w_qd L_qd + w (L_ip + (1 - eta) L_tkd + eta L_dkd).

    One network decodes an image three times: its features as they are ("plain"), and after a weak
    and a strong channel dropout. Every term is a soft Dice to confident pseudo-labels:

    - L_ip: a quarter for each of two strong streams, plain, to the plain weak view.
    - L_tkd: mean over the weak and the strong dropout, on the weak view and on the second strong
      stream, to the plain weak view.
    - L_dkd: mean over both dropouts, on the second strong stream, to the same on the weak view.

    The strong streams are CutMix of strong views, see `strong_streams`; what teaches them is mixed
    alike.
    """

    Options = CrossMatchOptions

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        network, options, labelled = self.networks[0], self.options, batch.labelled
        if batch.unlabelled is None:
            return self.supervision([network(labelled.strong)], batch.label)
        weak = batch.unlabelled.weak
        features, target = self.features_and_target(weak)
        of_weak = self.dropped(weak, features)
        (one, box_one), (two, box_two) = self.strong_streams(batch, batch.unlabelled)
        output = network(torch.cat([labelled.strong, one]))
        losses = self.supervision([output], batch.label)
        of_one = probabilities(output)[len(batch.label) :]
        features = self.halves.encoder(two)
        of_two = probabilities(self.halves.decode(two, features))
        dropped_two = self.dropped(two, features)

        def distil(prob: Tensor, target: Tensor) -> Tensor:
            return consistency_loss(prob, target, "pseudo-dice", "strong", options.threshold)

        on_one, on_two = cutmix(target, box_one), cutmix(target, box_two)
        from_plain = [distil(prob, target) for prob in of_weak]
        from_plain += [distil(prob, on_two) for prob in dropped_two]
        among = [
            distil(prob, cutmix(teacher, box_two))
            for prob, teacher in zip(dropped_two, of_weak, strict=True)
        ]
        losses["strong"] = options.w * (distil(of_one, on_one) + distil(of_two, on_two)) / 4
        losses["plain"] = options.w * (1 - options.eta) * total(from_plain) / len(from_plain)
        losses["dropped"] = options.w * options.eta * total(among) / len(among)
        return losses

    def dropped(self, image: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Probabilities (B, K, X, Y, Z) after the weak and after the strong dropout."""
        rates = (self.options.weak_dropout, self.options.strong_dropout)
        return [probabilities(self.decode_dropped(image, features, rate)) for rate in rates]
