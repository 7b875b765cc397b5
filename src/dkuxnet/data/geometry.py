"""Grids: orientation to RAS, resampling between grids of the same extent, padding. numpy in, numpy
out.

Resampling is separable and antialiased: along each axis a triangle filter as wide as the coarser of
the two voxels, so that going to 2.5 mm averages the voxels that it merges and coming back
interpolates linearly. Both grids cover the same box (voxel edges, not centres, coincide), which
makes the way back exact in shape and place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dkuxnet.core.types import Volume


@dataclass(frozen=True)
class Region:
    """A box of voxels of a grid. grid: (X, Y, Z) voxels of all of it. start, stop: first voxel,
    and the one after the last.
    """

    grid: tuple[int, int, int]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @classmethod
    def whole(cls, grid: Sequence[int]) -> "Region":
        return cls(tuple(grid), (0, 0, 0), tuple(grid))

    @classmethod
    def of(cls, grid: Sequence[int], box: Sequence[slice]) -> "Region":
        return cls(tuple(grid), tuple(part.start for part in box), tuple(part.stop for part in box))

    @property
    def box(self) -> tuple[slice, slice, slice]:
        return tuple(map(slice, self.start, self.stop))

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def is_whole(self) -> bool:
        return self.shape == self.grid


def to_ras(volume: Volume) -> Volume:
    """Flip and permute the array's axes so that they run closest to right, anterior, superior. No
    interpolation.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    orientation = io_orientation(volume.affine)
    moved = apply_orientation(
        np.moveaxis(volume.array, 0, -1) if volume.array.ndim == 4 else volume.array, orientation
    )
    array = np.moveaxis(moved, -1, 0) if volume.array.ndim == 4 else moved
    return Volume(array, volume.affine @ inv_ornt_aff(orientation, volume.shape))


def from_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Undo `to_ras`: array (..., X', Y', Z') in RAS order -> (..., X, Y, Z) in the order of the
    scan with `affine`.
    """
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    lead = array.ndim - 3
    axes = [*range(lead), *(lead + int(axis) for axis in orientation[:, 0])]
    array = array.transpose(axes)
    flips = tuple(slice(None, None, -1 if flip < 0 else 1) for flip in orientation[:, 1])
    return array[(..., *flips)]


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> tuple[int, ...]:
    """Voxels of the grid over the same box with voxels of about `target_mm`; at least one along
    each axis.
    """
    return tuple(
        max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True)
    )


def resampled_affine(
    affine: np.ndarray, shape: Sequence[int], new_shape: Sequence[int]
) -> np.ndarray:
    """The affine of a grid of `new_shape` voxels over the box of a grid of `shape` voxels."""
    scale = np.asarray(shape, float) / np.asarray(new_shape, float)
    to_old = np.eye(4)
    to_old[:3, :3] = np.diag(scale)
    to_old[:3, 3] = (scale - 1) / 2  # the centre of the first new voxel, in old voxels
    return np.asarray(affine) @ to_old


@lru_cache(maxsize=64)
def resampling_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) float32 weights of the triangle filter along one axis; rows sum to 1, edges are
    extended.
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    reach = max(scale, 1.0)
    low = np.floor(centres - reach).astype(int)
    taps = low[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    weights = np.clip(1 - np.abs(taps - centres[:, None]) / reach, 0, None)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1)), weights)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def resample(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(..., X, Y, Z) -> (..., *shape) float32."""
    return _contract(
        array,
        [resampling_matrix(old, new) for old, new in zip(array.shape[-3:], shape, strict=True)],
    )


def resample_region(array: np.ndarray, region: Region) -> np.ndarray:
    """The part `region` of resample(array, region.grid), from the voxels of `array` (..., X, Y, Z)
    that it needs.
    """
    matrices, boxes = [], []
    for old, new, rows in zip(array.shape[-3:], region.grid, region.box, strict=True):
        matrix = resampling_matrix(old, new)[rows]
        boxes.append(_support(matrix, axis=0))
        matrices.append(matrix[:, boxes[-1]])
    return _contract(array[(..., *boxes)], matrices)


def reach_of(region: Region, shape: Sequence[int]) -> Region:
    """The box of a grid of `shape` voxels, over the same scan, whose values the voxels of `region`
    have a share in.
    """
    return Region.of(
        shape,
        [
            _support(resampling_matrix(old, new)[:, columns], axis=1)
            for old, new, columns in zip(region.grid, shape, region.box, strict=True)
        ],
    )


def resample_from(
    values: np.ndarray, region: Region, target: Region
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (..., *region.shape) on a part of a grid -> (..., *target.shape), a part of another
    grid of the same scan.

    Where the target reaches beyond the region, the voxels there count as 0; also the weight
    (*target.shape) that they would have had, None where the region is the whole grid.
    """
    matrices = [
        resampling_matrix(old, new)[rows, columns]
        for old, new, rows, columns in zip(
            region.grid, target.grid, target.box, region.box, strict=True
        )
    ]
    result = _contract(values, matrices)
    if region.is_whole:
        return result, None
    x, y, z = (
        np.float32(1) if size == full else matrix.sum(axis=1).clip(0, 1).reshape(shape)
        for matrix, size, full, shape in zip(
            matrices, region.shape, region.grid, ((-1, 1, 1), (-1, 1), (-1,)), strict=True
        )
    )
    return result, np.broadcast_to(1 - x * y * z, target.shape)


def _support(matrix: np.ndarray, axis: int) -> slice:
    """From the first to the last column (axis 0) or row (axis 1) that is not all 0."""
    used = np.flatnonzero(matrix.any(axis=axis))
    return slice(int(used[0]), int(used[-1]) + 1)


def _contract(array: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Apply a matrix (new, old) along each of the last three axes; float32."""
    array = np.asarray(array, dtype=np.float32)
    for axis, matrix in zip((-3, -2, -1), matrices, strict=True):
        if not _is_identity(matrix):
            array = np.moveaxis(np.tensordot(matrix, array, axes=(1, axis % array.ndim)), 0, axis)
    return np.ascontiguousarray(array)


def _is_identity(matrix: np.ndarray) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix)))


def resample_label(label: np.ndarray, shape: Sequence[int], classes: int) -> np.ndarray:
    """(X, Y, Z) class indices -> `shape` uint8: the class with the largest share of each voxel."""
    if tuple(label.shape) == tuple(shape):
        return label.astype(np.uint8)
    best, chosen = None, np.zeros(shape, np.uint8)
    for k in range(classes):
        share = resample(label == k, shape)
        if best is None:
            best = share
        else:
            larger = share > best
            chosen[larger] = k
            np.maximum(best, share, out=best)
    return chosen


def pad_to(
    array: np.ndarray, shape: Sequence[int], value: float
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Pad the last three axes with `value` to at least `shape`, evenly on both sides; also the
    slices that cut it back.
    """
    pads, back = [], []
    for have, want in zip(array.shape[-3:], shape, strict=True):
        before = max(want - have, 0) // 2
        pads.append((before, max(want - have, 0) - before))
        back.append(slice(before, before + have))
    if not any(sum(pad) for pad in pads):
        return array, tuple(back)
    return np.pad(array, [(0, 0)] * (array.ndim - 3) + pads, constant_values=value), tuple(back)
