"""What follows from a fingerprint: target spacing, normalisation, patch and network. Labels have no say in it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

PATCH_VOXELS = {"dk-uxnet-tiny": 64 * 64 * 32, "dk-uxnet-small": 96**3, "dk-uxnet": 96**3}
BYTES_A_VOXEL = {"dk-uxnet-small": 9_000, "dk-uxnet": 18_000}  # of a training patch, both branches, forward and backward


def make_plan(fingerprint: dict[str, Any], channels: Sequence[str], spacing_mm: float | None) -> dict[str, Any]:
    """spacing_mm, normalisation, patch and network for a data set; the target spacing is the median, or as given."""
    spacing = [spacing_mm] * 3 if spacing_mm else [float(s) for s in fingerprint["spacing_mm_median"]]
    network = advise_network()
    size = [extent / s for extent, s in zip(fingerprint["extent_mm_median"], spacing, strict=True)]
    return {
        "spacing_mm": spacing,
        "normalisation": [plan_channel(name, i, fingerprint) for i, name in enumerate(channels)],
        "patch": plan_patch(size, PATCH_VOXELS[network]),
        "network": network,
    }


def plan_channel(name: str, index: int, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """CT has an absolute scale: clip and scale by the data set's figures. All else: z-score of each scan."""
    if "CT" not in name.upper().split():
        return {"kind": "z-score"}
    low, _, high = fingerprint["percentiles_median"][index]
    return {"kind": "ct", "low": low, "high": high, "mean": fingerprint["mean"][index], "std": fingerprint["std"][index]}


def normalise(array: np.ndarray, plan: Sequence[dict[str, Any]]) -> np.ndarray:
    """(C, X, Y, Z) float32 -> same, each channel as its plan says. A constant channel becomes 0."""
    result = np.empty_like(array, dtype=np.float32)
    for channel, how, out in zip(array, plan, result, strict=True):
        if how["kind"] == "ct":
            out[...] = (np.clip(channel, how["low"], how["high"]) - how["mean"]) / max(how["std"], 1e-6)
        else:
            mean, std = channel.mean(dtype=np.float64), channel.std(dtype=np.float64)
            constant = std <= 1e-5 * abs(mean)  # what is left is the rounding of the resampling
            out[...] = 0 if constant else (channel - mean) / std
    return result


def plan_patch(size: Sequence[float], voxels: int) -> list[int]:
    """Multiples of 16 near the case's median size, the longest edge shortened until the patch has at most `voxels`."""
    longest = voxels / 16**2  # no edge of a patch of so many voxels is longer
    patch = [max(16, 16 * math.ceil(min(n, longest) / 16 - 0.1)) for n in size]
    while math.prod(patch) > voxels and max(patch) > 16:
        patch[patch.index(max(patch))] -= 16
    return patch


def advise_network() -> str:
    """The largest DK-UXNet that the memory of the device holds with one patch a stream; without a GPU the tiny one."""
    import torch

    if not torch.cuda.is_available():
        return "dk-uxnet-tiny"
    memory = torch.cuda.get_device_properties(0).total_memory
    for name in ("dk-uxnet", "dk-uxnet-small"):
        if PATCH_VOXELS[name] * BYTES_A_VOXEL[name] < 0.8 * memory:
            return name
    return "dk-uxnet-tiny"
