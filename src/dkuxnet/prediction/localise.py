"""Where in a large scan to look: a coarse segmentation -> the region worth the fine grid."""

from collections.abc import Sequence

import numpy as np

from dkuxnet.data.geometry import Region

SMALL_SHARE = 0.1  # of a class's largest piece: smaller pieces of the class are taken for specks


def foreground_box(label: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The box around all that counts in class indices (X, Y, Z); None where all is background.

    Of each class the largest face-connected piece counts, and every piece of at least SMALL_SHARE
    of its voxels, so that both kidneys stay and specks do not.
    """
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as connected

    boxes = []
    for k, around in enumerate(find_objects(label), 1):
        if around is None:
            continue
        pieces, _ = connected(label[around] == k)
        sizes = np.bincount(pieces.ravel())[1:]
        for box, size in zip(find_objects(pieces), sizes, strict=True):
            if size >= SMALL_SHARE * sizes.max():
                both = zip(around, box, strict=True)
                boxes.append([(o.start + i.start, o.start + i.stop) for o, i in both])
    if not boxes:
        return None
    ends = np.array(boxes)  # (pieces, 3, 2)
    x, y, z = map(slice, ends[:, :, 0].min(axis=0).tolist(), ends[:, :, 1].max(axis=0).tolist())
    return x, y, z


def region_around(
    box: Sequence[slice],
    coarse: Sequence[int],
    grid: Sequence[int],
    extent_mm: Sequence[float],
    margin_mm: float,
    smallest: Sequence[int],
) -> Region:
    """The voxels of `grid` that cover `box`, a box of the grid `coarse`, with a margin around it.

    Both grids (X, Y, Z) cover the same scan of `extent_mm`. The region has at least `smallest`
    voxels along each axis, or all that there are, and ends where the scan ends.
    """
    ends = [
        _along(*each, margin_mm)
        for each in zip(box, coarse, grid, extent_mm, smallest, strict=True)
    ]
    return Region.of(grid, ends)


def _along(
    part: slice, coarse: int, size: int, extent_mm: float, smallest: int, margin_mm: float
) -> slice:
    voxels, margin = size / coarse, margin_mm * size / extent_mm
    start = max(0, int(np.floor(part.start * voxels - margin)))
    stop = min(size, int(np.ceil(part.stop * voxels + margin)))
    short = min(smallest, size) - (stop - start)
    if short > 0:  # grows on both sides, and where one is the scan's end, on the other
        start = min(max(0, start - short // 2), size - min(smallest, size))
        stop = start + min(smallest, size)
    return slice(start, stop)
