"""Connected components of label maps: numpy in, numpy out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def keep_largest_component(label: NDArray[Any]) -> NDArray[Any]:
    """The largest face-connected component of each foreground class, the rest background.

    label: class indices (X, Y, Z) -> same.
    """
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as connected

    kept = np.zeros_like(label)
    for k, box in enumerate(find_objects(label), 1):
        if box is not None:
            pieces, _ = connected(label[box] == k)
            kept[box][pieces == np.bincount(pieces.ravel())[1:].argmax() + 1] = k
    return kept
