"""What follows from a fingerprint: target spacing, normalisation, patch and network.

Labels have no say in it.
"""

import ctypes
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from dkuxnet.core.schemas import Fingerprint, Hounsfield, Plan, ZScore
from dkuxnet.core.types import LevelsFlat, Stride, Strides, divisor_of
from dkuxnet.data.values import modalities_in

# Voxels of a patch: the field's on the left atrium; less than the smallest shows too little.
LARGEST_PATCH, SMALLEST_PATCH = 112 * 112 * 80, 64**3
CPU_PATCH = 64 * 64 * 32
LEAST_SEEN = 0.5  # of the median scan, by a patch of the only or of the coarse stage
LEAST_EDGE = 4  # voxels at the coarsest scale
CT_RANGE = (-1000.0, 1000.0)  # Hounsfield units: air, dense bone
# Bytes of a training step per voxel of the patch: two branches, two patches a stream, bfloat16.
# From 16 kB a voxel, patch and branch, in float32 (8.5 GB for a batch of two 64 cubes at the
# paper's widths); an estimate, not measured on a GPU.
STEP_BYTES = {"dk-uxnet": 72_000, "dk-uxnet-small": 36_000}


def make_plan(
    fingerprint: Fingerprint, channels: Sequence[str], spacing_mm: tuple[float, float, float]
) -> Plan:
    """The plan for a data set at this target spacing (X, Y, Z)."""
    network, voxels = advise_network()
    size = size_in_voxels(fingerprint, spacing_mm)
    strides = plan_strides(size, spacing_mm)
    return Plan(
        spacing_mm=spacing_mm,
        normalisation=[plan_channel(name, i, fingerprint) for i, name in enumerate(channels)],
        patch=plan_patch(size, voxels, divisor_of(strides)),
        network=network,
        strides=strides,
        flat=plan_flat(spacing_mm, strides),
    )


def plan_coarse(
    fingerprint: Fingerprint, spacing_mm: tuple[float, float, float]
) -> tuple[float, float, float] | None:
    """The spacing of a coarse stage before one at `spacing_mm`; None where there is no need.

    A network that sees a small part of a scan cannot tell where in the body that is. So the voxels
    are doubled, the shortest edges first, until a patch is at least LEAST_SEEN of the median scan.
    (nnU-Net has such a cascade where a patch is less than a quarter: Isensee et al., Nature Methods
    2021.)
    """
    _, voxels = advise_network()
    coarse = spacing_mm
    while LEAST_SEEN * math.prod(size_in_voxels(fingerprint, coarse)) > voxels:
        x, y, z = (edge * 2 if edge < 2 * min(coarse) else edge for edge in coarse)
        coarse = x, y, z
    return None if coarse == spacing_mm else coarse


def size_in_voxels(fingerprint: Fingerprint, spacing_mm: Sequence[float]) -> list[float]:
    """The edges (X, Y, Z) of the median scan at this spacing."""
    return [extent / s for extent, s in zip(fingerprint.extent_mm_median, spacing_mm, strict=True)]


def plan_channel(name: str, index: int, fingerprint: Fingerprint) -> ZScore | Hounsfield:
    """How a channel is normalised.

    CT has an absolute scale: clip to what tissue can have, scale by the data set's figures. The
    clip is wide because the plan knows no label: a percentile of whole scans would cut off a small
    bright organ. All else: z-score of each scan.
    """
    if not is_ct(name):
        return ZScore(kind="z-score")
    low, _, high = fingerprint.percentiles_median[index]
    return Hounsfield(
        kind="ct",
        low=min(low, CT_RANGE[0]),
        high=max(high, CT_RANGE[1]),
        mean=fingerprint.mean[index],
        std=fingerprint.std[index],
    )


def is_ct(name: str) -> bool:
    """Whether a channel's name says CT and no other modality ("PET/CT" may be either)."""
    return modalities_in(name) == {"CT"}


def plan_strides(size: Sequence[float], spacing_mm: Sequence[float]) -> Strides:
    """The strides of the network's four reductions for scans of `size` voxels (X, Y, Z).

    An axis is halved unless its voxels are by then twice as long as the shortest, or so few that
    less than LEAST_EDGE would be left. (nnU-Net plans likewise: Isensee et al., Nature Methods
    2021.)
    """
    edges, spacing = list(size), list(spacing_mm)

    def reduce() -> Stride:
        shortest = min(spacing)
        x, y, z = (
            2 if s < 2 * shortest and n >= 2 * LEAST_EDGE else 1
            for n, s in zip(edges, spacing, strict=True)
        )
        edges[:] = [n / stride for n, stride in zip(edges, (x, y, z), strict=True)]
        spacing[:] = [s * stride for s, stride in zip(spacing, (x, y, z), strict=True)]
        return x, y, z

    return reduce(), reduce(), reduce(), reduce()


def plan_flat(spacing_mm: Sequence[float], strides: Strides) -> LevelsFlat:
    """The axes along which kernels do not look, at full resolution and after each reduction.

    Those of thick slices: what lies between two of them nobody knows, and breathing shifts them. So
    as long as they are twice as thick as the shortest edge is long each is seen by itself. (nnU-Net
    plans likewise.) What that brings is measured in docs/tried.md.
    """
    spacing, thick, levels = list(spacing_mm), [True] * 3, []
    for stride in ((1, 1, 1), *strides):
        spacing = [s * n for s, n in zip(spacing, stride, strict=True)]
        # one that comes to be long because the others are too few to be halved is no slice
        x, y, z = thick = [t and s >= 2 * min(spacing) for t, s in zip(thick, spacing, strict=True)]
        levels.append((x, y, z))
    full, half, quarter, eighth, sixteenth = levels
    return full, half, quarter, eighth, sixteenth


def plan_patch(size: Sequence[float], voxels: int, divisor: Stride) -> tuple[int, int, int]:
    """A patch of at most `voxels`, its edges multiples of `divisor` just under the median size.

    The longest edge is shortened until it fits.

    Under, not over: padding costs time and teaches nothing, and patches from many places are an
    augmentation.
    """
    longest = voxels / (min(divisor) * sorted(divisor)[1])  # no edge of so many voxels is longer
    patch = [
        max(d, d * math.floor(min(n, longest) / d + 0.1))
        for n, d in zip(size, divisor, strict=True)
    ]
    while math.prod(patch) > voxels and any(n > d for n, d in zip(patch, divisor, strict=True)):
        axis = max(range(3), key=lambda i: (patch[i] > divisor[i], patch[i]))
        patch[axis] -= divisor[axis]
    x, y, z = patch
    return x, y, z


def advise_network() -> tuple[str, int]:
    """The largest DK-UXNet that fits this GPU, and how many voxels its patches may have.

    Without a GPU, or where only patches too small to learn from would fit, the tiny network.
    """
    memory = 0.8 * gpu_bytes()
    for name, needed in STEP_BYTES.items():
        if memory / needed >= SMALLEST_PATCH:
            return name, min(int(memory / needed), LARGEST_PATCH)
    return "dk-uxnet-tiny", CPU_PATCH


def gpu_bytes() -> int:
    """Memory of the first GPU that torch can use; 0 where there is none.

    torch takes long to import: it is asked only where there can be a GPU.
    """
    if not has_gpu_driver():
        return 0
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def has_gpu_driver() -> bool:
    """Whether there is a driver without which torch sees no GPU.

    That is NVIDIA's library, which torch loads by the same name, or AMD's device. On systems other
    than Linux it counts as there.
    """
    if sys.platform != "linux" or os.path.exists("/dev/kfd"):
        return True
    with suppress(OSError):
        return bool(ctypes.CDLL("libcuda.so.1"))
    return False
