"""Is an affine one that can be trusted? Axes that are not at right angles, and files that should
lie on one grid.

What lies within rounding is taken without a word, what is a little off with a `DataWarning` that
says how much, and what is further off is refused.
"""

import itertools
import warnings
from collections.abc import Sequence

import numpy as np

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Volume

SHEAR_SILENT_DEG, SHEAR_SILENT_VOXELS, SHEAR_MOST_DEG = 0.1, 0.5, 5.0
NOISE_MM, NOISE_VOXELS, NOISE_DIRECTION = (
    1.0,
    2.0,
    1e-3,
)  # of an origin (whichever is less), of a unit direction's numbers
SLACK = 1 + 1e-4  # the numbers above are bounds, and NIfTI stores what lies on them in float32


def shear_of(affine: np.ndarray, shape: Sequence[int]) -> tuple[float, float]:
    """By how many degrees the angle between two axes is not a right one, the largest; and by how
    many mm the scan's corner furthest from its origin then lies elsewhere than on the nearest
    straight grid with the same origin and spacing.

    The nearest straight axes are the orthogonal factor of the polar decomposition of the
    directions.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    cosines = (directions.T @ directions)[np.triu_indices(3, 1)]
    u, _, vt = np.linalg.svd(directions)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape)))).T
    apart = ((directions - u @ vt) * spacing) @ corners
    return float(np.degrees(np.arcsin(np.abs(cosines).max().clip(0, 1)))), float(
        np.linalg.norm(apart, axis=0).max()
    )


def check_straight(name: str, volume: Volume) -> None:
    """`name` begins the message.

    Warns where the axes are not at right angles; raises UserError where by more than 5 degrees.

    A scan with a little shear is used as it is, voxel by voxel: its label map gets the scan's own
    affine and so lies on it.
    """
    degrees, mm = shear_of(volume.affine, volume.shape)
    if degrees > SHEAR_MOST_DEG * SLACK:
        raise UserError(
            f"{name}: its axes are {degrees:.1f} degrees off a right angle, {mm:.1f} mm at the far "
            "corner; at most "
            f"{SHEAR_MOST_DEG:g} degrees can be used: resample it to a grid with right angles (a "
            "tilted CT gantry "
            "makes such scans)"
        )
    if degrees > SHEAR_SILENT_DEG * SLACK and mm > SHEAR_SILENT_VOXELS * min(volume.spacing_mm):
        warnings.warn(
            f"{name}: its axes are {degrees:.2f} degrees off a right angle, {mm:.1f} mm at the far "
            "corner; used "
            "as it is, and its label map lies on it",
            DataWarning,
            stacklevel=2,
        )


def check_same_grid(name: str, what: str, volume: Volume, other_what: str, other: Volume) -> None:
    """`name` begins the message, `what` and `other_what` name the two.

    Warns where their affines differ by rounding (up to 1 mm or two voxels in the origin, 1e-3 in a
    direction or spacing); raises UserError where by more, or where shapes differ.
    """
    if volume.shape != other.shape:
        raise UserError(
            f"{name}: {what} has shape {volume.shape}, {other_what} has shape {other.shape}; "
            "they must lie on one grid"
        )
    difference, spacing = volume.affine - other.affine, np.array(volume.spacing_mm)
    x, y, z = (
        volume.shape
    )  # the origin and the ends of the axes: two corners alone would not notice swapped axes
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
        "for rounding and "
        "their voxels for the same places",
        DataWarning,
        stacklevel=2,
    )
