"""Truth and prediction as surfaces: small meshes for the page to turn, and one shaded picture
where it cannot.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from scipy.ndimage import find_objects, gaussian_filter
from skimage.measure import marching_cubes

from dkuxnet.data.geometry import resample
from dkuxnet.report.case import ShownCase
from dkuxnet.report.pictures import LINES, PREDICTION, TRUTH, data_uri

# voxels along a structure's longest edge before it becomes a surface: at most about 10,000 corners
EDGE = 52
# classes that are drawn that fine; with more of them each gets fewer corners, so that a page does
# not grow with them
MANY = 3
SMOOTH = 0.8  # sigma of the blur before that, in such voxels
SEE_THROUGH = 0.35  # opacity of a structure that may hide another
YAW, PITCH = 0.45, 0.25  # of the first view, in radians: from the front, turned a little
PICTURE, GAP, FINE = 340, 16, 2  # pixels an edge and between; drawn how much finer
LIGHT = np.array([-0.35, 0.5, 0.8]) / np.linalg.norm([-0.35, 0.5, 0.8])


@dataclass(frozen=True)
class Surface:
    """points: (V, 3), normals: (V, 3) unit length, outwards, as a viewer sees them who stands
    before the patient: to the right, up, towards the viewer; mm from the middle of what is
    shown. faces: (F, 3).
    """

    points: np.ndarray
    normals: np.ndarray
    faces: np.ndarray


def surface_of(
    mask: np.ndarray, case: ShownCase, middle_mm: np.ndarray, edge: float = EDGE
) -> Surface | None:
    """mask: (X, Y, Z) bool on the case's grid. middle_mm: from the grid's first voxel.

    None where the mask is empty.
    """
    spacing = np.array(case.spacing_mm)
    found = find_objects(mask.astype(np.uint8))
    if not found:
        return None
    padding = [
        (max(0, 2 - part.start), max(0, part.stop + 2 - n))
        for part, n in zip(found[0], mask.shape, strict=True)
    ]
    start = np.array([part.start - 2 for part in found[0]])
    part = np.pad(mask, padding)[
        tuple(
            slice(first + pad[0], part.stop + 2 + pad[0])
            for first, part, pad in zip(start, found[0], padding, strict=True)
        )
    ]
    extent = np.array(part.shape) * spacing
    edge_mm = max(extent.max() / edge, spacing.min() / 2)
    shape = tuple(int(n) for n in np.maximum(3, np.rint(extent / edge_mm)))
    values = gaussian_filter(np.pad(resample(part, shape), 2), SMOOTH)
    voxel = extent / shape
    points, faces, normals, _ = marching_cubes(
        values, level=min(0.5, values.max() / 2), spacing=tuple(voxel)
    )
    points = points - 2 * voxel + voxel / 2 + (start - 0.5) * spacing - middle_mm
    return Surface(
        _before(points.astype(np.float32), case.oriented),
        _before(_unit(normals), case.oriented),
        faces,
    )


def _before(vectors: np.ndarray, oriented: bool) -> np.ndarray:
    """(V, 3) along the grid's axes -> right, up, towards one who looks at the patient's front;
    where nobody knows where that is, at the file's first y.
    """
    x, y, z = vectors.T
    return np.stack([-x, z, y] if oriented else [x, z, -y], axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def surfaces_of(case: ShownCase, class_names: list[str]) -> dict[str, Any] | None:
    """The surfaces of a case: radius (mm, of all that is shown), sides ("truth", "prediction") ->
    meshes, and `classes`, their names with colours, the largest structure first. None where
    truth and prediction are empty.
    """
    shown = (case.truth > 0) | (case.prediction > 0)
    if not shown.any():
        return None
    box = find_objects(shown.astype(np.uint8))[0]
    middle_mm = np.array([(part.start + part.stop - 1) / 2 for part in box]) * case.spacing_mm
    sizes = np.bincount(case.truth.ravel(), minlength=len(class_names)) + np.bincount(
        case.prediction.ravel(), minlength=len(class_names)
    )
    order = sorted(range(1, len(class_names)), key=lambda k: -sizes[k])
    edge = EDGE * min(1.0, (MANY / len(order)) ** 0.5)
    sides = {
        side: [surface_of(label == k, case, middle_mm, edge) for k in order]
        for side, label in (("truth", case.truth), ("prediction", case.prediction))
    }
    radius = max(
        np.linalg.norm(mesh.points, axis=1).max()
        for meshes in sides.values()
        for mesh in meshes
        if mesh
    )
    single = len(order) == 1
    colours = {
        side: [one if single else LINES[k % len(LINES)] for k in range(len(order))]
        for side, one in (("truth", TRUTH), ("prediction", PREDICTION))
    }
    return {
        "radius": float(radius),
        "names": [class_names[k] for k in order],
        "colours": colours,
        "sides": sides,
    }


def packed(surfaces: dict[str, Any]) -> dict[str, Any]:
    """The same for the page: meshes as base64 of little-endian int16 points (32767 is the radius),
    int8 normals and uint32 or, where they suffice, uint16 faces.
    """

    def text(array: np.ndarray, kind: str) -> str:
        return base64.b64encode(np.ascontiguousarray(array, np.dtype(kind)).tobytes()).decode(
            "ascii"
        )

    def mesh(surface: Surface | None) -> dict[str, Any] | None:
        if surface is None:
            return None
        wide = len(surface.points) > 65535
        return {
            "points": text(np.rint(surface.points / surfaces["radius"] * 32767), "<i2"),
            "wide": wide,
            "normals": text(np.rint(surface.normals * 127), "i1"),
            "faces": text(surface.faces, "<u4" if wide else "<u2"),
        }

    return surfaces | {
        "yaw": YAW,
        "pitch": PITCH,
        "sides": {
            side: [mesh(each) for each in meshes] for side, meshes in surfaces["sides"].items()
        },
    }


def draw_surfaces(surfaces: dict[str, Any]) -> str:
    """Truth on the left, prediction on the right, from the first view, as a png's data URI."""
    gap = np.ones((PICTURE, GAP, 3))
    left, right = (_draw_side(surfaces, side) for side in ("truth", "prediction"))
    picture = np.clip(np.concatenate([left, gap, right], axis=1), 0, 1)
    drawn = np.flatnonzero((picture < 1).any(axis=(1, 2)))
    stream = io.BytesIO()
    imsave(stream, picture[max(drawn[0] - GAP, 0) : drawn[-1] + GAP], format="png")
    return data_uri(stream.getvalue(), "png")


def _draw_side(surfaces: dict[str, Any], side: str) -> np.ndarray:
    """(PICTURE, PICTURE, 3): the smallest structure first and solid, larger ones see-through over
    it.
    """
    size = PICTURE * FINE
    image, nearest = np.ones((size, size, 3)), np.full((size, size), -np.inf)
    meshes = list(zip(surfaces["sides"][side], surfaces["colours"][side], strict=True))[::-1]
    for number, (mesh, colour) in enumerate(meshes):
        if mesh is None:
            continue
        shade, depth = _rasterised(mesh, surfaces["radius"], size)
        seen = depth > nearest
        alpha = np.where(seen, 1.0 if number == 0 else SEE_THROUGH + 0.2, 0.0)[..., None]
        image = image * (1 - alpha) + alpha * shade[..., None] * to_rgb(colour)
        if number == 0:
            nearest = np.maximum(nearest, depth)
    return image.reshape(PICTURE, FINE, PICTURE, FINE, 3).mean(axis=(1, 3))


def _rasterised(mesh: Surface, radius: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(shade, depth), each (size, size): of the nearest point, depth -inf where there is none."""
    turned = _turn().astype(np.float32)
    points, normals = mesh.points @ turned.T, mesh.normals @ turned.T
    faces = mesh.faces[normals[mesh.faces, 2].max(axis=1) > 0]  # the others look away
    pixel_mm = 2 * radius / (0.95 * size)
    longest = (
        np.percentile(np.ptp(points[faces][..., :2], axis=1), 99) / pixel_mm if len(faces) else 0
    )
    samples = int(np.clip(np.ceil(1.1 * longest), 2, 40))
    steps = [(a, b, samples - a - b) for a in range(samples + 1) for b in range(samples + 1 - a)]
    weights = np.array(steps, np.float32) / samples  # (S, 3)
    at = np.einsum("sc,fcx->fsx", weights, points[faces]).reshape(-1, 3)
    towards = _unit(np.einsum("sc,fcx->fsx", weights, normals[faces]).reshape(-1, 3))
    order = np.argsort(at[:, 2], kind="stable")  # the nearest is written last
    column, row = (
        (sign * at[order, axis] / radius * 0.95 + 1) / 2 * (size - 1)
        for axis, sign in ((0, 1), (1, -1))
    )
    pixel = np.rint(row).astype(int) * size + np.rint(column).astype(int)
    shade, depth = np.zeros(size * size), np.full(size * size, -np.inf)
    shade[pixel] = 0.32 + 0.68 * np.abs(towards[order] @ LIGHT)
    depth[pixel] = at[order, 2]
    return shade.reshape(size, size), depth.reshape(size, size)


def _turn() -> np.ndarray:
    """(3, 3): about the vertical axis by YAW, then about the horizontal by PITCH."""
    (c, s), (d, e) = ((np.cos(angle), np.sin(angle)) for angle in (YAW, PITCH))
    return np.array([[1, 0, 0], [0, d, -e], [0, e, d]]) @ np.array(
        [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    )
