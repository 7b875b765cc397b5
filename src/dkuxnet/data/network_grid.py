"""A scan as the network sees it: in RAS order, at the plan's spacing, normalised; the whole of it
or a region.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dkuxnet.core.types import Volume
from dkuxnet.data.geometry import (
    Region,
    resample,
    resample_region,
    resampled_affine,
    resampled_shape,
    to_ras,
)

SLAB_VOXELS = 2**22  # of a slab, while a region's scan is measured


def network_shape_of(image: Volume, plan: dict[str, Any]) -> tuple[int, ...]:
    """Voxels (X, Y, Z) in RAS order that a scan has at the plan's spacing."""
    ras = _ras_grid(image)
    return resampled_shape(ras.shape, ras.spacing_mm, plan["spacing_mm"])


def extent_mm_of(image: Volume) -> tuple[float, ...]:
    """The edges (X, Y, Z) of a scan's box in mm, in RAS order."""
    ras = _ras_grid(image)
    return tuple(n * s for n, s in zip(ras.shape, ras.spacing_mm, strict=True))


def to_network_grid(image: Volume, plan: dict[str, Any]) -> Volume:
    """The whole scan: (C, X, Y, Z) float32."""
    ras = to_ras(image)
    shape = network_shape_of(image, plan)
    array = normalise(resample(ras.array, shape), plan["normalisation"])
    return Volume(array, resampled_affine(ras.affine, ras.shape, shape))


def region_on_network_grid(image: Volume, plan: dict[str, Any], region: Region) -> np.ndarray:
    """(C, *region.shape) float32: what `to_network_grid` gives there, but only the region is held
    in memory.

    Normalised by the figures of the whole scan, as in training. A z-score needs the whole scan
    resampled for them, in slabs; a CT's figures stand in the plan, and nothing outside the region
    is resampled.
    """
    ras = to_ras(image).array
    measured = [how["kind"] == "z-score" for how in plan["normalisation"]]
    pairs = [
        _measured_part(channel, region) if wanted else (resample_region(channel, region), None)
        for channel, wanted in zip(ras, measured, strict=True)
    ]
    return normalise(
        np.stack([part for part, _ in pairs]),
        plan["normalisation"],
        [figures for _, figures in pairs],
    )


def _ras_grid(image: Volume) -> Volume:
    return to_ras(
        Volume(np.empty((0, *image.shape), np.float32), image.affine)
    )  # no voxel is moved


def _measured_part(channel: np.ndarray, region: Region) -> tuple[np.ndarray, tuple[float, float]]:
    """The region of a channel (X, Y, Z), resampled; mean and standard deviation of all of it,
    resampled.
    """
    part = np.empty(region.shape, np.float32)
    x = region.box[0]
    thickness = max(1, SLAB_VOXELS // (region.grid[1] * region.grid[2]))
    count, mean, squares = 0, 0.0, 0.0
    for first in range(0, region.grid[0], thickness):
        last = min(first + thickness, region.grid[0])
        slab = resample_region(
            channel,
            Region.of(region.grid, (slice(first, last), *Region.whole(region.grid).box[1:])),
        )
        size, centre = slab.size, float(slab.mean(dtype=np.float64))
        squares += float(slab.var(dtype=np.float64)) * size + (
            centre - mean
        ) ** 2 * count * size / (count + size)
        mean += (centre - mean) * size / (count + size)
        count += size
        low, high = max(first, x.start), min(last, x.stop)
        if low < high:
            part[low - x.start : high - x.start] = slab[
                low - first : high - first, region.box[1], region.box[2]
            ]
    return part, (mean, (squares / count) ** 0.5)


def normalise(
    array: np.ndarray,
    plan: Sequence[dict[str, Any]],
    figures: Sequence[tuple[float, float] | None] | None = None,
) -> np.ndarray:
    """(C, X, Y, Z) float32 -> same, each channel as its plan says. A constant channel becomes 0.

    figures: mean and standard deviation for the z-score of each channel, where `array` is a part of
    the scan.
    """
    result = np.empty_like(array, dtype=np.float32)
    for channel, how, out, known in zip(
        array, plan, result, figures or [None] * len(array), strict=True
    ):
        if how["kind"] == "ct":
            out[...] = (np.clip(channel, how["low"], how["high"]) - how["mean"]) / max(
                how["std"], 1e-6
            )
        else:
            mean, std = known or measure(channel)
            constant = std <= 1e-5 * abs(mean)  # what is left is the rounding of the resampling
            for slice_, slice_out in zip(
                channel, out, strict=True
            ):  # in float64: a slice stays in the processor's cache
                slice_out[...] = 0 if constant else (slice_ - mean) / std
    return result


def measure(channel: np.ndarray) -> tuple[np.float64, np.float64]:
    """Mean and standard deviation; the second needs the first, which is found once."""
    mean = channel.mean(dtype=np.float64, keepdims=True)
    return mean[0, 0, 0], channel.std(dtype=np.float64, mean=mean)
