"""Prediction: a sliding window over a scan of any size, and the way back to the scan's own grid."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dkuxnet.core.config import InferSettings
from dkuxnet.core.types import Volume
from dkuxnet.data.geometry import Region, from_ras, pad_to, reach_of, resample_from
from dkuxnet.machine.memory import check_memory, keeping_freed_memory
from dkuxnet.models.components import keep_largest_component


@dataclass
class GridPrediction:
    """On the network's grid: prob (K, X, Y, Z) float32, uncertainty (X, Y, Z) float32 in [0, 1] or
    None, groups (G, X, Y, Z) float32, each voxel's spread over the query groups, or None.
    """

    prob: np.ndarray
    uncertainty: np.ndarray | None = None
    groups: np.ndarray | None = None


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: evenly spread, from 0 to the end, neighbours
    overlapping by `overlap`.
    """
    count = math.ceil((size - window) / max(window * (1 - overlap), 1)) + 1 if size > window else 1
    return [round(i * (size - window) / max(count - 1, 1)) for i in range(count)]


def gaussian_weight(window: Sequence[int]) -> Tensor:
    """(X, Y, Z) weights that trust a window's centre (sigma an eighth of each edge), never below a
    thousandth.
    """
    weight = torch.ones(())
    for n in window:
        place = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(-(place**2) / (2 * (n / 8) ** 2))
    return weight.clamp_min(1e-3)


@torch.inference_mode()
@keeping_freed_memory()
def sliding_window(
    predictor: nn.Module,
    image: np.ndarray,
    window: Sequence[int],
    classes: int,
    settings: InferSettings,
    device: torch.device,
    with_uncertainty: bool = False,
    groups: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> GridPrediction:
    """image (C, X, Y, Z) on the network's grid -> blended probabilities.

    A scan smaller than the window is padded.

    groups: how many query groups to blend likewise, where the predictor has queries; 0 for none.
    progress: told (windows done, of how many); what it raises ends the work. Memory on the CPU is
    `grid_bytes`; raises UserError where the machine has not that much left.
    """
    padded, back = pad_to(image, window, float(image.min()))
    size = padded.shape[1:]
    check_memory(grid_bytes(size, window, len(image), classes, with_uncertainty, groups))
    starts = [
        (x, y, z)
        for x in window_starts(size[0], window[0], settings.overlap)
        for y in window_starts(size[1], window[1], settings.overlap)
        for z in window_starts(size[2], window[2], settings.overlap)
    ]
    weight = gaussian_weight(window)
    prob = torch.zeros(classes, *size)
    doubt = torch.zeros(size) if with_uncertainty else None
    shares = torch.zeros(groups, *size) if groups else None
    total = torch.zeros(size)
    scan = torch.from_numpy(np.ascontiguousarray(padded))
    for first in range(0, len(starts), settings.batch):
        boxes = [
            tuple(slice(a, a + n) for a, n in zip(s, window, strict=True))
            for s in starts[first : first + settings.batch]
        ]
        output = predictor(torch.stack([scan[(slice(None), *box)] for box in boxes]).to(device))
        probs = output.logits.float().softmax(dim=1).cpu()
        doubts = uncertainty_of(output.uncertainty, probs) if with_uncertainty else None
        if output.group_prob is None:
            shares = None
        for i, box in enumerate(boxes):
            prob[(slice(None), *box)].addcmul_(weight, probs[i])
            total[box] += weight
            if doubt is not None:
                doubt[box].addcmul_(weight, doubts[i])
            if shares is not None:
                shares[(slice(None), *box)].addcmul_(weight, output.group_prob[i].float().cpu())
        if progress:
            progress(first + len(boxes), len(starts))
    prob /= total
    result = GridPrediction(prob.numpy()[(slice(None), *back)])
    if doubt is not None:
        result.uncertainty = (doubt / total).numpy()[back]
    if shares is not None:
        result.groups = shares.div_(total).numpy()[(slice(None), *back)]
    return result


def grid_bytes(
    shape: Sequence[int],
    window: Sequence[int],
    channels: int,
    classes: int,
    with_uncertainty: bool,
    groups: int = 0,
) -> int:
    """Bytes that `sliding_window` holds for a scan of `shape` voxels: the scan, padded, and the
    sums of probability, weight, uncertainty and groups.
    """
    voxels = math.prod(max(n, w) for n, w in zip(shape, window, strict=True))
    return 4 * voxels * (2 * channels + classes + 1 + 2 * with_uncertainty + groups)


def uncertainty_of(given: Tensor | None, probs: Tensor) -> Tensor:
    """The predictor's own uncertainty, or else the entropy of its probabilities over log K: (B, X,
    Y, Z) in [0, 1].
    """
    if given is not None:
        return given.float().cpu()
    entropy = -(probs * probs.clamp_min(1e-12).log()).sum(dim=1)
    return entropy / math.log(probs.shape[1])


def label_on_scan(
    prob: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
    largest_component: bool = False,
    region: Region | None = None,
) -> np.ndarray:
    """Probabilities (K, x, y, z) on the network's grid -> class indices (X, Y, Z) uint8 on the
    scan's own grid.

    The probabilities are interpolated and then compared, which keeps edges smoother than comparing
    first. Works in slabs, so that classes x scan is never in memory. largest_component: see
    `InferSettings`. region: of the network's grid, where `prob` covers no more than that; all
    around it is background.
    """
    ras_shape = _ras_shape(shape, affine)
    region = region or Region.whole(prob.shape[1:])
    reach = reach_of(region, ras_shape)
    label = np.zeros(ras_shape, np.uint8)
    slab = max(1, 2**24 // (len(prob) * reach.shape[1] * reach.shape[2]))
    for first in range(reach.start[0], reach.stop[0], slab):
        rows = slice(first, min(first + slab, reach.stop[0]))
        target = Region.of(ras_shape, (rows, *reach.box[1:]))
        label[target.box] = _with_background(*resample_from(prob, region, target)).argmax(axis=0)
    if largest_component:
        label = keep_largest_component(label)
    return np.ascontiguousarray(from_ras(label, affine))


def map_on_scan(
    values: np.ndarray, shape: Sequence[int], affine: np.ndarray, region: Region | None = None
) -> np.ndarray:
    """A map (..., x, y, z) on the network's grid, or on a region of it -> (..., X, Y, Z) float32
    on the scan's own grid.

    Around a region, probabilities (K, x, y, z) are 1 for class 0 and 0 for the others, and any
    other map is 0.
    """
    ras_shape = _ras_shape(shape, affine)
    check_memory(8 * math.prod(values.shape[:-3]) * math.prod(ras_shape))
    region = region or Region.whole(values.shape[-3:])
    reach = reach_of(region, ras_shape)
    part, outside = resample_from(values, region, reach)
    is_prob = values.ndim == 4
    result = part
    if not region.is_whole:
        result = np.zeros((*values.shape[:-3], *ras_shape), np.float32)
        if is_prob:
            result[0] = 1
        result[(..., *reach.box)] = _with_background(part, outside) if is_prob else part
    return np.ascontiguousarray(from_ras(result, affine))


def _with_background(prob: np.ndarray, outside: np.ndarray | None) -> np.ndarray:
    """Probabilities (K, ...) whose missing share, `outside`, goes to class 0."""
    if outside is not None:
        prob[0] += outside
    return prob


def label_volume(indices: np.ndarray, affine: np.ndarray, label_values: Sequence[int]) -> Volume:
    """Class indices -> the values that the data set's label files use, in the smallest integer
    type that holds them.
    """
    values = np.asarray(label_values)
    return Volume(values.astype(np.min_scalar_type(int(values.max())))[indices], affine)


def _ras_shape(shape: Sequence[int], affine: np.ndarray) -> tuple[int, int, int]:
    from nibabel.orientations import io_orientation

    result = [0, 0, 0]
    for n, (axis, _) in zip(shape, io_orientation(affine), strict=True):
        result[int(axis)] = int(n)
    return tuple(result)
