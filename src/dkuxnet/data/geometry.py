# mypy: untyped-calls-exclude=nibabel
"""Grids: orientation to RAS, resampling between grids of one extent, padding; numpy in, numpy out.

Resampling is separable and antialiased: along each axis a triangle filter as wide as the coarser of
the two voxels, so that going to 2.5 mm averages the voxels that it merges and coming back
interpolates linearly. Both grids cover the same box (voxel edges, not centres, coincide), so that
shape and position come back exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.types import IGNORED, Volume

if TYPE_CHECKING:
    import torch

DENSE_WEIGHTS = 2**24  # 4096 voxels before and after


@dataclass(frozen=True)
class Region:
    """A box of voxels of a grid.

    grid: voxels (X, Y, Z) of the whole grid. start, stop: the first voxel, and the one after the
    last.
    """

    grid: tuple[int, int, int]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @classmethod
    def whole(cls, grid: Sequence[int]) -> "Region":
        """All of a grid."""
        x, y, z = grid
        return cls((x, y, z), (0, 0, 0), (x, y, z))

    @classmethod
    def of(cls, grid: Sequence[int], box: Sequence[slice]) -> "Region":
        """The part `box` of a grid."""
        (x, y, z), (a, b, c) = grid, box
        return cls((x, y, z), (a.start, b.start, c.start), (a.stop, b.stop, c.stop))

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The region as slices."""
        a, b, c = map(slice, self.start, self.stop)
        return a, b, c

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (X, Y, Z) of the region."""
        x, y, z = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return x, y, z

    @property
    def is_whole(self) -> bool:
        """Whether the region is all of the grid."""
        return self.shape == self.grid


def to_ras(volume: Volume) -> Volume:
    """Flip and permute axes, without interpolation, to be closest to right, anterior, superior."""
    return reordered(volume, np.eye(4))


def reordered(volume: Volume, affine: NDArray[Any]) -> Volume:
    """Flip and permute axes, without interpolation, to be closest to the axes of `affine`."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    orientation = io_orientation(np.linalg.inv(affine) @ volume.affine)
    channels = volume.array.ndim == 4
    array = np.moveaxis(volume.array, 0, -1) if channels else volume.array
    array = apply_orientation(array, orientation)
    array = np.moveaxis(array, -1, 0) if channels else array
    return Volume(array, volume.affine @ inv_ornt_aff(orientation, volume.shape))


def from_ras(array: NDArray[Any], affine: NDArray[Any]) -> NDArray[Any]:
    """Undo `to_ras`: (..., X', Y', Z') in RAS order -> (..., X, Y, Z) in the order of `affine`."""
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    lead = array.ndim - 3
    axes = [*range(lead), *(lead + int(axis) for axis in orientation[:, 0])]
    flipped = tuple(lead + axis for axis in range(3) if orientation[axis, 1] < 0)
    return np.flip(array.transpose(axes), flipped)


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Number of voxels of about `target_mm` in the same box; at least one along each axis."""
    x, y, z = (n * s / t for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))
    return max(1, round(x)), max(1, round(y)), max(1, round(z))


def resampled_affine(
    affine: NDArray[Any], shape: Sequence[int], new_shape: Sequence[int]
) -> NDArray[Any]:
    """The affine of a grid of `new_shape` voxels over the box of a grid of `shape` voxels."""
    scale = np.asarray(shape, float) / np.asarray(new_shape, float)
    to_old = np.eye(4)
    to_old[:3, :3] = np.diag(scale)
    to_old[:3, 3] = (scale - 1) / 2  # the centre of the first new voxel, in old voxels
    return np.asarray(affine) @ to_old


@lru_cache(maxsize=64)
def resampling_matrix(old: int, new: int) -> Any:
    """Weights (new, old), float32, of the triangle filter along one axis.

    Rows sum to 1. The values at the edges are extended. An array, or where that takes more than
    `DENSE_WEIGHTS`, a sparse one of scipy: several processors share the work of the first.
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    reach = max(scale, 1.0)
    low = np.floor(centres - reach).astype(int)
    taps = low[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    weights = np.clip(1 - np.abs(taps - centres[:, None]) / reach, 0, None)
    rows, columns = np.broadcast_arrays(np.arange(new)[:, None], np.clip(taps, 0, old - 1))
    if old * new > DENSE_WEIGHTS:
        from scipy.sparse import csr_array

        weights /= weights.sum(axis=1, keepdims=True)
        entries = weights.astype(np.float32).ravel(), (rows.ravel(), columns.ravel())
        return csr_array(entries, shape=(new, old))
    matrix = np.zeros((new, old))
    np.add.at(matrix, (rows, columns), weights)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), np.float32)


def resample(
    array: NDArray[Any], shape: Sequence[int], device: "torch.device | None" = None
) -> NDArray[Any]:
    """(..., X, Y, Z) -> (..., *shape) float32. device: a GPU that does it, up to rounding."""
    return _contract(
        array,
        [resampling_matrix(old, new) for old, new in zip(array.shape[-3:], shape, strict=True)],
        device,
    )


def resample_region(array: NDArray[Any], region: Region) -> NDArray[Any]:
    """The part `region` of resample(array, region.grid), from the voxels of `array` it needs."""
    matrices, boxes = [], []
    for old, new, rows in zip(array.shape[-3:], region.grid, region.box, strict=True):
        matrix = resampling_matrix(old, new)[rows]
        boxes.append(_support(matrix, axis=0))
        matrices.append(matrix[:, boxes[-1]])
    x, y, z = boxes
    return _contract(array[..., x, y, z], matrices)


def reach_of(region: Region, shape: Sequence[int]) -> Region:
    """The part of a grid of `shape` voxels over the same scan that `region` contributes to."""
    return Region.of(
        shape,
        [
            _support(resampling_matrix(old, new)[:, columns], axis=1)
            for old, new, columns in zip(region.grid, shape, region.box, strict=True)
        ],
    )


def resample_from(
    values: NDArray[Any], region: Region, target: Region, device: "torch.device | None" = None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Resample from a part of a grid to a part of another grid of the same scan.

    Values (..., *region.shape) -> (..., *target.shape). Voxels beyond the region count as 0. Also
    returns the weight (*target.shape) that these would have had; None where the region is the whole
    grid. device: see `resample`.
    """
    matrices = [
        resampling_matrix(old, new)[rows, columns]
        for old, new, rows, columns in zip(
            region.grid, target.grid, target.box, region.box, strict=True
        )
    ]
    result = _contract(values, matrices, device)
    if region.is_whole:
        return result, None
    x, y, z = (
        np.float32(1) if size == full else matrix.sum(axis=1).clip(0, 1).reshape(shape)
        for matrix, size, full, shape in zip(
            matrices, region.shape, region.grid, ((-1, 1, 1), (-1, 1), (-1,)), strict=True
        )
    )
    return result, np.broadcast_to(1 - x * y * z, target.shape)


def _support(matrix: Any, axis: int) -> slice:
    """From the first to the last column (axis 0) or row (axis 1) that is not all 0."""
    used = matrix.nonzero()[1 - axis]
    return slice(int(used.min()), int(used.max()) + 1)


def _contract(
    array: NDArray[Any], matrices: Sequence[Any], device: "torch.device | None" = None
) -> NDArray[Any]:
    """Apply a matrix (new, old) along each of the last three axes, in float32."""
    array = np.asarray(array, dtype=np.float32)
    dense = all(isinstance(matrix, np.ndarray) for matrix in matrices)
    if device and device.type != "cpu" and dense and not all(map(_is_identity, matrices)):
        there = _contract_on(array, matrices, device)
        if there is not None:
            return there
    for axis, matrix in zip((-3, -2, -1), matrices, strict=True):
        if not _is_identity(matrix):
            moved = np.moveaxis(array, axis, 0)
            product = matrix @ moved.reshape(len(moved), -1)
            array = np.moveaxis(product.reshape(-1, *moved.shape[1:]), 0, axis)
    return np.ascontiguousarray(array)


def _contract_on(
    array: NDArray[Any], matrices: Sequence[NDArray[Any]], device: "torch.device"
) -> NDArray[Any] | None:
    """The same on a device; None where its memory does not suffice."""
    import torch

    from dkuxnet.machine.devices import is_out_of_memory

    try:
        there = torch.from_numpy(np.ascontiguousarray(array)).to(device)
        for axis, matrix in zip((-3, -2, -1), matrices, strict=True):
            weights = torch.from_numpy(np.ascontiguousarray(matrix)).to(device)
            there = torch.tensordot(weights, there, dims=([1], [axis])).movedim(0, axis)
        return np.ascontiguousarray(there.cpu().numpy())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def _is_identity(matrix: Any) -> bool:
    rows, columns = matrix.shape
    ones = rows == columns and (matrix.diagonal() == 1).all()
    return bool(ones and matrix.nonzero()[0].size == rows)


def resample_label(label: NDArray[Any], shape: Sequence[int], classes: int) -> NDArray[Any]:
    """Class indices (X, Y, Z) -> `shape` uint8: the class with the largest share of each voxel.

    What is IGNORED has no share. A voxel is IGNORED where all voxels of `label` are whose centres
    are in it, or the one that its own centre is in.
    """
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
    if classes > IGNORED or (known := label != IGNORED).all():
        return chosen
    chosen[~_any_within(known, shape)] = IGNORED
    return chosen


def _any_within(mask: NDArray[np.bool_], shape: Sequence[int]) -> NDArray[np.bool_]:
    for axis, (old, new) in enumerate(zip(mask.shape, shape, strict=True)):
        if new >= old:
            mask = mask.take(((np.arange(new) + 0.5) * old / new).astype(int), axis)
        else:
            first = np.ceil(np.arange(new) * old / new - 0.5).astype(int)
            mask = np.logical_or.reduceat(mask, first, axis)
    return mask


def pad_to(
    array: NDArray[Any], shape: Sequence[int], value: float
) -> tuple[NDArray[Any], tuple[slice, ...]]:
    """Pad the last three axes with `value` to at least `shape`, evenly on both sides.

    Also returns the slices that undo it.
    """
    pads, back = [], []
    for have, want in zip(array.shape[-3:], shape, strict=True):
        before = max(want - have, 0) // 2
        pads.append((before, max(want - have, 0) - before))
        back.append(slice(before, before + have))
    if not any(sum(pad) for pad in pads):
        return array, tuple(back)
    return np.pad(array, [(0, 0)] * (array.ndim - 3) + pads, constant_values=value), tuple(back)
