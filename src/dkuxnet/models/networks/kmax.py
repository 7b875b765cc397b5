"""The kMaX decoder: queries that cluster voxels, C <- C + argmax_N(Q K^T) V.

Source: Yu et al., "k-means Mask Transformer" (kMaX-DeepLab, arXiv 2207.04044), Equation 4 and
Figure 3. Letters: N queries of C channels, C' voxel channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dkuxnet.models.networks.blocks import Conv1x1x1, weight_and_bias


class MaskLogits(nn.Module):
    """R = norm(P C^T), the similarity of every voxel to every query.

    kMaX-DeepLab normalises with a batch norm. Here both sides are L2-normalised and one learnt gain
    sets the scale: the same at batch 1, on every device and in every window, so that the logits of
    different patches can be compared.
    """

    def __init__(self, voxel_channels: int, query_channels: int):
        super().__init__()
        self.voxels = Conv1x1x1(voxel_channels, query_channels)
        self.queries = nn.Sequential(
            nn.LayerNorm(query_channels), nn.Linear(query_channels, query_channels)
        )
        self.log_gain = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        """Voxel features (B, C', x, y, z), queries (B, N, C) -> mask logits (B, N, x, y, z)."""
        masks = self.masks(queries)
        # dividing the logits by the length of the voxel's embedding normalises that embedding,
        # on N channels instead of C
        if features.shape[1] >= masks.shape[2]:
            voxels = self.voxels(features)
            logits = torch.einsum("bcxyz,bnc->bnxyz", voxels, masks)
            square = voxels.square().sum(dim=1, keepdim=True)
        else:
            logits, square = self._without_projecting(features, masks)
        return logits * torch.rsqrt(square + 1e-6)

    def masks(self, queries: Tensor) -> Tensor:
        """Mask embeddings of the queries, (B, N, C) -> same; their length is the gain."""
        return F.normalize(self.queries(queries), dim=2) * self.log_gain.exp()

    def _without_projecting(self, features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Dot products (B, N, x, y, z) and squared lengths (B, 1, x, y, z) of the embedded voxels.

        For fewer voxel channels than query channels, as at full resolution: the projection P = W p
        + b is folded into the queries, c.P = (c W).p + c.b, and into |P|^2 = p.(W'W p + 2 W'b) +
        b.b, so that no map of C channels is ever made.
        """
        # in bfloat16 these sums would cancel
        with torch.autocast(features.device.type, enabled=False):
            wide = torch.promote_types(features.dtype, torch.float32)
            x, masks = features.flatten(2).to(wide), masks.to(wide)  # (B, C', V), (B, N, C)
            weight, bias = (part.to(wide) for part in weight_and_bias(self.voxels))
            weight = weight.flatten(1)  # (C, C')
            logits = torch.baddbmm((masks @ bias).unsqueeze(2), masks @ weight, x)  # (B, N, V)
            gram = (weight.T @ weight).expand(x.shape[0], -1, -1)
            square = x * torch.baddbmm((2 * (bias @ weight)).unsqueeze(1), gram, x)
            square = square.sum(dim=1, keepdim=True) + bias.square().sum()  # (B, 1, V)
        size = features.shape[2:]
        return torch.unflatten(logits, 2, size), torch.unflatten(square.clamp_min(0), 2, size)


class KMaxLayer(nn.Module):
    """A k-means step over the voxels, then self-attention and a feed-forward over the queries."""

    def __init__(self, voxel_channels: int, query_channels: int, heads: int):
        super().__init__()
        self.mask_logits = MaskLogits(voxel_channels, query_channels)
        self.value = Conv1x1x1(voxel_channels, query_channels)
        self.update_norm = nn.LayerNorm(query_channels)
        self.attention_norm = nn.LayerNorm(query_channels)
        self.attention = nn.MultiheadAttention(query_channels, heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(query_channels),
            nn.Linear(query_channels, 4 * query_channels),
            nn.GELU(),
            nn.Linear(4 * query_channels, query_channels),
        )

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """One refinement of the queries.

        (B, C', x, y, z), (B, N, C) -> new queries (B, N, C) and the mask logits (B, N, x, y, z)
        by which the voxels were assigned.
        """
        logits: Tensor = self.mask_logits(features, queries)
        # the argmax has no gradient: the mask embeddings learn from the query loss on `logits`
        with torch.no_grad():
            nearest = logits.max(dim=1).indices  # (B, x, y, z)
            assignment = F.one_hot(nearest, logits.shape[1]).to(features.dtype)  # (B, x, y, z, N)
        update = torch.einsum("bxyzn,bcxyz->bnc", assignment, self.value(features))
        queries = queries + self.update_norm(update)
        normed = self.attention_norm(queries)
        queries = queries + self.attention(normed, normed, normed, need_weights=False)[0]
        return queries + self.feed_forward(queries), logits


class KMaxDecoder(nn.Module):
    """Learnt queries, refined on voxel features of several scales, coarse to fine.

    voxel_channels: C' of each scale, with `layers_per_scale` kMaX layers each. queries: N.
    query_channels: C, divisible by `heads`.
    """

    def __init__(
        self,
        voxel_channels: Sequence[int],
        queries: int,
        query_channels: int,
        layers_per_scale: int,
        heads: int,
    ):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, query_channels))
        self.scales = nn.ModuleList(
            nn.ModuleList(
                KMaxLayer(channels, query_channels, heads) for _ in range(layers_per_scale)
            )
            for channels in voxel_channels
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One map (B, C', x, y, z) per scale -> queries (B, N, C) and every layer's mask logits."""
        queries: Tensor = self.queries.expand(maps[0].shape[0], -1, -1)
        logits = []
        for layers, features in zip(self.scales, maps, strict=True):
            for layer in layers.children():
                queries, layer_logits = layer(features, queries)
                logits.append(layer_logits)
        return queries, logits
