"""What is done with a scan: check, segment, measure, write the label map and the page's views."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.confidence import unsure
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.prediction.segment import Segmentation, Segmenter
from dkuxnet.serve.headers import check_edges, check_voxels
from dkuxnet.serve.keep import keep_result
from dkuxnet.serve.names import without_folders, without_paths
from dkuxnet.serve.reading import ReadScan
from dkuxnet.serve.tasks import Task
from dkuxnet.serve.view import LABEL, MAX_DRAWN_VOXELS, focus, view_path, write_views

COARSE = 2.0  # times the model's spacing


@dataclass(frozen=True)
class Work:
    """Segments one scan after another.

    read: gives the scan of a task. max_voxels: see `Limits`. keep: folder for a copy of every scan
    that was sent, and its result. read_label: gives the label of a task of the label folder.
    """

    segmenter: Segmenter
    read: Callable[[Task], ReadScan]
    max_voxels: int
    keep: Path | None = None
    read_label: Callable[[Task], ReadScan] | None = None

    def __call__(self, task: Task) -> dict[str, Any]:
        """Segment the scan of `task`; returns the results as JSON.

        task.folder then holds the label map and the page's views. Raises UserError.
        """
        started = time.monotonic()
        task.report("reading")
        read = self.read(task)
        scan = read.volume
        grid = self.segmenter.network_shape(scan)
        check_edges(scan.shape, "in its file")
        check_edges(grid, "at the spacing of the model")
        check_voxels(math.prod(grid), self.max_voxels, "at the spacing of the model")
        if task.to_label and math.prod(scan.shape) > MAX_DRAWN_VOXELS:
            raise UserError(
                f"this scan has {math.prod(scan.shape):,} voxels, and the page draws on "
                f"{MAX_DRAWN_VOXELS:,} at most; correct it in 3D Slicer"
            )
        task.report("segmenting")
        result = self.segmenter(
            scan,
            uncertainty=True,
            progress=lambda done, total: task.report("segmenting", done, total),
        )
        task.report("writing")
        results = self._results(task, read, result)
        results["seconds"] = round(time.monotonic() - started, 1)
        if self.keep and task.case is None:
            keep_result(self.keep, task, results)
        return results

    def _results(self, task: Task, read: ReadScan, result: Segmentation) -> dict[str, Any]:
        """Write what task.folder is to hold."""
        scan, told = (
            read.volume,
            [without_paths(text, task.files[0], task.name) for text in read.told],
        )
        names, uncertainty = list(self.segmenter.labels), cast(Volume, result.uncertainty).array
        indices = self._indices(result.label.array)
        as_indices = Volume(indices, scan.affine, nifti=scan.nifti)
        formats.write(as_indices if task.as_indices else result.label, task.label)
        step = write_views(scan, indices, uncertainty, task.folder, whole=task.to_label)
        missing = self._write_drawn(task)
        return {
            "shape": list(scan.shape),
            "oriented": read.oriented,
            "spacing_mm": [round(s, 4) for s in scan.spacing_mm],
            "step": list(step),
            "drawn": view_path(task.folder, LABEL).exists(),
            "focus": focus(indices, step),
            "classes": measured(names, indices, scan, result.confidence),
            "warnings": [
                *(f"{text[0].upper()}{text[1:]}." for text in told),
                *scan_warnings(read.oriented, scan, self.segmenter.plan.spacing_mm),
                *class_warnings(names, indices),
                *doubts(result.confidence),
                *(f"{flag[0].upper()}{flag[1:]}." for flag in result.trust.flags),
                *missing,
            ],
        }

    def _write_drawn(self, task: Task) -> list[str]:
        """Write the view of the label that is there already, if any; or say why there is none."""
        if not (self.read_label and task.to_label and task.case and task.case.label):
            return []
        try:
            label = self.read_label(task).volume
        except UserError as error:
            return [f"The label of this scan cannot be shown: {without_folders(str(error))}."]
        array = self._indices(label.array[0])
        formats.write(Volume(array, label.affine), view_path(task.folder, LABEL))
        return []

    def _indices(self, label: NDArray[Any]) -> NDArray[Any]:
        """Label values -> class indices."""
        indices = np.zeros(label.shape, np.uint8)
        for index, value in enumerate(self.segmenter.labels.values()):
            indices[label == value] = index
        return indices


def measured(
    names: list[str], indices: NDArray[Any], scan: Volume, confidence: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Voxels, volume in ml and confidence of each class except the background.

    confidence: see `core.confidence`; None where a class was not found.
    """
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    counts = np.bincount(indices.ravel(), minlength=len(names))
    return [
        {
            "name": name,
            "index": i,
            "voxels": int(counts[i]),
            "volume_ml": round(float(counts[i] * voxel_ml), 3),
            "confidence": None if math.isnan(sure := confidence.get(name, math.nan)) else sure,
        }
        for i, name in enumerate(names[1:], 1)
    ]


def scan_warnings(oriented: bool, scan: Volume, model_spacing_mm: Sequence[float]) -> list[str]:
    """What about the scan itself makes the result doubtful, in words for the page.

    oriented: see `Answer`.
    """
    found = []
    if not oriented:
        found.append(
            "This h5 file does not say how large its voxels are, nor how the patient lies: 0.625 "
            "mm was assumed. If that is wrong, so are the volumes, and the segmentation may be "
            "poor."
        )
    if max(scan.spacing_mm) > COARSE * max(model_spacing_mm):
        found.append(
            f"The voxels of this scan are up to {max(scan.spacing_mm):.1f} mm long, much coarser "
            f"than the {max(model_spacing_mm):.1f} mm that the model works with. Expect a poorer "
            "result."
        )
    return found


def doubts(confidence: Mapping[str, float]) -> list[str]:
    """What `core.confidence` has to say, for the page."""
    doubt = unsure(confidence)
    return [f"{doubt[0].upper()}{doubt[1:]}. Look at the uncertainty layer."] if doubt else []


def class_warnings(names: list[str], indices: NDArray[Any]) -> list[str]:
    """What about the segmentation should be looked at, in words for the page."""
    found = []
    faces = [indices.take(edge, axis) for axis in range(3) for edge in (0, -1)]
    for i, name in enumerate(names[1:], 1):
        voxels = indices == i
        if not voxels.any():
            found.append(f"No {name} was found in this scan.")
            continue
        if any((face == i).any() for face in faces):
            found.append(
                f"{name} reaches the edge of the scan: part of it may lie outside, and its volume "
                "be too small."
            )
    return found
