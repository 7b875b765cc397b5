"""The image of a case, read from its files and verified, for `prepare` and for predictions."""

import numpy as np

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Case, Volume
from dkuxnet.data.affines import check_same_grid, check_straight
from dkuxnet.data.formats import read
from dkuxnet.data.values import check_values


def read_image(case: Case, channels: int) -> Volume:
    """The image of a case as (C, X, Y, Z) float32, axes in the order of the file.

    Raises UserError for a wrong number of channels, geometry, NaN or size. Gives a DataWarning
    where it looks like something other than a scan.
    """
    volumes = [read(path, series_uid=case.series_uid) for path in case.images]
    first = volumes[0]
    for path, volume in zip(case.images[1:], volumes[1:], strict=True):
        check_same_grid(f"case '{case.name}'", case.images[0].name, first, path.name, volume)
    check_straight(f"case '{case.name}'", first)
    arrays = [v.array if v.array.ndim == 4 else v.array[None] for v in volumes]
    array = np.concatenate(arrays).astype(np.float32, copy=False)
    if len(array) != channels:
        remedy = "a 4D scan is a series of channels: give one file per case and time point"
        if len(array) < channels:
            remedy = (
                "put all channels into one file of four axes, or (but not on the served page) into "
                "files NAME_0000, NAME_0001, .. of one folder"
            )
        raise UserError(
            f"case '{case.name}': {len(array)} channels in "
            f"{' and '.join(path.name for path in case.images)}, expected {channels}; {remedy} "
            f"({case.images[0]})"
        )
    if min(first.shape) < 2:
        raise UserError(
            f"case '{case.name}': shape {first.shape} is not a 3D scan; at least 2 voxels along "
            "each axis are needed"
        )
    check_values(f"case '{case.name}'", str(case.images[0]), array)
    return Volume(array, first.affine, first.modality, first.nifti)
