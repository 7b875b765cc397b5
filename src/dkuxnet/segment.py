"""The model of a finished run, loaded once, for scan after scan: a volume in, the segmentation on its own grid out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dkuxnet.errors import UserError
from dkuxnet.experiment import load_predictor
from dkuxnet.infer import check_memory, grid_bytes, label_on_scan, label_volume, map_on_scan, sliding_window
from dkuxnet.prepare import network_shape_of, to_network_grid
from dkuxnet.types import Volume


@dataclass(frozen=True)
class Segmentation:
    """On the scan's own grid. label: (X, Y, Z), with the label values of the training data. probabilities: (K, X, Y, Z)
    float32, uncertainty: (X, Y, Z) float32 in [0, 1]; None where not asked for."""

    label: Volume
    probabilities: Volume | None = None
    uncertainty: Volume | None = None


class Segmenter:
    """labels: class name -> value in the label maps, background first. channels: names of those that a scan must have."""

    def __init__(self, run: Path, weights: str = "final", device: str = "auto"):
        """weights: "final" or "best". Raises UserError where `run` is no finished run or the device is not there."""
        self.predictor, self.settings, manifest = load_predictor(run, weights, device)
        self.labels: dict[str, int] = manifest["labels"]
        self.channels: list[str] = manifest["channels"]
        self.plan, self.patch = manifest["plan"], manifest["patch"]
        self.device = next(self.predictor.parameters()).device

    def network_shape(self, scan: Volume) -> tuple[int, ...]:
        """Voxels (X, Y, Z) that the scan has for the network."""
        return network_shape_of(scan, self.plan)

    def needed_bytes(self, scan: Volume, probabilities: bool = False, uncertainty: bool = False) -> int:
        """Memory that segmenting `scan` takes, about."""
        grid = grid_bytes(self.network_shape(scan), self.patch, len(self.channels), len(self.labels), uncertainty)
        return grid + 4 * math.prod(scan.shape) * (1 + 2 * uncertainty + 2 * len(self.labels) * probabilities)

    def __call__(self, scan: Volume, probabilities: bool = False, uncertainty: bool = False,
                 progress: Callable[[int, int], None] | None = None) -> Segmentation:
        """scan: (C, X, Y, Z) float32, finite. progress: see `sliding_window`. Raises UserError where the memory does not
        suffice."""
        check_memory(self.needed_bytes(scan, probabilities, uncertainty))
        try:
            result = sliding_window(self.predictor, to_network_grid(scan, self.plan).array, self.patch, len(self.labels),
                                    self.settings.infer, self.device, uncertainty, progress=progress)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError("out of memory; use --device cpu, or a smaller infer.batch") from error
        label = label_on_scan(result.prob, scan.shape, scan.affine, self.settings.infer.largest_component)
        maps = {"probabilities": result.prob if probabilities else None, "uncertainty": result.uncertainty}
        return Segmentation(
            label_volume(label, scan.affine, list(self.labels.values())),
            **{kind: None if values is None else Volume(map_on_scan(values, scan.shape, scan.affine), scan.affine)
               for kind, values in maps.items()},
        )
