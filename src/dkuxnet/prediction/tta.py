"""Views of a scan for test-time augmentation: there, and back on the grid of the scan.

mirror: along the axes that the training mirrored (`augment.flip`) and all of them together; where
it mirrored none, left and right are exchanged. rotate: DEGREES to either side in the plane of the
slices, or by quarters where the training turned patches that far. scale: FACTOR larger and smaller;
thick slices stay as thick as they are.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dkuxnet.core.config import Settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import THICK, plane_of_slices
from dkuxnet.data.geometry import resample

DEGREES, QUARTER, FACTOR = 10.0, 90.0, 1.1
LEFT, RIGHT = (re.compile(rf"(?<![^\W_])({side})(?![^\W_])") for side in ("left|l", "right|r"))


class View(Protocol):
    """Another look at (C, X, Y, Z)."""

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Voxels (X', Y', Z') of the view of a scan of `size`."""
        ...

    def there(self, image: np.ndarray) -> np.ndarray:
        """(C, X, Y, Z) -> (C, X', Y', Z')."""
        ...

    def back(self, values: np.ndarray, size: Sequence[int]) -> np.ndarray:
        """(K, X', Y', Z') -> (K, *size); 0 where the view does not show the scan."""
        ...


@dataclass(frozen=True)
class Mirror:
    axes: tuple[int, ...]

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(size)

    def there(self, image: np.ndarray) -> np.ndarray:
        return np.flip(image, tuple(axis + 1 for axis in self.axes))

    def back(self, values: np.ndarray, size: Sequence[int]) -> np.ndarray:
        return self.there(values)


@dataclass(frozen=True)
class Scale:
    factors: tuple[float, ...]

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(max(1, round(n * f)) for n, f in zip(size, self.factors, strict=True))

    def there(self, image: np.ndarray) -> np.ndarray:
        return resample(image, self.shape(image.shape[1:]))

    def back(self, values: np.ndarray, size: Sequence[int]) -> np.ndarray:
        return resample(values, size)


@dataclass(frozen=True)
class Turn:
    """About `axis`. edges: of a voxel, in any unit."""

    degrees: float
    axis: int
    edges: tuple[float, ...]

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(size)

    def there(self, image: np.ndarray) -> np.ndarray:
        return self._turned(image, self.degrees, "nearest")

    def back(self, values: np.ndarray, size: Sequence[int]) -> np.ndarray:
        return self._turned(values, -self.degrees, "constant")

    def _turned(self, values: np.ndarray, degrees: float, beyond: str) -> np.ndarray:
        from scipy.ndimage import affine_transform

        u, v = (axis for axis in range(3) if axis != self.axis)
        matrix, angle, edges = np.eye(3), math.radians(degrees), self.edges
        matrix[u, u] = matrix[v, v] = math.cos(angle)
        matrix[u, v] = -math.sin(angle) * edges[v] / edges[u]  # of the body, not of the voxels
        matrix[v, u] = math.sin(angle) * edges[u] / edges[v]
        centre = (np.array(values.shape[1:]) - 1) / 2
        offset = centre - matrix @ centre
        turned = [affine_transform(each, matrix, offset, order=1, mode=beyond) for each in values]
        return np.stack(turned)


@dataclass(frozen=True)
class Quarters:
    """As many quarter turns in a plane of two axes, which moves voxels and changes none."""

    count: int
    plane: tuple[int, int]

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        order = list(range(3))
        if self.count % 2:
            order[self.plane[0]], order[self.plane[1]] = self.plane[::-1]
        return tuple(size[axis] for axis in order)

    def there(self, image: np.ndarray) -> np.ndarray:
        return self._turned(image, self.count)

    def back(self, values: np.ndarray, size: Sequence[int]) -> np.ndarray:
        return self._turned(values, -self.count)

    def _turned(self, values: np.ndarray, count: int) -> np.ndarray:
        return np.rot90(values, count, (self.plane[0] + 1, self.plane[1] + 1))


def views_of(settings: Settings, spacing_mm: Sequence[float]) -> tuple[View, ...]:
    """The views of `infer.tta` beside the scan itself, on a grid of such voxels."""
    asked, edges = settings.infer.tta, tuple(float(each) for each in spacing_mm)
    views: list[View] = []
    if "mirror" in asked:
        axes = ["xyz".index(name) for name in settings.augment.flip or "x"]
        some = (itertools.combinations(axes, n) for n in range(1, len(axes) + 1))
        views += [Mirror(each) for each in itertools.chain(*some)]
    if "rotate" in asked:
        u, v = plane_of_slices(edges)
        square = math.isclose(edges[u], edges[v], rel_tol=0.01)
        if settings.augment.rotation >= QUARTER and square:
            views += [Quarters(count, (u, v)) for count in (1, 2, 3)]
        else:
            views += [Turn(degrees, 3 - u - v, edges) for degrees in (DEGREES, -DEGREES)]
    if "scale" in asked:
        thin = [edge <= THICK * min(edges) for edge in edges]
        for factor in (FACTOR, 1 / FACTOR):
            views.append(Scale(tuple(factor if each else 1.0 for each in thin)))
    return tuple(views)


def check_views(settings: Settings, names: Sequence[str]) -> list[str]:
    """What the training did not show its networks, a sentence each. names: of the classes.

    Raises UserError where a mirrored view would exchange two classes.
    """
    asked, trained = settings.infer.tta, settings.augment
    told = []
    if "mirror" in asked and not trained.flip:
        if pair := sides(names):
            raise UserError(
                f"--tta mirror would exchange '{pair[0]}' and '{pair[1]}', since the training "
                "mirrored no scan (augment.flip); leave it out"
            )
        told.append("mirrored no scan (augment.flip)")
    if "rotate" in asked and trained.rotation < DEGREES:
        told.append(f"turned no scan by {DEGREES:g} degrees (augment.rotation)")
    if "scale" in asked and trained.scale < FACTOR:
        told.append(f"scaled no scan by {FACTOR:g} (augment.scale)")
    return [f"the training {each}: this view may make predictions worse" for each in told]


def sides(names: Sequence[str]) -> tuple[str, str] | None:
    """Two classes whose names differ in left and right alone, or None."""
    plain = {LEFT.sub("*", name.lower()): name for name in names if LEFT.search(name.lower())}
    for name in names:
        other = plain.get(RIGHT.sub("*", name.lower()))
        if other and RIGHT.search(name.lower()):
            return other, name
    return None
