"""What methods share whose streams are perturbed views and perturbed features of one network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from dkuxnet.core.shares import draw_own
from dkuxnet.core.types import Batch, NetworkShape, Output, Views
from dkuxnet.models.methods.base import EncoderDecoder, Method, probabilities
from dkuxnet.models.methods.mixing import cutmix, random_boxes
from dkuxnet.models.methods.options import Edge, MethodOptions, Share, Weight


@dataclass(frozen=True)
class StreamOptions(MethodOptions):
    """w: weight of all streams. threshold: least probability of a pseudo-label that counts.

    box: edge of the CutMix box as a share of the patch's.
    """

    w: Weight = 1.0
    threshold: Share = 0.95
    box: Edge = 0.5


StreamOptionsT = TypeVar("StreamOptionsT", bound=StreamOptions)


class StreamMethod(Method[StreamOptionsT]):
    """A network whose features can be perturbed between its encoder and its decoder."""

    mixes = "unlabelled"

    def __init__(self, networks: Sequence[nn.Module], options: StreamOptionsT, shape: NetworkShape):
        super().__init__(networks, options, shape)
        if not hasattr(networks[0], "decode"):
            raise ValueError(
                "this network's features cannot be perturbed; those of dk-uxnet, uxnet and vnet "
                "networks can"
            )

    @property
    def halves(self) -> EncoderDecoder:
        """The network as an encoder and a decoder."""
        return cast(EncoderDecoder, self.networks[0])

    def features_and_target(self, weak: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Encoded weak views (B, C, X, Y, Z), and their probabilities (B, K, X, Y, Z).

        The probabilities teach, and no gradient goes through them.
        """
        features = self.halves.encoder(weak)
        with torch.no_grad():
            return features, probabilities(self.halves.decode(weak, features))

    def strong_streams(self, batch: Batch, patches: Views) -> list[tuple[Tensor, Tensor]]:
        """Two CutMix images (B, C, X, Y, Z) of the unlabelled patches, each with its boxes.

        Boxes and intensities are drawn apart; as in the papers, a pasted box keeps the intensities
        that its patch had.
        """
        size, device = patches.weak.shape, patches.weak.device
        boxes = [random_boxes(size[0], size[2:], self.options.box, device) for _ in range(2)]
        views = [patches.strong, batch.strengthen(patches.weak)]
        return [(cutmix(view, box), box) for view, box in zip(views, boxes, strict=True)]

    def decode_dropped(self, image: Tensor, features: Sequence[Tensor], rate: float) -> Output:
        """Decode the encoder's features after a share `rate` of their channels was dropped."""
        return self.halves.decode(image, [drop_channels(each, rate) for each in features])


def drop_channels(features: Tensor, rate: float) -> Tensor:
    """`F.dropout3d` of (B, C, X, Y, Z), drawn for the patches of all processes alike."""
    if not rate:
        return features
    size = (features.shape[1], 1, 1, 1)
    kept = draw_own(
        lambda rows: features.new_empty(rows, *size).bernoulli_(1 - rate), len(features)
    )
    return features * (kept / (1 - rate))
