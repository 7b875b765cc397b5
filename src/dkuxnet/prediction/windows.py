"""Prediction: a sliding window over a scan of any size, and the way back to the scan's own grid."""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dkuxnet.core.config import InferSettings
from dkuxnet.core.types import CountProgress, Output, Volume
from dkuxnet.data.geometry import Region, from_ras, pad_to, reach_of, resample_from, to_ras
from dkuxnet.machine.memory import check_memory, free_bytes, keeping_freed_memory
from dkuxnet.models.components import Cleaning
from dkuxnet.prediction.signature import SignatureSums
from dkuxnet.prediction.tta import View

NOTHING = Cleaning()


@dataclass(frozen=True)
class Windows:
    """How windows are laid over a scan and blended.

    shape: (X, Y, Z) voxels of a window. settings: overlap, and windows at once. with_uncertainty:
    blend the predictor's uncertainty too, or else the entropy of its probabilities. groups: how
    many query groups to blend likewise, where the predictor has queries. with_signature: see
    `prediction.signature`. views: beside the scan itself, of which probabilities are averaged; the
    uncertainty is then how far the views disagree, groups and signature are of the scan itself.
    """

    shape: Sequence[int]
    classes: int
    settings: InferSettings
    device: torch.device
    with_uncertainty: bool = False
    groups: int = 0
    with_signature: bool = False
    views: tuple[View, ...] = ()

    def needed_bytes(self, shape: Sequence[int], channels: int) -> int:
        """Bytes that `sliding_window` holds for a scan of `shape` voxels.

        The scan, padded, and the sums of probability, weight, uncertainty and groups.
        """
        voxels = math.prod(self.padded(shape))
        maps = 2 * channels + self.classes + 1 + 2 * self.with_uncertainty + self.groups
        if not self.views:
            return 4 * voxels * maps
        seen = max(voxels, *(math.prod(self.padded(view.shape(shape))) for view in self.views))
        kept = channels + 2 * self.classes + 2
        return 4 * (seen * maps + voxels * kept)

    def padded(self, size: Sequence[int]) -> list[int]:
        """The voxels of a scan of `size` that the windows cover."""
        return [max(n, w) for n, w in zip(size, self.shape, strict=True)]

    def boxes(self, size: Sequence[int]) -> list[tuple[slice, ...]]:
        """The windows that cover (X, Y, Z) voxels, none of them smaller than a window."""
        overlap = self.settings.overlap
        axes = [window_starts(n, w, overlap) for n, w in zip(size, self.shape, strict=True)]
        return [
            tuple(slice(a, a + n) for a, n in zip(start, self.shape, strict=True))
            for start in itertools.product(*axes)
        ]


@dataclass
class GridPrediction:
    """On the network's grid: prob (K, X, Y, Z) float32.

    uncertainty: (X, Y, Z) float32 in [0, 1]; groups: (G, X, Y, Z) float32, each voxel's spread over
    the query groups; signature: see `prediction.signature`. None where not asked for.
    """

    prob: np.ndarray
    uncertainty: np.ndarray | None = None
    groups: np.ndarray | None = None
    signature: np.ndarray | None = None


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis, evenly spread from 0 to the end.

    Neighbours overlap by at least `overlap` of a window.
    """
    count = math.ceil((size - window) / max(window * (1 - overlap), 1)) + 1 if size > window else 1
    return [round(i * (size - window) / max(count - 1, 1)) for i in range(count)]


def gaussian_weight(window: Sequence[int]) -> Tensor:
    """(X, Y, Z) weights that trust a window's centre: sigma an eighth of each edge.

    They are never below a thousandth.
    """
    weight = torch.ones(())
    for n in window:
        place = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(-(place**2) / (2 * (n / 8) ** 2))
    return weight.clamp_min(1e-3)


def sliding_window(
    predictor: Callable[[Tensor], Output],
    image: np.ndarray,
    windows: Windows,
    progress: CountProgress | None = None,
    prior: np.ndarray | None = None,
) -> GridPrediction:
    """image (C, X, Y, Z) on the network's grid -> blended probabilities, the mean of all views.

    A scan smaller than a window is padded. prior: (K - 1, X, Y, Z) foreground probabilities of a
    coarse stage, further channels for the predictor. progress: told (windows done, of how many);
    what it raises ends the work. Raises UserError where the CPU's memory does not suffice.
    """
    if not windows.views:
        return one_view(predictor, image, windows, progress, prior)
    size, done = image.shape[1:], 0
    check_memory(windows.needed_bytes(size, len(image) + (0 if prior is None else len(prior))))
    counts = [
        len(windows.boxes(windows.padded(shape)))
        for shape in (size, *(view.shape(size) for view in windows.views))
    ]

    def told(part: int, of: int) -> None:
        if progress:
            progress(done + part, sum(counts))

    result = one_view(predictor, image, windows, told, prior)
    plain = replace(windows, with_uncertainty=False, groups=0, with_signature=False, views=())
    weight = np.ones(size, np.float32)
    apart = entropy(result.prob) if windows.with_uncertainty else None
    for view, before in zip(windows.views, counts[:-1], strict=True):
        done += before
        its_prior = None if prior is None else view.there(prior)
        found = one_view(predictor, view.there(image), plain, told, its_prior).prob
        seen = view.back(np.ones((1, *found.shape[1:]), np.float32), size)[0]
        prob = view.back(found, size)
        result.prob += prob
        weight += seen
        if apart is not None:
            apart += seen * entropy(prob / seen.clip(1e-6))
    result.prob /= weight
    if apart is not None:
        spread = entropy(result.prob) - apart / weight
        result.uncertainty = (spread / math.log(1 + len(windows.views))).clip(0, 1)
    return result


def entropy(prob: np.ndarray) -> np.ndarray:
    """(K, X, Y, Z) -> (X, Y, Z), in nats."""
    found: np.ndarray = -(prob * np.log(prob.clip(1e-12))).sum(axis=0)
    return found


@torch.inference_mode()
@keeping_freed_memory()
def one_view(
    predictor: Callable[[Tensor], Output],
    image: np.ndarray,
    windows: Windows,
    progress: CountProgress | None = None,
    prior: np.ndarray | None = None,
) -> GridPrediction:
    """As `sliding_window`, without further views."""
    padded, back = pad_to(image, windows.shape, float(image.min()))
    if prior is not None:
        padded = np.concatenate([padded, pad_to(prior, windows.shape, 0)[0]])
    needed = windows.needed_bytes(padded.shape[1:], len(padded))
    check_memory(needed)
    scan = torch.from_numpy(np.ascontiguousarray(padded))
    blended = None
    if windows.device.type != "cpu" and fits_beside_network(needed, windows.device):
        with suppress(torch.OutOfMemoryError):  # the network took more than that
            blended = blend(predictor, scan.to(windows.device), windows, progress)
    if blended is None:
        blended = blend(predictor, scan, windows, progress)
    return blended.result(back)


def fits_beside_network(needed: int, device: torch.device) -> bool:
    """Whether a scan and its maps take half of what a device has free, or less.

    The other half is for the network's own maps, which the scan does not tell.
    """
    free = free_bytes(device)
    return free is None or 2 * needed <= free


@dataclass
class Blended:
    """Sums over windows, each voxel by the window's weight, and the sum of these weights.

    prob: (K, X, Y, Z), weight: (X, Y, Z), doubt: (1, X, Y, Z), groups: (G, X, Y, Z).
    """

    prob: Tensor
    weight: Tensor
    doubt: Tensor | None
    groups: Tensor | None
    signature: SignatureSums | None

    def result(self, part: tuple[slice, ...]) -> GridPrediction:
        """The means, of a part (X, Y, Z) of the voxels."""

        def mean(sums: Tensor) -> np.ndarray:
            return sums.div_(self.weight).cpu().numpy()[(slice(None), *part)]

        return GridPrediction(
            mean(self.prob),
            None if self.doubt is None else mean(self.doubt)[0],
            None if self.groups is None else mean(self.groups),
            None if self.signature is None else self.signature.vector(),
        )


def blend(
    predictor: Callable[[Tensor], Output],
    scan: Tensor,
    windows: Windows,
    progress: CountProgress | None = None,
) -> Blended:
    """Predict all windows of a scan (C, X, Y, Z), no smaller than one, and blend them.

    That happens where the scan is. Is it on the windows' device, nothing here waits for that.
    """
    size, place = scan.shape[1:], scan.device
    weight = gaussian_weight(windows.shape).to(place)
    sums = Blended(
        torch.zeros(windows.classes, *size, device=place),
        torch.zeros(size, device=place),
        torch.zeros(1, *size, device=place) if windows.with_uncertainty else None,
        torch.zeros(windows.groups, *size, device=place) if windows.groups else None,
        SignatureSums() if windows.with_signature else None,
    )
    boxes, batch = windows.boxes(size), windows.settings.batch
    for first in range(0, len(boxes), batch):
        part = boxes[first : first + batch]
        images = torch.stack([scan[(slice(None), *box)] for box in part])
        output = predictor(images.to(windows.device))
        probs = output.logits.float().softmax(dim=1)
        if sums.signature is not None:
            sums.signature.add(probs, output.features)
        found = [(sums.prob, probs)]
        if sums.doubt is not None:
            found.append((sums.doubt, uncertainty_of(output.uncertainty, probs)[:, None]))
        if output.group_prob is None:
            sums.groups = None
        elif sums.groups is not None:
            found.append((sums.groups, output.group_prob.float()))
        for total, values in found:
            for box, value in zip(part, values.to(place), strict=True):
                total[(slice(None), *box)].addcmul_(weight, value)
        for box in part:
            sums.weight[box] += weight
        if progress:
            progress(first + len(part), len(boxes))
    return sums


def uncertainty_of(given: Tensor | None, probs: Tensor) -> Tensor:
    """(B, X, Y, Z) in [0, 1]: `given`, or the entropy of `probs` (B, K, X, Y, Z) over log K."""
    if given is not None:
        return given.float()
    entropy = -(probs * probs.clamp_min(1e-12).log()).sum(dim=1)
    return entropy / math.log(probs.shape[1])


def label_on_scan(
    prob: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
    cleaning: Cleaning = NOTHING,
    region: Region | None = None,
    device: torch.device | None = None,
) -> np.ndarray:
    """Probabilities (K, x, y, z) on the network's grid -> class indices (X, Y, Z) on the scan's.

    The probabilities are interpolated and then compared, which keeps edges smoother than comparing
    first. Works in slabs, so that classes x scan is never in memory. cleaning: which pieces of a
    class go. region: of the network's grid, where `prob` covers no more than that; all
    around it is background. device: a GPU that interpolates.
    """
    ras_shape = _ras_shape(shape, affine)
    region = region or Region.whole(prob.shape[1:])
    reach = reach_of(region, ras_shape)
    label = np.zeros(ras_shape, np.uint8)
    slab = max(1, 2**24 // (len(prob) * reach.shape[1] * reach.shape[2]))
    for first in range(reach.start[0], reach.stop[0], slab):
        rows = slice(first, min(first + slab, reach.stop[0]))
        target = Region.of(ras_shape, (rows, *reach.box[1:]))
        found = _with_background(*resample_from(prob, region, target, device))
        label[target.box] = found.argmax(axis=0)
    label = cleaning(label, math.prod(np.linalg.norm(affine[:3, :3], axis=0).tolist()) / 1000)
    return np.ascontiguousarray(from_ras(label, affine))


def map_on_scan(
    values: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
    region: Region | None = None,
    device: torch.device | None = None,
) -> np.ndarray:
    """A map (..., x, y, z) on the network's grid -> (..., X, Y, Z) float32 on the scan's own grid.

    region: the part of the network's grid that the map covers. Around it, probabilities (K, x, y,
    z) are 1 for class 0 and 0 for the others, and any other map is 0. device: as for labels.
    """
    ras_shape = _ras_shape(shape, affine)
    check_memory(8 * math.prod(values.shape[:-3]) * math.prod(ras_shape))
    region = region or Region.whole(values.shape[-3:])
    reach = reach_of(region, ras_shape)
    part, outside = resample_from(values, region, reach, device)
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
    """Class indices -> the values of the data set's label files, in the smallest integer type."""
    values = np.asarray(label_values)
    return Volume(values.astype(np.min_scalar_type(int(values.max())))[indices], affine)


def _ras_shape(shape: Sequence[int], affine: np.ndarray) -> tuple[int, int, int]:
    return to_ras(Volume(np.empty((0, *shape), np.uint8), affine)).shape  # no voxel is moved
