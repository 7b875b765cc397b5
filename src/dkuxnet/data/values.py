"""Whether a scan's voxels are numbers, whether they look like those of a scan, and of one of the
kind that is expected.
"""

import re
import warnings
from collections.abc import Sequence

import numpy as np

from dkuxnet.core.errors import DataWarning, UserError

SAMPLE = 2**16  # voxels that are looked at for how many values there are
FEW = 8  # different values: what a label map has, and no scanner

MODALITIES = {
    "CT": "CT",
    "MR": "MR",
    "MRI": "MR",
    "PT": "PT",
    "PET": "PT",
    "US": "US",
}  # word in a channel's name -> DICOM's


def every(array: np.ndarray, step: int) -> np.ndarray:
    """Every so manyth voxel, in the order of the axes; all where `step` is 0.

    Of an array that lies in memory in another order, as a file's does, `ravel` would copy it all.
    """
    return np.asarray(array.flat[:: max(1, step)])


def check_values(what: str, where: str, array: np.ndarray) -> None:
    """array: (C, X, Y, Z).

    Raises UserError where a voxel is NaN or infinite; a DataWarning, that begins with `what`, where
    a channel has so few values that the file is hardly the scan.
    """
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise UserError(f"{what}: {bad} voxels are NaN or infinite in {where}; repair the scan")
    for channel in array:
        values = np.unique(every(channel, channel.size // SAMPLE))
        if len(values) <= FEW and channel.size > FEW:
            found = f"{len(values)} different values" if len(values) > 1 else "one value"
            warnings.warn(
                f"{what}: {where} has {found} only, as a label map or an empty image has; check "
                "that it is the scan",
                DataWarning,
                stacklevel=3,
            )


def check_modality(what: str, modality: str, channels: Sequence[str]) -> None:
    """A DataWarning, that begins with `what`, where `modality`, DICOM's word, is none that the
    channels' names name.
    """
    words = {word for name in channels for word in re.split(r"[^A-Z0-9]+", name.upper())}
    expected = {MODALITIES[word] for word in words & set(MODALITIES)}
    if expected and modality in MODALITIES.values() and modality not in expected:
        warnings.warn(
            f"{what}: DICOM calls it {modality}, where {' or '.join(sorted(expected))} is "
            "expected; check that it is "
            "the scan",
            DataWarning,
            stacklevel=2,
        )
