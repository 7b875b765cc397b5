"""DK-UXNet's branch as one would first write it: MONAI's blocks, torch's layers, one operation
after another, float32.

The peer of measurements/training_step.py. It computes what `networks/dkuxnet.py` computes, with the
same weights (tests/test_plain_network.py), by none of what makes that one fast: channels-first
memory, LayerNorm from its mean and variance as published code has it, torch's own depthwise
backward, voxels projected to the queries' channels at full resolution.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from dkuxnet.core.types import Group, Output

NORM = ("instance", {"affine": True})
# parts of the names of our weights -> of MONAI's
RENAMED = {
    "conv1.": "conv1.conv.",
    "conv2.": "conv2.conv.",
    "skip.0.": "conv3.conv.",
    "skip.1.": "norm3.",
    "up.": "transp_conv.conv.",
    "mix.": "conv_block.",
}


class LayerNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        x = centred / (centred.pow(2).mean(dim=1, keepdim=True) + 1e-6).sqrt()
        return self.weight.view(-1, 1, 1, 1) * x + self.bias.view(-1, 1, 1, 1)


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm(channels)
        self.expand = nn.Conv3d(channels, 4 * channels, 1, groups=channels)
        self.project = nn.Conv3d(4 * channels, channels, 1, groups=channels)
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.project(F.gelu(self.expand(self.norm(self.depthwise(x)))))


class Encoder(nn.Module):
    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__()
        stem = nn.Sequential(
            nn.Conv3d(in_channels, widths[0], 7, stride=2, padding=3), LayerNorm(widths[0])
        )
        self.reduce = nn.ModuleList([stem])
        for before, after in pairwise(widths):
            self.reduce.append(
                nn.Sequential(LayerNorm(before), nn.Conv3d(before, after, 2, stride=2))
            )
        self.stages = nn.ModuleList(nn.Sequential(Block(width), Block(width)) for width in widths)
        self.norms = nn.ModuleList(map(LayerNorm, widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for reduce, stage, norm in zip(self.reduce, self.stages, self.norms, strict=True):
            x = stage(reduce(x))
            features.append(norm(x))
        return features


class Decoder(nn.Module):
    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__()
        channels = (2 * widths[-1], *reversed(widths))
        pairs = zip((in_channels, *widths[:-1]), widths, strict=True)
        self.skips = nn.ModuleList(
            UnetrBasicBlock(3, a, b, 3, 1, NORM, res_block=True) for a, b in pairs
        )
        self.bottleneck = UnetrBasicBlock(3, widths[-1], channels[0], 3, 1, NORM, res_block=True)
        self.ups = nn.ModuleList(
            UnetrUpBlock(3, a, b, 3, 2, NORM, res_block=True) for a, b in pairwise(channels)
        )

    def forward(self, image: Tensor, features: list[Tensor]) -> list[Tensor]:
        skips = [skip(x) for skip, x in zip(self.skips, (image, *features[:-1]), strict=True)]
        maps = [self.bottleneck(features[-1])]
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            maps.append(up(maps[-1], skip))
        return maps


class MaskLogits(nn.Module):
    def __init__(self, voxel_channels: int, channels: int):
        super().__init__()
        self.voxels = nn.Conv3d(voxel_channels, channels, 1)
        self.queries = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))
        self.log_gain = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        voxels = self.voxels(features)
        voxels = voxels / (voxels.pow(2).sum(dim=1, keepdim=True) + 1e-6).sqrt()
        masks = F.normalize(self.queries(queries), dim=2)
        return self.log_gain.exp() * torch.einsum("bcxyz,bnc->bnxyz", voxels, masks)


class Layer(nn.Module):
    def __init__(self, voxel_channels: int, channels: int):
        super().__init__()
        self.mask_logits = MaskLogits(voxel_channels, channels)
        self.value = nn.Conv3d(voxel_channels, channels, 1)
        self.update_norm, self.attention_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 8, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.mask_logits(features, queries)
        assignment = F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
        queries = queries + self.update_norm(
            torch.einsum("bxyzn,bcxyz->bnc", assignment, self.value(features))
        )
        normed = self.attention_norm(queries)
        queries = queries + self.attention(normed, normed, normed)[0]
        return queries + self.feed_forward(queries), logits


class KMax(nn.Module):
    def __init__(self, voxel_channels: Sequence[int], queries: int, channels: int):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(queries, channels))
        self.scales = nn.ModuleList(
            nn.ModuleList([Layer(c, channels), Layer(c, channels)]) for c in voxel_channels
        )


class PlainDKUXNet(nn.Module):
    """(B, C, X, Y, Z) -> Output as of `dkuxnet.models.networks.dkuxnet.DKUXNet` at its default
    depths, layers and heads.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        groups: Sequence[Group],
        widths: Sequence[int],
        channels: int,
    ):
        super().__init__()
        self.groups = groups
        self.encoder = Encoder(in_channels, widths)
        self.decoder = Decoder(in_channels, widths)
        self.kmax = KMax(
            (2 * widths[3], widths[3], widths[2]), sum(group.queries for group in groups), channels
        )
        self.assignment = MaskLogits(widths[0], channels)
        self.classify = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, classes),
        )

    def forward(self, image: Tensor) -> Output:
        maps = self.decoder(image, self.encoder(image))
        queries, layers = self.kmax.queries.expand(len(image), -1, -1), []
        for scale, features in zip(self.kmax.scales, maps[:3], strict=True):
            for layer in scale:
                queries, logits = layer(features, queries)
                layers.append(self.grouped(logits.softmax(dim=1)))
        assignment = self.assignment(maps[-1], queries).softmax(dim=1)
        logits = torch.einsum("bnk,bnxyz->bkxyz", self.classify(queries), assignment)
        return Output(
            logits=logits, group_prob=self.grouped(assignment), layer_group_prob=tuple(layers)
        )

    def grouped(self, assignment: Tensor) -> Tensor:
        parts = assignment.split([group.queries for group in self.groups], dim=1)
        return torch.cat([part.sum(dim=1, keepdim=True) for part in parts], dim=1)

    def take_weights(self, ours: nn.Module) -> None:
        """The weights of a `DKUXNet` of the same sizes."""
        self.load_state_dict({renamed(name): value for name, value in ours.state_dict().items()})


def renamed(name: str) -> str:
    if name.startswith("decoder."):
        for ours, theirs in RENAMED.items():
            name = name.replace(f".{ours}", f".{theirs}")
        name = re.sub(r"(decoder\.(?:skips\.\d+|bottleneck))\.", r"\1.layer.", name)
    return name
