"""Truth and prediction as surfaces: meshes for NiiVue, and a picture where it cannot run."""

import base64
import gzip
import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter
from skimage.measure import marching_cubes

from dkuxnet.data.geometry import resample
from dkuxnet.report.case import ShownCase
from dkuxnet.report.pictures import PREDICTION, TRUTH, class_colours, data_uri

EDGE = 52  # voxels along a structure's longest edge before it becomes a surface: 10,000 corners
MANY = 3  # with more classes than this each gets fewer corners, so that a page does not grow
SMOOTH = 0.8  # sigma of the blur before that, in such voxels
SEE_THROUGH = 0.55  # opacity, in the picture, of a structure that may hide another
AZIMUTH, ELEVATION = 26, 14  # degrees of the first view: from the front, turned a little
PICTURE, GAP, FINE = 340, 16, 2  # pixels: along an edge, between; drawn how much finer
LIGHT = np.array([-0.35, 0.5, 0.8]) / np.linalg.norm([-0.35, 0.5, 0.8])


@dataclass(frozen=True)
class Surface:
    """A closed mesh.

    points: (V, 3) mm along the grid's axes, from the middle of what is shown. normals: (V, 3),
    outwards, of unit length. faces: (F, 3) indices of points, counter-clockwise from outside.
    """

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    faces: NDArray[np.int32]


@dataclass(frozen=True)
class Surfaces:
    """The surfaces of a case; of pairs the first is the truth's.

    meshes: one a class, None where that side lacks it. colours: hex, one a class. order: indices
    of classes, the smallest first. azimuth: degrees, of the first view, as NiiVue counts them.
    radius: mm, of all that is shown.
    """

    meshes: tuple[list[Surface | None], list[Surface | None]]
    colours: tuple[list[str], list[str]]
    order: list[int]
    azimuth: int
    radius: float


def surface_of(
    mask: NDArray[Any], case: ShownCase, middle_mm: NDArray[Any], edge: float = EDGE
) -> Surface | None:
    """The smoothed surface of a structure, None where there is none.

    mask: (X, Y, Z) bool on the case's grid. middle_mm: (3,), from the grid's first voxel. edge:
    voxels along the longest edge before it becomes a surface.
    """
    padded = np.pad(mask, 2)
    found = find_objects(padded.view(np.uint8))
    if not found:
        return None
    part = padded[tuple(slice(each.start - 2, each.stop + 2) for each in found[0])]
    start = np.array([each.start - 4 for each in found[0]])
    spacing = np.array(case.spacing_mm)
    extent = np.array(part.shape) * spacing
    edge_mm = max(extent.max() / edge, spacing.min() / 2)
    shape = tuple(int(n) for n in np.maximum(3, np.rint(extent / edge_mm)))
    values = gaussian_filter(np.pad(resample(part, shape), 2), SMOOTH)
    voxel = extent / shape
    points, faces, normals, _ = marching_cubes(  # type: ignore[no-untyped-call]  # scikit-image's
        values, level=min(0.5, values.max() / 2), spacing=tuple(voxel), gradient_direction="ascent"
    )
    points = points - 1.5 * voxel + (start - 0.5) * spacing - middle_mm
    return Surface(points.astype(np.float32), normals, faces)


def surfaces_of(case: ShownCase, classes: int) -> Surfaces | None:
    """The surfaces of a case, None where truth and prediction are empty.

    classes: how many there are besides the background.
    """
    shown = (case.truth > 0) | (case.prediction > 0)
    if not shown.any():
        return None
    [box] = find_objects(shown.view(np.uint8))
    middle_mm = np.array([(part.start + part.stop - 1) / 2 for part in box]) * case.spacing_mm
    edge = EDGE * min(1.0, (MANY / classes) ** 0.5)
    truth, prediction = (
        [surface_of(label == k + 1, case, middle_mm, edge) for k in range(classes)]
        for label in (case.truth, case.prediction)
    )
    sizes = np.bincount(case.truth.ravel(), minlength=classes + 1) + np.bincount(
        case.prediction.ravel(), minlength=classes + 1
    )
    many = class_colours(classes)
    return Surfaces(
        meshes=(truth, prediction),
        colours=([TRUTH], [PREDICTION]) if classes == 1 else (many, many),
        order=np.argsort(sizes[1:], kind="stable").tolist(),
        azimuth=AZIMUTH + (180 if case.oriented else 0),  # a patient's front is at the last y
        radius=max(
            float(np.linalg.norm(mesh.points, axis=1).max()) for mesh in truth + prediction if mesh
        ),
    )


def packed(surfaces: Surfaces) -> dict[str, Any]:
    """The same for the page: meshes as gzipped mz3 files in base64."""
    return {
        "meshes": [
            [mesh and _mz3(mesh, surfaces.radius) for mesh in side] for side in surfaces.meshes
        ],
        "colours": surfaces.colours,
        "order": surfaces.order,
        "azimuth": surfaces.azimuth,
        "elevation": ELEVATION,
    }


def _mz3(mesh: Surface, radius: float) -> str:
    header = struct.pack("<HHIII", 0x5A4D, 3, len(mesh.faces), len(mesh.points), 0)
    step = 2.0 ** np.floor(np.log2(radius / 2000))  # rounded numbers pack well
    points = np.round(mesh.points / step) * step
    content = header + mesh.faces.astype("<i4").tobytes() + points.astype("<f4").tobytes()
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


def draw_surfaces(surfaces: Surfaces) -> str:
    """Truth on the left, prediction on the right, from the first view, as a png's data URI."""
    gap = np.ones((PICTURE, GAP, 3))
    left, right = (_draw_side(surfaces, number) for number in (0, 1))
    picture = np.clip(np.concatenate([left, gap, right], axis=1), 0, 1)
    drawn = np.flatnonzero((picture < 1).any(axis=(1, 2)))
    stream = io.BytesIO()
    imsave(stream, picture[max(drawn[0] - GAP, 0) : drawn[-1] + GAP], format="png")
    return data_uri(stream.getvalue(), "png")


def _draw_side(surfaces: Surfaces, number: int) -> NDArray[Any]:
    """(PICTURE, PICTURE, 3): the smallest structure solid, larger ones see-through over it."""
    size = PICTURE * FINE
    image, nearest = np.ones((size, size, 3)), np.full((size, size), -np.inf)
    meshes, colours = surfaces.meshes[number], surfaces.colours[number]
    present = [(mesh, colours[k]) for k in surfaces.order if (mesh := meshes[k])]
    for place, (mesh, colour) in enumerate(present):
        shade, depth = _projected(mesh, surfaces, size)
        alpha = np.where(depth > nearest, SEE_THROUGH if place else 1.0, 0.0)[..., None]
        image = image * (1 - alpha) + alpha * shade[..., None] * to_rgb(colour)
        nearest = nearest if place else depth
    averaged: NDArray[Any] = image.reshape(PICTURE, FINE, PICTURE, FINE, 3).mean(axis=(1, 3))
    return averaged


def _projected(mesh: Surface, surfaces: Surfaces, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(shade, depth), each (size, size): of the nearest point, depth -inf where there is none.

    Not by matplotlib's 3D axes: they show the seams of triangles, and draw one structure before
    another whichever is nearer.
    """
    turned = view(surfaces.azimuth, ELEVATION)
    points, normals = mesh.points @ turned.T / surfaces.radius, mesh.normals @ turned.T
    faces = mesh.faces[normals[mesh.faces, 2].max(axis=1) > 0]  # the others look away
    faces = faces[np.argsort(points[faces, 2].mean(axis=1))]  # the nearest is drawn last
    places = (0.95 * points + 1) / 2
    shade = 0.32 + 0.68 * np.abs(normals @ LIGHT)
    colours = np.stack([shade, places[:, 2], 0 * shade, np.ones_like(shade)], axis=1)
    renderer = RendererAgg(size, size, 72)  # type: ignore[no-untyped-call]  # matplotlib's
    renderer.draw_gouraud_triangles(
        renderer.new_gc(), places[faces, :2] * size, colours[faces], IdentityTransform()
    )
    pixels = np.asarray(renderer.buffer_rgba())  # type: ignore[no-untyped-call]  # matplotlib's
    red, green, _, alpha = np.moveaxis(pixels / 255, 2, 0)
    return red, np.where(alpha > 0.5, green, -np.inf)


def view(azimuth: float, elevation: float) -> NDArray[Any]:
    """(3, 3): from the grid's axes to right, up and towards the viewer; degrees as in NiiVue."""
    (c, s), (d, e) = ((np.cos(angle), np.sin(angle)) for angle in np.deg2rad((azimuth, elevation)))
    return np.array([[c, -s, 0], [s * e, c * e, d], [-s * d, -c * d, e]])
