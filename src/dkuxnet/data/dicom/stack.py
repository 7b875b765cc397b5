"""Frames in space -> an even stack, sorted along the normal, with its affine; else what is wrong.

Tolerance: every voxel lies within a quarter of a voxel of its place in the stack, along each axis.
Across the normal, 1 mm in a metre (0.06 degrees) is tolerated too: it comes of rounded directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.errors import UserError
from dkuxnet.data.dicom.headers import Image, Plane
from dkuxnet.data.dicom.series import Series
from dkuxnet.data.dicom.tree import printable

QUARTER = 0.25  # of a voxel
# What rounded decimals do is not worth a word: a share of a voxel, or millimetres if that is more
ROUNDING, ROUNDING_MM = 0.01, 0.01
TILT = 1e-3
ALL_AT_ONE_MM = 1e-6
OTHER = 0.01  # in a direction or a share of a spacing: no rounding, another orientation or spacing
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Array = NDArray[Any]


@dataclass(frozen=True)
class Stack:
    """Slices in order.

    frames: image and index of the frame in it, for each slice. affine: (column, row, slice) ->
    RAS+ mm. told: what to say of slices that lie a little off their places.
    """

    frames: tuple[tuple[Image, int], ...]
    affine: NDArray[np.float64]
    told: tuple[str, ...]


def arrange(series: Series) -> Stack:
    """The slices of a series in order.

    Raises UserError where they are not an even, upright stack of at least two.
    """
    where = series.title
    frames = [(image, index) for image in series.images for index in range(len(image.planes))]
    _check_alike(where, series.images)
    planes = _checked_planes(where, series.images)
    directions = _directions(where, planes)
    along, down = directions[0]
    normal = np.cross(along, down)
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    first, last = positions[order[0]], positions[order[-1]]
    step = (last - first) @ normal / (len(planes) - 1)
    between_rows, between_columns = planes[0].spacing_mm
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along * between_columns, down * between_rows, normal * step], axis=1)
    affine[:3, 3] = first
    ordered = [planes[index] for index in order]
    images = [frames[index][0] for index in order]
    told = _check_places(where, ordered, directions[order], affine, images)
    return Stack(tuple(frames[i] for i in order), LPS_RAS @ affine, told)


def _check_alike(where: str, images: tuple[Image, ...]) -> None:
    if not all(image.grey for image in images):
        raise UserError(
            f"{where} holds colour images (several samples a pixel or a palette); give a scan of "
            "grey values"
        )
    firsts = {(image.columns, image.rows): image for image in reversed(images)}
    if len(firsts) > 1:
        sizes = sorted(firsts)[:3]
        shown = " and ".join(f"{x} x {y} in {_names([firsts[x, y]])}" for x, y in sizes)
        raise UserError(
            f"{where} has images of several sizes (in pixels, {shown}); export slices of one "
            "size as a series"
        )
    frames = {image.frame_of_reference_uid for image in images}
    if len(frames) > 1:
        raise UserError(
            f"{where} lies in {len(frames)} frames of reference: the patient was moved; export one "
            "of them alone"
        )


def _checked_planes(where: str, images: tuple[Image, ...]) -> list[Plane]:
    """The planes of all frames: at least two, of numbers."""
    given = [plane for image in images for plane in image.planes]
    planes = [plane for plane in given if plane is not None]
    if len(planes) < len(given):
        raise UserError(
            f"{where}: {len(given) - len(planes)} of {len(given)} images do not say where they "
            f"lie ({_names([image for image in images if None in image.planes])}); export the "
            "series again"
        )
    if len(planes) < 2:
        raise UserError(
            f"{where} has one image: expected a 3D scan; give the folder of all its slices"
        )
    numbers = [[*plane.position, *plane.orientation, *plane.spacing_mm] for plane in planes]
    if not np.isfinite(numbers).all():
        raise UserError(f"{where} has positions that are no numbers; export it again")
    if min(spacing for plane in planes for spacing in plane.spacing_mm) <= 0:
        _refuse_spacings(where, planes)
    return planes


def _directions(where: str, planes: Sequence[Plane]) -> Array:
    """Directions along a row and down a column of every plane, (n, 2, 3), exactly perpendicular."""
    given = np.array([plane.orientation for plane in planes]).reshape(-1, 2, 3)
    lengths = np.linalg.norm(given, axis=2, keepdims=True)
    leaning = np.abs((given[:, 0] * given[:, 1]).sum(axis=1))
    bad = (np.abs(lengths - 1) > 1e-2).any(axis=(1, 2)) | (leaning > TILT)
    if bad.any():
        raise UserError(
            f"{where}: expected an orientation of two perpendicular directions of length 1, got "
            f"{planes[int(np.argmax(bad))].orientation}; export it again"
        )
    along, down = np.moveaxis(given / lengths, 1, 0)
    # The file's decimals are rounded; viewers and NIfTI want exactly perpendicular directions.
    down = down - (down * along).sum(axis=1, keepdims=True) * along
    return np.stack([along, down / np.linalg.norm(down, axis=1, keepdims=True)], axis=1)


def _check_places(
    where: str, planes: Sequence[Plane], directions: Array, affine: Array, images: Sequence[Image]
) -> tuple[str, ...]:
    """Check that the voxels of sorted planes lie where `affine` puts them, or nearly so.

    Returns what to say where that is not for rounding alone.
    """
    positions = np.array([plane.position for plane in planes])
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if edges[2] < ALL_AT_ONE_MM:
        _refuse_positions(where, positions, affine, images)
    off = _off(positions, planes, directions, affine, images[0])
    heights = edges[2] * np.arange(len(planes))[:, None, None]
    off[off <= (TILT * heights + ROUNDING_MM) / edges * (1, 1, 0)] = 0
    if (off > QUARTER).any():
        apart = np.abs(directions - directions[0]).max()
        spacings = np.array([plane.spacing_mm for plane in planes])
        stretched = np.abs(spacings / spacings[0] - 1).max()
        in_place = (off[:, 0] <= QUARTER).all()
        if apart > OTHER or (in_place and apart > stretched):
            raise UserError(
                f"{where} mixes orientations (as a localizer, or views of several planes, does); "
                "export slices of one orientation as a series"
            )
        if stretched > OTHER or in_place:
            _refuse_spacings(where, planes)
        _refuse_positions(where, positions, affine, images)
    if (off <= np.maximum(ROUNDING, ROUNDING_MM / edges)).all():
        return ()
    furthest = (off * edges).max(axis=(1, 2))
    at = int(np.argmax(furthest))
    return (
        f"has slices up to {furthest[at]:.2g} mm off an even stack, most of all at "
        f"{_at(positions[at])}: at most a quarter of a voxel, so they are taken as even",
    )


def _off(
    positions: Array, planes: Sequence[Plane], directions: Array, affine: Array, image: Image
) -> Array:
    """How far the four corners of each plane lie off their places, (n, 4, 3) in voxels.

    The first corner is the plane's position.
    """
    corners = np.array([(c, r) for c in (0, image.columns - 1) for r in (0, image.rows - 1)])
    edges = directions * np.array([plane.spacing_mm[::-1] for plane in planes])[..., None]
    world = positions[:, None] + corners @ edges
    voxels = (world - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    voxels[..., :2] -= corners
    voxels[..., 2] -= np.arange(len(planes))[:, None]
    off: Array = np.abs(voxels)
    return off


def _refuse_spacings(where: str, planes: Sequence[Plane]) -> NoReturn:
    spacings = [spacing for plane in planes for spacing in plane.spacing_mm]
    raise UserError(
        f"{where} has pixel spacings from {min(spacings):g} to {max(spacings):g} mm: expected one, "
        "above 0; export it again"
    )


def _refuse_positions(
    where: str, positions: Array, affine: Array, images: Sequence[Image]
) -> NoReturn:
    """Raises UserError that says why sorted positions are no even stack."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    heights = (positions - positions[0]) @ normal
    gaps = np.diff(heights)
    if gaps.min() <= ROUNDING_MM:
        twins, at = _number((gaps <= ROUNDING_MM).sum(), "image"), int(np.argmin(gaps))
        raise UserError(
            f"{where} has {twins} at positions that others hold, as at {_at(positions[at])} "
            f"({_names(images[at : at + 2])}): several time points, echoes or copies; export one "
            "of each as a series"
        )
    pixel = np.linalg.norm(affine[:3, :2], axis=0).min()
    _check_tilt(where, positions, heights, normal, np.maximum(QUARTER * pixel, TILT * heights))
    _refuse_uneven(where, positions, gaps)


def _refuse_uneven(where: str, positions: Array, gaps: Array) -> NoReturn:
    """Raises UserError: slices are missing, where that explains the gaps, or lie unevenly."""
    counts = np.round(gaps / gaps.min())
    unit = float(np.median(gaps[counts == 1]))
    if counts.max() > 1 and (np.abs(gaps - counts * unit) <= QUARTER * unit).all():
        at, missing = int(np.argmax(counts > 1)), _number(counts.sum() - len(counts), "slice")
        raise UserError(
            f"{where} misses {missing} of {unit:.4g} mm, the first between "
            f"{_at(positions[at])} and {_at(positions[at + 1])}; copy all of its images"
        )
    usual = float(np.median(gaps))
    at = int(np.argmax(np.abs(gaps - usual)))
    raise UserError(
        f"{where} has slices {gaps.min():.4g} to {gaps.max():.4g} mm apart, most {usual:.4g} mm; "
        f"uneven between {_at(positions[at])} and {_at(positions[at + 1])}; resample it or export "
        "an even series"
    )


def _check_tilt(
    where: str, positions: Array, heights: Array, normal: Array, allowed_mm: Array
) -> None:
    aside = positions - positions[0] - heights[:, None] * normal
    lengths = np.linalg.norm(aside, axis=1)
    if (lengths <= allowed_mm + ROUNDING_MM).all():
        return
    straight = aside[-1] * (heights / heights[-1])[:, None]
    if np.linalg.norm(aside - straight, axis=1).max() <= ROUNDING_MM + TILT * heights[-1]:
        angle = np.degrees(np.arctan2(lengths[-1], heights[-1]))
        raise UserError(
            f"{where} is sheared: its slices advance {angle:.2f} degrees off their normal (a "
            "tilted gantry); resample it to an upright grid first"
        )
    raise UserError(
        f"{where} has slices that are shifted against each other, by up to {lengths.max():.4g} mm "
        "in their plane; export slices of one stack as a series"
    )


def _names(images: Sequence[Image]) -> str:
    return ", ".join(dict.fromkeys(printable(image.name) for image in images[:3]))


def _number(count: float, what: str) -> str:
    return f"{count:.0f} {what}{'s' if count > 1 else ''}"


def _at(position: Array) -> str:
    return f"({', '.join(f'{value:.4g}' for value in position)}) mm"
