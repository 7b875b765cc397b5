"""What the page draws: the scan, the classes and the uncertainty as bytes, on one grid that a
browser can hold.
"""

import math
from pathlib import Path

import numpy as np

from dkuxnet.core.types import Volume
from dkuxnet.data import formats

VIEWS = ("scan", "classes", "uncertainty")
MAX_VIEW_VOXELS = 2**25  # NiiVue holds a scan and each layer over it as four bytes a voxel
WINDOW_PERCENTILES = (0.5, 99.5)


def write_views(
    scan: Volume, indices: np.ndarray, uncertainty: np.ndarray, folder: Path
) -> tuple[int, int, int]:
    """Write FOLDER/view_NAME.nii.gz for every name of VIEWS; returns every how many voxels along
    X, Y, Z were taken.

    scan: (C, X, Y, Z), of which the first channel is drawn, between its percentiles. indices,
    uncertainty: (X, Y, Z).
    """
    step = view_step(scan.shape, scan.spacing_mm)
    taken = tuple(slice(None, None, s) for s in step)
    affine = scan.affine @ np.diag([*step, 1.0])
    arrays = (_window(scan.array[0][taken]), indices[taken], np.rint(255 * uncertainty[taken]))
    for name, array in zip(VIEWS, arrays, strict=True):
        formats.write(
            Volume(np.ascontiguousarray(array, dtype=np.uint8), affine), view_path(folder, name)
        )
    return step


def focus(indices: np.ndarray, step: tuple[int, int, int]) -> list[int]:
    """The voxel (x, y, z) of the drawn grid in the middle of all classes; the grid's own middle
    where there are none.
    """
    places = [np.flatnonzero(indices.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    middle = [
        int(p[0] + p[-1]) // 2 if len(p) else n // 2
        for p, n in zip(places, indices.shape, strict=True)
    ]
    return [m // s for m, s in zip(middle, step, strict=True)]


def view_path(folder: Path, name: str) -> Path:
    return folder / f"view_{name}.nii.gz"


def view_step(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], most: int = MAX_VIEW_VOXELS
) -> tuple[int, int, int]:
    """The axis with the shortest steps is thinned first, until no more than `most` voxels are
    left.
    """
    step = [1, 1, 1]
    while math.prod(-(-n // s) for n, s in zip(shape, step, strict=True)) > most:
        lengths = [
            s * mm if n > s else math.inf for n, s, mm in zip(shape, step, spacing_mm, strict=True)
        ]
        step[int(np.argmin(lengths))] += 1
    return tuple(step)


def _window(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values.ravel()[:: max(1, values.size // 2**21)], WINDOW_PERCENTILES)
    return np.clip((values - low) * (255 / max(high - low, 1e-12)), 0, 255)
