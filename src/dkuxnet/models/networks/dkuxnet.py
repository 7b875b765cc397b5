"""One branch of DK-UXNet, the kMaX UX-Net, wired from its boxes (Wu, Li, Zhang, ISBI 2024, Figures
1 and 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dkuxnet.core.lookup import parse_options
from dkuxnet.core.types import NetworkShape, Output
from dkuxnet.models.networks.cpu import predicting
from dkuxnet.models.networks.grouping import check_groups, grouped_assignment
from dkuxnet.models.networks.kmax import KMaxDecoder, MaskLogits
from dkuxnet.models.networks.residual_decoder import ResidualDecoder
from dkuxnet.models.networks.uxnet import UXNetEncoder

Width = Annotated[int, Field(ge=1, le=8192)]
Depth = Annotated[int, Field(ge=0, le=128)]


@dataclass(frozen=True)
class DKUXNetOptions:
    """Sizes of a branch; the defaults are the paper's.

    widths: channels of the encoder's stages at strides 2, 4, 8, 16. depths: blocks a stage.
    query_channels: C, divisible by `heads`. layers_per_scale: kMaX layers at each of the strides
    16, 8, 4. layer_scale: initial residual scale. recompute: less memory in training for more time,
    see `ResidualDecoder`.
    """

    widths: tuple[Width, Width, Width, Width] = (48, 96, 192, 384)
    depths: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2)
    query_channels: Width = 128
    layers_per_scale: Depth = 2
    heads: Width = 8
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layer_scale: Annotated[float, Field(allow_inf_nan=False)] = 1e-6
    recompute: bool = False


class DKUXNet(nn.Module):
    """(B, C, X, Y, Z) -> Output with segmentation logits and grouped assignments.

    X, Y, Z divisible by 16.
    """

    has_queries = True  # a method whose losses need a grouped assignment asks before it trains

    def __init__(self, shape: NetworkShape, options: DKUXNetOptions):
        super().__init__()
        check_groups(shape.groups, shape.classes)
        self.groups = shape.groups
        self.voxel_channels = options.widths[0]
        channels = options.query_channels
        self.encoder = UXNetEncoder(
            shape.in_channels,
            options.widths,
            options.depths,
            options.drop_rate,
            options.layer_scale,
        )
        self.decoder = ResidualDecoder(shape.in_channels, options.widths, options.recompute)
        coarse = self.decoder.channels[:3]  # strides 16, 8, 4
        queries = sum(group.queries for group in shape.groups)
        self.kmax = KMaxDecoder(coarse, queries, channels, options.layers_per_scale, options.heads)
        self.assignment = MaskLogits(self.decoder.channels[-1], channels)
        self.classify = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, shape.classes),
        )

    def forward(self, image: Tensor) -> Output:
        return self.decode(image, self.encoder(image))

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output:
        maps = self.decoder(image, features)
        queries, layer_logits = self.kmax(maps[:3])  # (B, N, C)
        if not self.training and predicting.applies(image):
            return self._predicted(maps[-1], queries)
        mask_logits = self.assignment(maps[-1], queries)  # R: (B, N, X, Y, Z)
        classes = self.classify(queries)  # S: (B, N, K), one MLP shared by all queries
        assignment = mask_logits.softmax(dim=1)  # M: how every voxel spreads over the queries
        return Output(
            logits=torch.einsum("bnk,bnxyz->bkxyz", classes, assignment),  # Z = S^T M
            group_prob=grouped_assignment(assignment, self.groups),
            layer_group_prob=tuple(
                grouped_assignment(layer.softmax(dim=1), self.groups) for layer in layer_logits
            ),
            features=maps[-1],
        )

    def _predicted(self, features: Tensor, queries: Tensor) -> Output:
        """The same without the assignment of every voxel to every query in memory, nor what only
        losses read.
        """
        classes, head = self.classify(queries), self.assignment
        group = torch.cat(
            [classes.new_full((g.queries,), i, dtype=torch.long) for i, g in enumerate(self.groups)]
        )
        table = torch.cat(
            [classes, F.one_hot(group).to(classes).expand(len(classes), -1, -1)], dim=2
        )  # (B, N, K + G)
        sums = predicting.assigned(
            features, head.masks(queries), head.voxels.weight.flatten(1), head.voxels.bias, table
        )
        logits, group_prob = sums.split([classes.shape[2], len(self.groups)], dim=1)
        return Output(logits=logits, group_prob=group_prob, features=features)


def dk_uxnet(shape: NetworkShape, options: dict) -> DKUXNet:
    """DK-UXNet's branch at the paper's widths."""
    return DKUXNet(shape, parse_options(DKUXNetOptions, options, "network.dk-uxnet"))


def dk_uxnet_small(shape: NetworkShape, options: dict) -> DKUXNet:
    """Half of the paper's widths: for a GPU of 8 GB."""
    sizes = {"widths": (24, 48, 96, 192), "query_channels": 64}
    return DKUXNet(shape, parse_options(DKUXNetOptions, sizes | options, "network.dk-uxnet-small"))


def dk_uxnet_tiny(shape: NetworkShape, options: dict) -> DKUXNet:
    """A sixth of the paper's widths: trains on a laptop's CPU."""
    sizes = {"widths": (8, 16, 32, 64), "query_channels": 32}
    return DKUXNet(shape, parse_options(DKUXNetOptions, sizes | options, "network.dk-uxnet-tiny"))
