"""Coarse to fine: a fine stage that sees the scan and what the coarse stage says of it."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from dkuxnet.core.types import CountProgress, Output
from dkuxnet.data.geometry import Region, resample_region
from dkuxnet.prediction.windows import GridPrediction, Windows, sliding_window


def refine(
    predictor: Callable[[Tensor], Output],
    image: np.ndarray,
    coarse: np.ndarray,
    share: float,
    windows: Windows,
    region: Region | None = None,
    progress: CountProgress | None = None,
) -> GridPrediction:
    """The mean of both stages on the fine grid, the coarse one with the weight `share`.

    image: (C, X, Y, Z) on the fine grid, or on `region` of it. coarse: (K, x, y, z), the
    probabilities of the coarse stage on its own grid of the whole scan. What is not probability is
    of the fine stage alone. See `sliding_window` for the rest.
    """
    prior = resample_region(coarse, region or Region.whole(image.shape[1:]))
    result = sliding_window(predictor, image, windows, progress, prior[1:])
    result.prob = (1 - share) * result.prob + share * prior
    return result
