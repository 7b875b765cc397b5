"""Frames in space -> an even stack, sorted along the normal, with its affine; else what is wrong.

Tolerances. Positions: 1 % of the slice spacing, at least 0.01 mm, since they are stored as
decimals. Tilt: 1 mm in a metre (0.06 degrees). Directions: 1e-4 in every component. Pixel spacing:
0.01 %.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.errors import UserError
from dkuxnet.data.dicom.headers import Image, Plane
from dkuxnet.data.dicom.series import Series

PLACE_SHARE, PLACE_MM = 0.01, 0.01
TILT = 1e-3
DIRECTION = 1e-4
SPACING_SHARE = 1e-4
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Stack:
    """Slices in order.

    frames: image and index of the frame in it, for each slice. affine: (column, row, slice) ->
    RAS+ mm.
    """

    frames: tuple[tuple[Image, int], ...]
    affine: NDArray[np.float64]


def arrange(series: Series) -> Stack:
    """The slices of a series in order.

    Raises UserError where they are not an even, upright stack of at least two.
    """
    where = f"{series.path}: series {series.uid}"
    frames = [(image, index) for image in series.images for index in range(len(image.planes))]
    _check_alike(where, series.images)
    planes = _checked_planes(where, series.images)
    along, down = _directions(where, planes[0])
    normal = np.cross(along, down)
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    step = _step(where, positions[order], normal)
    between_rows, between_columns = planes[0].spacing_mm
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along * between_columns, down * between_rows, normal * step], axis=1)
    affine[:3, 3] = positions[order[0]]
    return Stack(tuple(frames[i] for i in order), LPS_RAS @ affine)


def _check_alike(where: str, images: tuple[Image, ...]) -> None:
    if not all(image.grey for image in images):
        raise UserError(
            f"{where} holds colour images (several samples a pixel or a palette); give a scan of "
            "grey values"
        )
    sizes = sorted({(image.columns, image.rows) for image in images})
    if len(sizes) > 1:
        shown = " and ".join(f"{columns} x {rows}" for columns, rows in sizes[:3])
        raise UserError(
            f"{where} has images of several sizes ({shown} pixels); export slices of one size as a "
            "series"
        )
    frames = {image.frame_of_reference_uid for image in images}
    if len(frames) > 1:
        raise UserError(
            f"{where} lies in {len(frames)} frames of reference: the patient was moved; export one "
            "of them alone"
        )


def _checked_planes(where: str, images: tuple[Image, ...]) -> list[Plane]:
    """The planes of all frames: at least two, parallel, of one pixel spacing."""
    given = [plane for image in images for plane in image.planes]
    planes = [plane for plane in given if plane is not None]
    if len(planes) < len(given):
        raise UserError(
            f"{where}: {len(given) - len(planes)} of {len(given)} images do not say where they "
            "lie; export the series again"
        )
    if len(planes) < 2:
        raise UserError(
            f"{where} has one image: expected a 3D scan; give the folder of all its slices"
        )
    numbers = [[*plane.position, *plane.orientation, *plane.spacing_mm] for plane in planes]
    if not np.isfinite(numbers).all():
        raise UserError(f"{where} has positions that are no numbers; export it again")
    first = planes[0]
    orientations = np.array([plane.orientation for plane in planes])
    if np.abs(orientations - first.orientation).max() > DIRECTION:
        raise UserError(
            f"{where} mixes orientations (as a localizer, or views of several planes, does); "
            "export slices of one orientation as a series"
        )
    spacings = np.array([plane.spacing_mm for plane in planes])
    if min(first.spacing_mm) <= 0 or np.abs(spacings / first.spacing_mm - 1).max() > SPACING_SHARE:
        low, high = spacings.min(), spacings.max()
        raise UserError(
            f"{where} has pixel spacings from {low:g} to {high:g} mm: expected one, above 0; "
            "export it again"
        )
    return planes


def _directions(where: str, plane: Plane) -> tuple[NDArray[Any], NDArray[Any]]:
    """Directions along a row and down a column."""
    along, down = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    lengths = np.linalg.norm([along, down], axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(along @ down) > TILT:
        raise UserError(
            f"{where}: expected an orientation of two perpendicular directions of length 1, got "
            f"{plane.orientation}; export it again"
        )
    along = along / lengths[0]
    # The file's decimals are rounded; viewers and NIfTI want exactly perpendicular directions.
    down = down - (down @ along) * along
    return along, down / np.linalg.norm(down)


def _step(where: str, positions: NDArray[Any], normal: NDArray[Any]) -> float:
    """Distance of neighbouring slices, from their sorted positions (n, 3) in mm."""
    heights = (positions - positions[0]) @ normal
    gaps = np.diff(heights)
    if gaps.min() <= PLACE_MM:
        twins, first = _number((gaps <= PLACE_MM).sum(), "image"), positions[np.argmin(gaps)]
        raise UserError(
            f"{where} has {twins} at positions that others hold, as at {_at(first)}: several time "
            "points, echoes or copies; export one of each as a series"
        )
    _check_tilt(where, positions, heights, normal)
    step = heights[-1] / len(gaps)
    tolerance = max(PLACE_SHARE * step, PLACE_MM) + 1e-9
    if np.abs(heights - step * np.arange(len(heights))).max() <= tolerance:
        return float(step)
    _refuse_uneven(where, positions, gaps)


def _refuse_uneven(where: str, positions: NDArray[Any], gaps: NDArray[Any]) -> NoReturn:
    """Raises UserError: slices are missing, where that explains the gaps, or lie unevenly."""
    counts = np.round(gaps / gaps.min())
    unit = float(np.median(gaps[counts == 1]))
    tolerances = max(PLACE_SHARE * unit, PLACE_MM) * (counts + 1)
    if counts.max() > 1 and (np.abs(gaps - counts * unit) <= tolerances).all():
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
    where: str, positions: NDArray[Any], heights: NDArray[Any], normal: NDArray[Any]
) -> None:
    aside = positions - positions[0] - heights[:, None] * normal
    lengths = np.linalg.norm(aside, axis=1)
    if (lengths <= TILT * heights + PLACE_MM).all():
        return
    straight = aside[-1] * (heights / heights[-1])[:, None]
    if np.linalg.norm(aside - straight, axis=1).max() <= PLACE_MM + TILT * heights[-1]:
        angle = np.degrees(np.arctan2(lengths[-1], heights[-1]))
        raise UserError(
            f"{where} is sheared: its slices advance {angle:.2f} degrees off their normal (a "
            "tilted gantry); resample it to an upright grid first"
        )
    raise UserError(
        f"{where} has slices that are shifted against each other, by up to {lengths.max():.4g} mm "
        "in their plane; export slices of one stack as a series"
    )


def _number(count: float, what: str) -> str:
    return f"{count:.0f} {what}{'s' if count > 1 else ''}"


def _at(position: NDArray[Any]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in position)}) mm"
