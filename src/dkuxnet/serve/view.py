"""What the page draws: scan, classes and uncertainty as bytes, on a grid that a browser holds."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.types import Volume
from dkuxnet.data import formats

VIEWS = ("scan", "classes", "uncertainty")
LABEL = "label"  # a view of what was drawn before, of scans of the label folder
MAX_VIEW_VOXELS = 2**25  # NiiVue takes four bytes for each voxel of the scan and of each layer
MAX_DRAWN_VOXELS = 2**27  # of a scan that is drawn on, of which no voxel can be left out
WINDOW_PERCENTILES = (0.5, 99.5)


def write_views(
    scan: Volume,
    indices: NDArray[Any],
    uncertainty: NDArray[Any],
    folder: Path,
    whole: bool = False,
) -> tuple[int, int, int]:
    """Write FOLDER/view_NAME.nii.gz for each name of VIEWS; returns the step along X, Y, Z.

    Every step-th voxel is taken; every one of the `whole` scan. scan: (C, X, Y, Z), of which the
    first channel is drawn, between its percentiles. indices, uncertainty: (X, Y, Z).
    """
    step = (1, 1, 1) if whole else view_step(scan.shape, scan.spacing_mm)
    taken = tuple(slice(None, None, s) for s in step)
    affine = scan.affine @ np.diag([*step, 1.0])
    arrays = (_window(scan.array[0][taken]), indices[taken], np.rint(255 * uncertainty[taken]))
    for name, array in zip(VIEWS, arrays, strict=True):
        formats.write(
            Volume(np.ascontiguousarray(array, dtype=np.uint8), affine), view_path(folder, name)
        )
    return step


def focus(indices: NDArray[Any], step: tuple[int, int, int]) -> list[int]:
    """The voxel (x, y, z) of the drawn grid in the middle of all classes.

    The middle of the grid where no class was found.
    """
    places = [np.flatnonzero(indices.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    middle = [
        int(p[0] + p[-1]) // 2 if len(p) else n // 2
        for p, n in zip(places, indices.shape, strict=True)
    ]
    return [m // s for m, s in zip(middle, step, strict=True)]


def view_path(folder: Path, name: str) -> Path:
    """Where `write_views` writes the view `name`."""
    return folder / f"view_{name}.nii.gz"


def view_step(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], most: int = MAX_VIEW_VOXELS
) -> tuple[int, int, int]:
    """The step along X, Y, Z with which at most `most` voxels are left.

    The axis with the shortest step in mm is thinned first.
    """
    step = [1, 1, 1]
    while math.prod(-(-n // s) for n, s in zip(shape, step, strict=True)) > most:
        lengths = [
            s * mm if n > s else math.inf for n, s, mm in zip(shape, step, spacing_mm, strict=True)
        ]
        step[int(np.argmin(lengths))] += 1
    x, y, z = step
    return x, y, z


def _window(values: NDArray[Any]) -> NDArray[Any]:
    low, high = np.percentile(values.ravel()[:: max(1, values.size // 2**21)], WINDOW_PERCENTILES)
    return np.asarray(np.clip((values - low) * (255 / max(high - low, 1e-12)), 0, 255))
