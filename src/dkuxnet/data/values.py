"""Whether a scan's voxels are numbers, and whether they look like those of a scan."""

import warnings

import numpy as np

from dkuxnet.errors import DataWarning, UserError

SAMPLE = 2**16  # voxels that are looked at for how many values there are
FEW = 8  # different values: what a label map has, and no scanner


def every(array: np.ndarray, step: int) -> np.ndarray:
    """Every so manyth voxel, in the order of the axes; all where `step` is 0. Of an array that lies in memory in another order,
    as a file's does, `ravel` would copy it all."""
    return np.asarray(array.flat[:: max(1, step)])


def check_values(what: str, where: str, array: np.ndarray) -> None:
    """array: (C, X, Y, Z). Raises UserError where a voxel is NaN or infinite; a DataWarning, that begins with `what`, where a
    channel has so few values that the file is hardly the scan."""
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise UserError(f"{what}: {bad} voxels are NaN or infinite in {where}; repair the scan")
    for channel in array:
        values = np.unique(every(channel, channel.size // SAMPLE))
        if len(values) <= FEW and channel.size > FEW:
            found = f"{len(values)} different values" if len(values) > 1 else "one value"
            warnings.warn(f"{what}: {where} has {found} only, as a label map or an empty image has; check that it is the scan",
                          DataWarning, stacklevel=3)
