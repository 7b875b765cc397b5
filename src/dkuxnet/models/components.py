"""Connected pieces of label maps: numpy in, numpy out."""

import numpy as np


def keep_largest_component(label: np.ndarray) -> np.ndarray:
    """Class indices (X, Y, Z): of each foreground class the largest piece of face-connected
    voxels, the rest background.
    """
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as connected

    kept = np.zeros_like(label)
    for k, box in enumerate(find_objects(label), 1):
        if box is not None:
            pieces, _ = connected(label[box] == k)
            kept[box][pieces == np.bincount(pieces.ravel())[1:].argmax() + 1] = k
    return kept
