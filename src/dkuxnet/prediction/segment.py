"""The model of a run, loaded once: a volume in, its segmentation on its own grid out."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dkuxnet.core.confidence import structure_confidence, structure_volumes
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import CountProgress, Volume
from dkuxnet.data.geometry import Region, resample_region
from dkuxnet.data.network_grid import (
    extent_mm_of,
    network_shape_of,
    region_on_network_grid,
    to_network_grid,
)
from dkuxnet.machine.devices import telling_device_errors
from dkuxnet.machine.memory import check_memory
from dkuxnet.models.components import Cleaning
from dkuxnet.prediction.localise import foreground_box, region_around
from dkuxnet.prediction.predictor import load_predictor, predicting
from dkuxnet.prediction.refine import refine
from dkuxnet.prediction.trust import Judge, Trust
from dkuxnet.prediction.tta import check_views, views_of
from dkuxnet.prediction.windows import (
    GridPrediction,
    Windows,
    entropy,
    label_on_scan,
    label_volume,
    map_on_scan,
    sliding_window,
)
from dkuxnet.runs.folder import RunFolder
from dkuxnet.runs.folds import runs_in

MARGIN_MM = 20.0


@dataclass(frozen=True)
class Segmentation:
    """On the scan's own grid: the label (X, Y, Z), with the label values of the training data.

    probabilities: (K, X, Y, Z) float32, uncertainty: (X, Y, Z) float32 in [0, 1]; None where not
    asked for. confidence: of each class or region, see `core.confidence`. trust: what the
    training scans make of it, see `prediction.trust`. volumes_ml: of each class that was found.
    signature: see `prediction.signature`; None where a region alone was looked at. notes: what was
    warned of, without the scan's name and place.
    """

    label: Volume
    probabilities: Volume | None = None
    uncertainty: Volume | None = None
    confidence: dict[str, float] = field(default_factory=dict)
    trust: Trust = field(default_factory=Trust)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    signature: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class Segmenter:
    """Segments scan after scan.

    name, version: of the model: its runs, and when and how long the first was trained. labels:
    class name -> value in the label maps, background first. structures, scored, description: of
    these, see `core.schemas.Manifest`. channels: names of those that a scan
    must have. coarse: the Segmenter of the coarse stage, None without one. localiser: the Segmenter
    of the coarse run that chooses where to look, None where the whole scan is looked at.
    """

    def __init__(
        self,
        run: Path,
        weights: str | None = None,
        device: str = "auto",
        localiser: Path | None = None,
        margin_mm: float | None = None,
        others: Sequence[Path] = (),
        infer: Mapping[str, Any] | None = None,
    ):
        """weights: "final" or "best"; by default the run's own, see `RunFolder.choose_weights`.

        run: a cross-validation stands for all its runs, see `runs.folds`. others: finished runs of
        the same labels and channels, on any grid, whose probabilities are averaged with those of
        `run`. What is said of a scan beside that is from `run`, or the first there.
        localiser: a finished run of the same labels and channels on a grid that is no finer; the
        region is the box around what it finds, with `margin_mm` (None: MARGIN_MM) on each side.
        infer: settings of `InferSettings` that are otherwise here than in the runs, for all of them
        and both of their stages. A DataWarning tells of views that the training did not show.
        Raises UserError where `run` is no finished run or the device is not there, where the
        localiser or one of the others does not fit, and for a margin without a localiser.
        """
        named = [Path(each).resolve().name for each in (run, *others)]
        run, *others = [each for given in (run, *others) for each in runs_in(Path(given))]
        if others and localiser is not None:
            raise UserError(
                "--localise looks at a part of a scan, --with at all of it: leave one of them out"
            )
        if margin_mm is not None and localiser is None:
            raise UserError(
                "--margin-mm is around what a coarse run finds: name that with --localise, or "
                "leave the margin out"
            )
        margin_mm = MARGIN_MM if margin_mm is None else margin_mm
        if not 0 <= margin_mm < math.inf:
            raise UserError(f"--margin-mm must be a number from 0 on, got {margin_mm}")
        self.predictor, settings, manifest = load_predictor(run, weights, device)
        self._infer = dict(infer or {})
        names = list(manifest.labels)
        self.settings = predicting(settings, names, manifest.postprocessing, self._infer)
        chosen, started = RunFolder(run).choose_weights(weights), manifest.machine.started
        self.name = " + ".join(named)
        self.version = f"{started or ''} {manifest.steps_done} steps {chosen}".strip()
        self.labels, self.channels = manifest.labels, manifest.channels
        self.structures, self.scored = manifest.structures, manifest.scored
        self.description = manifest.description
        self.plan, self.patch = manifest.plan, manifest.patch
        self.cleaning = Cleaning.of(self.settings.infer, names)
        for told in check_views(self.settings, names) if "tta" in self._infer else ():
            warnings.warn(f"{run}: {told}", DataWarning, stacklevel=2)
        self.device = next(self.predictor.parameters()).device
        self.judge = Judge(RunFolder(run).reference)
        self.coarse = self._load_coarse(Path(run) / "coarse", device) if manifest.coarse else None
        self.localiser, self.margin_mm = self._load_localiser(localiser, device), margin_mm
        self.others = [self._load_other(each, weights, device) for each in others]

    def network_shape(self, scan: Volume) -> tuple[int, ...]:
        """Voxels (X, Y, Z) that the scan has for the network."""
        return network_shape_of(scan, self.plan)

    def region(self, scan: Volume, name: str = "the scan") -> Region:
        """Where to look, a region of the network's grid. Runs the localiser.

        All of the grid without a localiser, and, with a DataWarning that begins with `name`, where
        the localiser finds nothing.
        """
        grid = self.network_shape(scan)
        if self.localiser is None:
            return Region.whole(grid)
        label = self.localiser.on_network_grid(scan).prob.argmax(axis=0)
        box = foreground_box(label)
        if box is None:
            warnings.warn(
                f"{name}: the localising run finds nothing in it; all of it is segmented",
                DataWarning,
                stacklevel=2,
            )
            return Region.whole(grid)
        return region_around(box, label.shape, grid, extent_mm_of(scan), self.margin_mm, self.patch)

    def needed_bytes(
        self,
        scan: Volume,
        probabilities: bool = False,
        uncertainty: bool = False,
        region: Region | None = None,
    ) -> int:
        """Memory that segmenting `scan` takes, about; of `region` alone where that is given."""
        shape = region.shape if region else self.network_shape(scan)
        channels = len(self.channels) + (2 * len(self.labels) if self.coarse else 0)
        grid = self._windows(uncertainty).needed_bytes(shape, channels)
        kept = 4 * math.prod(shape) * len(self.labels)
        grid = max([grid, *(kept + other.needed_bytes(scan) for other in self.others)])
        maps = 1 + 2 * uncertainty + 2 * len(self.labels) * probabilities
        return grid + 4 * math.prod(scan.shape) * maps

    def on_network_grid(
        self,
        scan: Volume,
        with_uncertainty: bool = False,
        region: Region | None = None,
        progress: CountProgress | None = None,
    ) -> GridPrediction:
        """The prediction on the network's grid, or on a region of it.

        progress: see `sliding_window`. Raises UserError where the memory does not suffice.
        """
        elsewhere = "" if self.device.type == "cpu" else "--device cpu, or "
        with telling_device_errors(lambda: f"use {elsewhere}a smaller infer.batch"):
            if region is None or region.is_whole:
                image = to_network_grid(scan, self.plan, self.device).array
            else:
                image = region_on_network_grid(scan, self.plan, region)
            windows = self._windows(with_uncertainty)
            if self.coarse is None:
                result = sliding_window(self.predictor, image, windows, progress)
            else:
                coarse, share = self.coarse.on_network_grid(scan).prob, self.settings.coarse.share
                result = refine(self.predictor, image, coarse, share, windows, region, progress)
            probs = [other.on_network_grid(scan).prob for other in self.others]
            return together(result, probs) if probs else result

    def __call__(
        self,
        scan: Volume,
        probabilities: bool = False,
        uncertainty: bool = False,
        region: Region | None = None,
        progress: CountProgress | None = None,
    ) -> Segmentation:
        """Segment a scan: (C, X, Y, Z) float32, finite.

        region: what `self.region` gave for this scan, where it was asked already; around it all is
        background, of probability 1 and uncertainty 0. progress: see `sliding_window`. Raises
        UserError where the memory does not suffice.
        """
        region = region or self.region(scan)
        check_memory(self.needed_bytes(scan, probabilities, uncertainty, region))
        result = self.on_network_grid(scan, uncertainty, region, progress)
        shape, affine = scan.shape, scan.affine
        label = label_on_scan(result.prob, shape, affine, self.cleaning, region, self.device)

        def on_scan(values: np.ndarray | None) -> Volume | None:
            if values is None:
                return None
            found = map_on_scan(values, shape, affine, region, self.device)
            return Volume(found, affine, nifti=scan.nifti)

        indices = label_volume(label, affine, list(self.labels.values()))
        confidence = structure_confidence(result.prob, self.structures)
        signature = result.signature if region.is_whole else None
        volumes_ml = self._volumes_ml(label, scan)
        return Segmentation(
            replace(indices, nifti=scan.nifti),
            on_scan(result.prob if probabilities else None),
            on_scan(result.uncertainty),
            confidence,
            self.judge(signature, confidence, volumes_ml),
            volumes_ml,
            signature,
        )

    def _volumes_ml(self, label: np.ndarray, scan: Volume) -> dict[str, float]:
        """Of each class that was found. label: class indices."""
        voxel_ml = math.prod(scan.spacing_mm) / 1000
        counts = np.bincount(label.ravel(), minlength=len(self.labels)).tolist()
        return structure_volumes(counts, self.structures, voxel_ml)

    def _windows(self, with_uncertainty: bool) -> Windows:
        return Windows(
            self.patch,
            len(self.labels),
            self.settings.infer,
            self.device,
            with_uncertainty,
            with_signature=True,
            views=views_of(self.settings, self.plan.spacing_mm),
        )

    def _load_coarse(self, run: Path, device: str) -> "Segmenter":
        manifest = RunFolder.open(run).manifest
        if manifest.coarse or (manifest.labels, manifest.channels) != (self.labels, self.channels):
            raise UserError(
                f"{run} is not the coarse stage of this run: it has other labels or channels, or "
                "two stages itself; copy the whole run again"
            )
        return Segmenter(run, device=device, infer=self._infer)

    def _load_localiser(self, run: Path | None, device: str) -> "Segmenter | None":
        if run is None:
            return None
        coarse = Segmenter(run, device=device)
        self._check_alike(coarse, f"{run} cannot localise")
        ours, theirs = (math.prod(each.plan.spacing_mm) ** (1 / 3) for each in (self, coarse))
        if theirs < 0.999 * ours:
            raise UserError(
                f"{run} cannot localise: its voxels of {theirs:.3g} mm are finer than the "
                f"{ours:.3g} mm of the run that segments; train it on a set prepared at a coarser "
                "--spacing-mm"
            )
        return coarse

    def _load_other(self, run: Path, weights: str | None, device: str) -> "Segmenter":
        other = Segmenter(run, weights, device, infer=self._infer)
        self._check_alike(other, f"{run} cannot be averaged with")
        return other

    def _check_alike(self, other: "Segmenter", what_not: str) -> None:
        for what in ("labels", "channels"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours != theirs:
                raise UserError(
                    f"{what_not}: its {what} are {theirs}, those of the run that segments {ours}; "
                    "train both on the same scans"
                )


def together(result: GridPrediction, others: Sequence[np.ndarray]) -> GridPrediction:
    """The mean of probabilities (K, ...) on several grids of a scan, on that of the first.

    uncertainty, where there is one: how far they disagree, as in `mean_output`.
    """
    grid = Region.whole(result.prob.shape[1:])
    probs = [result.prob, *(resample_region(prob, grid) for prob in others)]
    mean = sum(probs[1:], probs[0]) / len(probs)
    if result.uncertainty is not None:
        entropies = [entropy(prob) for prob in (mean, *probs)]
        apart = entropies[0] - sum(entropies[1:]) / len(probs)
        result.uncertainty = (apart / math.log(len(probs))).clip(0, 1)
    result.prob = mean
    return result
