"""Reading .b2nd, the arrays of a prepared set, which may come from anybody."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.regular import check_regular
from dkuxnet.machine.memory import check_memory

MAX_CHUNK_BYTES = 1 << 28  # our own chunks hold 64 x 64 x 64 voxels of each channel


def read_box(
    path: Path, shape: Sequence[int], dtype: type[np.generic], box: tuple[slice, ...] = ()
) -> NDArray[Any]:
    """The part `box` of the array in `path`, which must have this shape and type.

    box: along the last three axes; all of it where empty.

    Nothing but the array is opened. `blosc2.open` does more: it rebuilds what a file describes as a
    recipe (a lazy expression, a function's source, a proxy of another file or address). Raises
    UserError for too little memory, and any error for a file that is damaged or no such array.
    """
    import blosc2

    check_regular(path)
    array = blosc2.blosc2_ext.open(str(path), "r", 0)
    if not isinstance(array, blosc2.NDArray):
        raise ValueError("no array")
    if set(array.schunk.meta.keys()) != {"b2nd"}:
        raise ValueError("it describes something other than an array")
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise ValueError(
            f"expected an array of shape {tuple(shape)} and type {np.dtype(dtype)}, got "
            f"{array.shape} and {array.dtype}"
        )
    if math.prod(array.chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
        raise ValueError(f"its chunks {array.chunks} are too large")
    extent = [part.stop - part.start for part in box] or shape[-3:]
    check_memory(math.prod([*shape[:-3], *extent]) * array.dtype.itemsize, str(path))
    # Starting threads for a patch takes as long as unpacking it.
    array.schunk.dparams = blosc2.DParams(nthreads=1)
    return np.asarray(array[(..., *box)])
