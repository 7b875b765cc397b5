"""One branch of DK-UXNet: the kMaX UX-Net, wired from its boxes.

Source: Wu, Li, Zhang, "Semi-supervised Medical Image Segmentation via Query Distribution
Consistency" (ISBI 2024, arXiv 2311.12364), Figures 1 and 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dkuxnet.core.lookup import parse_options
from dkuxnet.core.types import NetworkShape, Output
from dkuxnet.models.networks.backbone import UXNetBackbone
from dkuxnet.models.networks.blocks import weight_and_bias
from dkuxnet.models.networks.cpu import predicting
from dkuxnet.models.networks.grouping import check_groups, grouped_assignment
from dkuxnet.models.networks.kmax import KMaxDecoder, MaskLogits
from dkuxnet.models.networks.uxnet import Depth, UXNetOptions, Width


@dataclass(frozen=True)
class DKUXNetOptions(UXNetOptions):
    """Sizes of a branch; the defaults are the paper's. The rest is in `UXNetOptions`.

    query_channels: C, divisible by `heads`. layers_per_scale: kMaX layers at each of the
    three coarsest scales. heads: of the queries' self-attention.
    """

    query_channels: Width = 128
    layers_per_scale: Depth = 2
    heads: Width = 8


class DKUXNet(UXNetBackbone):
    """(B, C, X, Y, Z) -> Output with segmentation logits and grouped assignments."""

    has_queries = True  # a method whose losses need a grouped assignment asks before it trains

    def __init__(self, shape: NetworkShape, options: DKUXNetOptions):
        check_groups(shape.groups, shape.classes)
        super().__init__(shape, options)
        self.groups = shape.groups
        channels = options.query_channels
        coarse = self.decoder.channels[:3]  # of the three coarsest maps
        queries = sum(group.queries for group in shape.groups)
        self.kmax = KMaxDecoder(coarse, queries, channels, options.layers_per_scale, options.heads)
        self.assignment = MaskLogits(self.decoder.channels[-1], channels)
        self.classify = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, shape.classes),
        )

    def decode(self, image: Tensor, features: Sequence[Tensor]) -> Output:
        maps = self.decoder(image, features)
        queries, layer_logits = self.kmax(maps[:3])  # (B, N, C)
        if not self.training and predicting.applies(image):
            return self._infer(maps[-1], queries)
        mask_logits = self.assignment(maps[-1], queries)  # R: (B, N, X, Y, Z)
        classes = self.classify(queries)  # S: (B, N, K), one MLP shared by all queries
        assignment = mask_logits.softmax(dim=1)  # M: each voxel's distribution over the queries
        return Output(
            logits=torch.einsum("bnk,bnxyz->bkxyz", classes, assignment),  # Z = S^T M
            group_prob=grouped_assignment(assignment, self.groups),
            layer_group_prob=tuple(
                grouped_assignment(layer.softmax(dim=1), self.groups) for layer in layer_logits
            ),
            features=maps[-1],
        )

    def _infer(self, features: Tensor, queries: Tensor) -> Output:
        """The head where nothing learns: (B, C', X, Y, Z) and (B, N, C) -> Output.

        The assignment of every voxel to every query is never in memory, and what only losses read
        is left out.
        """
        classes = self.classify(queries)
        group = torch.cat(
            [classes.new_full((g.queries,), i, dtype=torch.long) for i, g in enumerate(self.groups)]
        )
        member = F.one_hot(group).to(classes).expand(len(classes), -1, -1)
        table = torch.cat([classes, member], dim=2)  # (B, N, K + G)
        weight, bias = weight_and_bias(self.assignment.voxels)
        sums = predicting.assigned_sums(
            features, self.assignment.masks(queries), weight.flatten(1), bias, table
        )
        logits, group_prob = torch.split(sums, [classes.shape[2], len(self.groups)], dim=1)
        return Output(logits=logits, group_prob=group_prob, features=features)


def dk_uxnet(shape: NetworkShape, options: dict[str, Any]) -> DKUXNet:
    """DK-UXNet's branch at the paper's widths."""
    return DKUXNet(shape, parse_options(DKUXNetOptions, options, "network.dk-uxnet"))


def dk_uxnet_small(shape: NetworkShape, options: dict[str, Any]) -> DKUXNet:
    """Half of the paper's widths: for a GPU of 8 GB."""
    sizes = {"widths": (24, 48, 96, 192), "query_channels": 64}
    return DKUXNet(shape, parse_options(DKUXNetOptions, sizes | options, "network.dk-uxnet-small"))


def dk_uxnet_tiny(shape: NetworkShape, options: dict[str, Any]) -> DKUXNet:
    """A sixth of the paper's widths: trains on a laptop's CPU."""
    sizes = {"widths": (8, 16, 32, 64), "query_channels": 32}
    return DKUXNet(shape, parse_options(DKUXNetOptions, sizes | options, "network.dk-uxnet-tiny"))
