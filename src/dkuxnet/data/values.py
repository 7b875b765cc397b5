"""Whether voxels are numbers, look like those of a scan, and are of the expected modality."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.errors import DataWarning, UserError

SAMPLE = 2**16  # number of voxels in which different values are counted
FEW = 8  # different values: a label map has no more, a scan always has

# Word in the name of a channel -> DICOM's modality
MODALITIES = {"CT": "CT", "CTA": "CT", "NCCT": "CT", "CECT": "CT"}
MODALITIES |= {"MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT", "US": "US"}


def modalities_in(name: str) -> set[str]:
    """DICOM's names of the modalities that are words of a channel's name: CT_venous is CT."""
    words = re.split(r"[^A-Z0-9]+", name.upper())
    return {MODALITIES[word] for word in words if word in MODALITIES}


def every_nth(array: NDArray[Any], step: int) -> NDArray[Any]:
    """Every n-th voxel in the order of the axes, n being `step`; all of them where it is 0.

    `ravel` would first copy all of an array that is in another order in memory, as a file's is.
    """
    return np.asarray(array.flat[:: max(1, step)])


def check_values(what: str, where: str, array: NDArray[Any]) -> None:
    """Raise UserError where a voxel is NaN or infinite; warn where values are too few for a scan.

    array: (C, X, Y, Z). what, where: the case and the file; messages begin with `what`.
    """
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise UserError(f"{what}: {bad} voxels are NaN or infinite in {where}; repair the scan")
    for channel in array:
        values = np.unique(every_nth(channel, channel.size // SAMPLE))
        if len(values) <= FEW and channel.size > FEW:
            found = f"{len(values)} different values" if len(values) > 1 else "one value"
            warnings.warn(
                f"{what}: {where} has {found} only, as a label map or an empty image has; check "
                "that it is the scan",
                DataWarning,
                stacklevel=3,
            )


def check_modality(what: str, modality: str, channels: Sequence[str]) -> None:
    """Warn where the names of the channels name modalities, but not DICOM's `modality`.

    what: the message begins with it.
    """
    expected = {modality for name in channels for modality in modalities_in(name)}
    if expected and modality in MODALITIES.values() and modality not in expected:
        warnings.warn(
            f"{what}: DICOM calls it {modality}, where {' or '.join(sorted(expected))} is "
            "expected; check that it is the scan",
            DataWarning,
            stacklevel=2,
        )
