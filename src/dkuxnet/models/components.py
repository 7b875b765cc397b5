"""Connected components of label maps: numpy in, numpy out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.config import InferSettings
from dkuxnet.core.lookup import unknown

ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class Cleaning:
    """Which face-connected pieces of a class go: they become background.

    largest: classes of which the largest piece stays alone. least_ml: class -> volume of the
    smallest piece that stays. foreground: before these, the largest piece of all classes together
    stays alone.
    """

    largest: frozenset[int] = frozenset()
    least_ml: Mapping[int, float] = field(default_factory=dict)
    foreground: bool = False

    @classmethod
    def of(cls, settings: InferSettings, names: Sequence[str]) -> "Cleaning":
        """That of settings. names: of the classes, background first.

        Raises UserError where the settings name a class that is none of these.
        """
        classes, asked, least = names[1:], settings.largest_component, settings.min_ml
        largest = (classes if asked else ()) if isinstance(asked, bool) else asked
        least = least if isinstance(least, dict) else dict.fromkeys(classes, least)
        for key, given in (("largest_component", largest), ("min_ml", least)):
            for name in given:
                if name not in classes:
                    raise unknown(f"class in infer.{key}", name, classes)
        return cls(
            frozenset(names.index(name) for name in largest),
            {names.index(name): ml for name, ml in least.items() if ml},
            settings.largest_foreground,
        )

    def __call__(self, label: NDArray[Any], voxel_ml: float) -> NDArray[Any]:
        """label: class indices (X, Y, Z) -> same. voxel_ml: volume of a voxel."""
        from scipy.ndimage import find_objects
        from scipy.ndimage import label as connected

        if self.foreground:
            label = label * keep_largest_component((label > 0).astype(label.dtype))
        asked = self.largest | self.least_ml.keys()
        if not asked:
            return label
        cleaned = label.copy()
        for k, box in enumerate(find_objects(label), 1):
            if box is None or k not in asked:
                continue
            pieces, _ = connected(label[box] == k)
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            goes = sizes * voxel_ml < self.least_ml.get(k, 0.0) * (1 - ROUNDING)
            if k in self.largest:
                goes |= np.arange(len(sizes)) != sizes.argmax()
            goes[0] = False
            cleaned[box][goes[pieces]] = 0
        return cleaned


def keep_largest_component(label: NDArray[Any]) -> NDArray[Any]:
    """The largest face-connected component of each foreground class, the rest background.

    label: class indices (X, Y, Z) -> same.
    """
    return Cleaning(frozenset(range(1, 256)))(label, 1.0)
