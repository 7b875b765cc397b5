"""UniMatch: FixMatch with two strong streams and one of perturbed features.

Source: Yang et al., CVPR 2023, arXiv 2208.09910.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dkuxnet.core.types import Batch, NetworkShape
from dkuxnet.models.methods.base import EncoderDecoder, Method, probabilities
from dkuxnet.models.methods.losses import consistency_loss
from dkuxnet.models.methods.mixing import paste, random_boxes
from dkuxnet.models.methods.options import Edge, MethodOptions, Share, Weight


@dataclass(frozen=True)
class UniMatchOptions(MethodOptions):
    """w: weight of the three streams. threshold: least probability of a pseudo-label that counts.

    box: edge of the CutMix box as a share of the patch's. dropout: share of feature channels
    dropped.
    """

    w: Weight = 1.0
    threshold: Share = 0.95
    box: Edge = 0.5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


class UniMatch(Method[UniMatchOptions]):
    """L_seg + w_qd L_qd + w (1/4 of each strong stream + 1/2 of the feature stream).

    Every stream learns from the weak view's confident pseudo-labels. Both strong streams are CutMix
    of strong views, with boxes and intensities of their own; as in the paper, a pasted box keeps
    those that its patch had. The feature stream decodes the weak view's features after channel
    dropout.
    """

    Options = UniMatchOptions

    def __init__(
        self, networks: Sequence[nn.Module], options: UniMatchOptions, shape: NetworkShape
    ):
        super().__init__(networks, options, shape)
        if not hasattr(networks[0], "decode"):
            raise ValueError(
                "this network's features cannot be perturbed; those of dk-uxnet, uxnet and vnet "
                "networks can"
            )

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        network, options, labelled = self.networks[0], self.options, batch.labelled
        if batch.unlabelled is None:
            return self.supervision([network(labelled.strong)], batch.label)
        halves = cast(EncoderDecoder, network)
        weak = batch.unlabelled.weak
        count = len(weak)
        features = halves.encoder(weak)
        with torch.no_grad():
            target = probabilities(halves.decode(weak, features))
        boxes = [random_boxes(count, weak.shape[2:], options.box, weak.device) for _ in range(2)]
        views = [batch.unlabelled.strong, batch.strengthen(weak)]
        streams = [paste(v.roll(1, 0), v, box) for v, box in zip(views, boxes, strict=True)]
        output = network(torch.cat([labelled.strong, *streams]))
        losses = self.supervision([output], batch.label)
        perturbed = [F.dropout3d(each, options.dropout) for each in features]

        def pseudo_label_loss(prob: Tensor, target: Tensor) -> Tensor:
            return consistency_loss(prob, target, "pseudo", "strong", options.threshold)

        probs = torch.split(probabilities(output)[len(batch.label) :], count)
        one, two = (
            pseudo_label_loss(prob, paste(target.roll(1, 0), target, box))
            for prob, box in zip(probs, boxes, strict=True)
        )
        of_features = pseudo_label_loss(probabilities(halves.decode(weak, perturbed)), target)
        losses["strong"] = options.w * (one + two) / 4
        losses["features"] = options.w * of_features / 2
        return losses
