"""A scan, or a region of it, as the network sees it: RAS order, the plan's spacing, normalised."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dkuxnet.core.schemas import Hounsfield, NetworkGrid, ZScore
from dkuxnet.core.types import Volume
from dkuxnet.data.geometry import (
    Region,
    resample,
    resample_region,
    resampled_affine,
    resampled_shape,
    to_ras,
)

if TYPE_CHECKING:
    import torch

SLAB_VOXELS = 2**22  # of a slab, while a region's scan is measured
Figures = tuple[float, float]  # mean and standard deviation


def network_shape_of(image: Volume, plan: NetworkGrid) -> tuple[int, int, int]:
    """Voxels (X, Y, Z) in RAS order that a scan has at the plan's spacing."""
    ras = _ras_grid(image)
    return resampled_shape(ras.shape, ras.spacing_mm, plan.spacing_mm)


def extent_mm_of(image: Volume) -> tuple[float, ...]:
    """The edges (X, Y, Z) of a scan's box in mm, in RAS order."""
    ras = _ras_grid(image)
    return tuple(n * s for n, s in zip(ras.shape, ras.spacing_mm, strict=True))


def to_network_grid(
    image: Volume, plan: NetworkGrid, device: "torch.device | None" = None
) -> Volume:
    """The whole scan: (C, X, Y, Z) float32. device: see `resample`."""
    ras = to_ras(image)
    shape = network_shape_of(image, plan)
    array = normalise(resample(ras.array, shape, device), plan.normalisation)
    return Volume(array, resampled_affine(ras.affine, ras.shape, shape))


def region_on_network_grid(image: Volume, plan: NetworkGrid, region: Region) -> np.ndarray:
    """(C, *region.shape) float32: a part of what `to_network_grid` gives, and only that in memory.

    Normalised by the figures of the whole scan, as in training. A z-score needs the whole scan
    resampled for them, in slabs; a CT's figures stand in the plan, and nothing outside the region
    is resampled.
    """
    parts: list[np.ndarray] = []
    figures: list[Figures | None] = []
    for channel, how in zip(to_ras(image).array, plan.normalisation, strict=True):
        if isinstance(how, ZScore):
            part, measured = _measured_part(channel, region)
        else:
            part, measured = resample_region(channel, region), None
        parts.append(part)
        figures.append(measured)
    return normalise(np.stack(parts), plan.normalisation, figures)


def normalise(
    array: np.ndarray,
    plan: Sequence[ZScore | Hounsfield],
    figures: Sequence[Figures | None] | None = None,
) -> np.ndarray:
    """(C, X, Y, Z) float32 -> same, each channel as its plan says. A constant channel becomes 0.

    figures: those of the whole scan for the z-score of each channel, where `array` is a part of it.
    """
    result = np.empty_like(array, dtype=np.float32)
    known = figures or [None] * len(array)
    for channel, how, out, its in zip(array, plan, result, known, strict=True):
        if isinstance(how, Hounsfield):
            out[...] = (np.clip(channel, how.low, how.high) - how.mean) / max(how.std, 1e-6)
            continue
        mean, std = its or measure(channel)
        constant = std <= 1e-5 * abs(mean)  # what is left is the rounding of the resampling
        # in float64, slice by slice: a slice stays in the processor's cache
        for slice_, slice_out in zip(channel, out, strict=True):
            slice_out[...] = 0 if constant else (slice_ - mean) / std
    return result


def measure(channel: np.ndarray) -> tuple[np.float64, np.float64]:
    """Mean and standard deviation; the second needs the first, which is found once."""
    mean = channel.mean(dtype=np.float64, keepdims=True)
    return mean[0, 0, 0], channel.std(dtype=np.float64, mean=mean)


def _ras_grid(image: Volume) -> Volume:
    """The grid alone: no voxel is moved."""
    return to_ras(Volume(np.empty((0, *image.shape), np.float32), image.affine))


def _measured_part(channel: np.ndarray, region: Region) -> tuple[np.ndarray, Figures]:
    """The region of a channel (X, Y, Z), resampled; the figures of all of it, resampled."""
    part = np.empty(region.shape, np.float32)
    x, *yz = region.box
    whole = Region.whole(region.grid).box
    thickness = max(1, SLAB_VOXELS // (region.grid[1] * region.grid[2]))
    count, mean, squares = 0, 0.0, 0.0
    for first in range(0, region.grid[0], thickness):
        last = min(first + thickness, region.grid[0])
        slab = resample_region(channel, Region.of(region.grid, (slice(first, last), *whole[1:])))
        size, centre = slab.size, float(slab.mean(dtype=np.float64))
        between = (centre - mean) ** 2 * count * size / (count + size)
        squares += float(slab.var(dtype=np.float64)) * size + between
        mean += (centre - mean) * size / (count + size)
        count += size
        low, high = max(first, x.start), min(last, x.stop)
        if low < high:
            part[low - x.start : high - x.start] = slab[low - first : high - first, yz[0], yz[1]]
    return part, (mean, (squares / count) ** 0.5)
