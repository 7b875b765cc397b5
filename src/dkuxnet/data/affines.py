"""Whether affines can be trusted: are axes at right angles, and do files lie on one grid?

The same voxels in another order of the axes are put in order, which loses nothing.

Differences within rounding pass, slightly larger ones give a `DataWarning` that says how large, and
the rest are refused.
"""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.geometry import reordered

SHEAR_SILENT_DEG, SHEAR_SILENT_VOXELS, SHEAR_MOST_DEG = 0.1, 0.5, 5.0
NOISE_MM, NOISE_VOXELS = 1.0, 2.0  # of an origin, whichever is less
NOISE_DIRECTION = 1e-3  # of a component of a unit direction
OFF_VOXEL = 0.1  # of a voxel, which a part of a grid may lie beside the voxels of the whole
SLACK = 1 + 1e-4  # what lies on one of these bounds is rounded to float32 by NIfTI


def shear_of(affine: NDArray[Any], shape: Sequence[int]) -> tuple[float, float]:
    """How far the axes are from right angles: degrees, and mm at the worst corner of the scan.

    The degrees are those of the worst pair of axes. The mm are the distance to the same corner on
    the nearest straight grid with the same origin and spacing, whose axes are the orthogonal factor
    of the polar decomposition of the directions.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    cosines = (directions.T @ directions)[np.triu_indices(3, 1)]
    u, _, vt = np.linalg.svd(directions)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape)))).T
    apart = ((directions - u @ vt) * spacing) @ corners
    degrees = np.degrees(np.arcsin(np.abs(cosines).max().clip(0, 1)))
    return float(degrees), float(np.linalg.norm(apart, axis=0).max())


def check_straight(name: str, volume: Volume) -> None:
    """Warn where the axes are not at right angles; raise UserError above 5 degrees.

    A slightly sheared scan is used as it is, voxel by voxel. Its label map gets the same affine and
    so lies on it. name: the message begins with it.
    """
    degrees, mm = shear_of(volume.affine, volume.shape)
    if degrees > SHEAR_MOST_DEG * SLACK:
        raise UserError(
            f"{name}: its axes are {degrees:.1f} degrees off a right angle, {mm:.1f} mm at the far "
            f"corner; at most {SHEAR_MOST_DEG:g} degrees can be used: resample it to a grid with "
            "right angles (a tilted CT gantry makes such scans)"
        )
    if degrees > SHEAR_SILENT_DEG * SLACK and mm > SHEAR_SILENT_VOXELS * min(volume.spacing_mm):
        warnings.warn(
            f"{name}: its axes are {degrees:.2f} degrees off a right angle, {mm:.1f} mm at the far "
            "corner; used as it is, and its label map lies on it",
            DataWarning,
            stacklevel=2,
        )


def on_grid(name: str, what: str, volume: Volume, other_what: str, other: Volume) -> Volume:
    """`other` with its axes in the order of those of `volume`, whose grid it must then have.

    Arguments, warnings and errors as for `check_same_grid`.
    """
    turned = reordered(other, volume.affine)
    found = turned if turned.shape == volume.shape else other
    check_same_grid(name, what, volume, other_what, found)
    return found


def part_on_grid(name: str, what: str, volume: Volume, other_what: str, part: Volume) -> Volume:
    """`part`, a label map of a part of the grid of `volume`, on the whole grid with zeros around.

    Raises UserError where its voxels are not those of `volume`, or lie outside and are not 0; the
    rest as for `on_grid`.
    """
    turned = reordered(part, volume.affine)
    if turned.shape == volume.shape:
        return on_grid(name, what, volume, other_what, part)
    place = np.linalg.solve(volume.affine, turned.affine[:, 3])[:3].clip(-(2**40), 2**40)
    start = np.round(place).astype(int)
    if np.abs(place - start).max() > OFF_VOXEL:
        raise UserError(
            f"{name}: the voxels of {other_what} lie between those of {what}; they must lie on one "
            "grid"
        )
    array = np.zeros(volume.shape, turned.array.dtype)
    ends = list(zip(start, turned.shape, volume.shape, strict=True))
    target = tuple(slice(max(0, a), max(0, min(a + n, whole))) for a, n, whole in ends)
    source = tuple(
        slice(t.start - a, max(t.start, t.stop) - a) for t, a in zip(target, start, strict=True)
    )
    if all(t.stop > t.start for t in target):
        array[target] = turned.array[source]
    if lost := np.count_nonzero(turned.array) - np.count_nonzero(array):
        raise UserError(
            f"{name}: {lost} labelled voxels of {other_what} lie outside {what}; label the whole "
            "scan"
        )
    affine = turned.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ start
    laid = Volume(array, affine)
    check_same_grid(name, what, volume, other_what, laid)
    return laid


def check_same_grid(name: str, what: str, volume: Volume, other_what: str, other: Volume) -> None:
    """Warn where two affines differ by rounding; raise UserError where by more, or in shape.

    Rounding is up to 1 mm or two voxels in the origin and 1e-3 in a direction or spacing. name: the
    message begins with it. what, other_what: name the two volumes.
    """
    if volume.shape != other.shape:
        raise UserError(
            f"{name}: {what} has shape {volume.shape}, {other_what} has shape {other.shape}; "
            "they must lie on one grid"
        )
    difference, spacing = volume.affine - other.affine, np.array(volume.spacing_mm)
    # The origin and the ends of the axes: two corners alone would not notice swapped axes.
    x, y, z = volume.shape
    corners = np.array([[0, 0, 0, 1], [x, 0, 0, 1], [0, y, 0, 1], [0, 0, z, 1]], float).T
    apart = np.abs(difference @ corners).max()
    if apart <= 0.01 * spacing.min() + 1e-3 * spacing.max():
        return
    origin, direction = np.abs(difference[:3, 3]).max(), np.abs(difference[:3, :3] / spacing).max()
    if (
        origin > min(NOISE_MM, NOISE_VOXELS * spacing.max()) * SLACK
        or direction > NOISE_DIRECTION * SLACK
    ):
        raise UserError(
            f"{name}: {what} and {other_what} lie {apart:.3g} mm apart in the world; their affines "
            "must agree"
        )
    warnings.warn(
        f"{name}: {what} and {other_what} lie {apart:.2g} mm apart by their headers; that is taken "
        "for rounding and their voxels for the same places",
        DataWarning,
        stacklevel=2,
    )
