"""A test case to be shown: scan, truth, prediction and the evaluation's maps, in RAS order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.data.prepared_set import PreparedSet

MARGIN_MM = 25.0  # of the scan around what is outlined


@dataclass(frozen=True)
class ShownCase:
    """A case on one grid.

    image: (X, Y, Z). truth, prediction: (X, Y, Z) class indices. affine: (4, 4), of that grid.
    uncertainty: (x, y, z) in [0, 1] on another grid over the same box, None where the run has none.
    groups: name of a query group -> its share of each voxel, likewise; empty without queries.
    oriented: False where the file says nothing about the patient's left and right. note: what a
    reader should know.
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    affine: np.ndarray
    uncertainty: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    oriented: bool = True
    note: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel."""
        return Volume(self.image, self.affine).spacing_mm


@dataclass(frozen=True)
class Map:
    """A value for every voxel.

    key: the same in every case. title: with the range of values. values: (x, y, z) from 0 to 1,
    where 1 is what the title calls the top.
    """

    key: str
    title: str
    values: np.ndarray


def maps_of(case: ShownCase) -> list[Map]:
    """Uncertainty, stretched to its own top since it seldom comes near 1, and query groups.

    Empty where a run kept neither.
    """
    found = []
    if case.uncertainty is not None:
        top = max(float(case.uncertainty.max()), 0.01)
        found.append(Map("Uncertainty", f"Uncertainty, 0 to {top:.2f}", case.uncertainty / top))
    return found + [
        Map(f"Queries of {name}", f"Queries of {name}, 0 to 1", share)
        for name, share in case.groups.items()
    ]


def load_case(data: PreparedSet, name: str, prediction_file: Path, manifest: Manifest) -> ShownCase:
    """Load a test case on its scan's grid or, where the scan cannot be read, on the network's.

    manifest: of the run. Raises UserError where a part is missing.
    """
    info, labels = data.info(name), manifest.labels
    affine, shape = np.array(info.affine), info.shape
    stored = formats.read(prediction_file, kind="label").array
    if stored.shape != shape:
        raise UserError(
            f"its prediction has {stored.shape} voxels, its scan {shape}: they are not of one "
            "preparation"
        )
    indices = np.zeros(shape, np.uint8)
    for index, value in enumerate(labels.values()):
        indices[stored == value] = index
    prediction = to_ras(Volume(indices, affine))
    more = read_maps(prediction_file, manifest) | {"oriented": info.oriented}
    scan = _read_scan(info.images[0], shape)
    if scan is not None:
        volume = to_ras(Volume(scan, affine))
        truth = to_ras(Volume(_named(data.array(name, "truth"), labels), affine)).array
        return ShownCase(volume.array, truth, prediction.array, volume.affine, **more)
    image = data.array(name, "image")[0]
    return ShownCase(
        image,
        _named(data.array(name, "label"), labels),
        resample_label(prediction.array, image.shape, len(labels)),
        np.array(info.prepared_affine),
        **more,
        note="The scan's file cannot be read any more; shown is the scan as the network saw it, "
        "resampled, while Dice was measured on the scan's own voxels.",
    )


def _named(label: np.ndarray, labels: Mapping[str, int]) -> np.ndarray:
    """A stored label with background where nobody labelled."""
    return np.where(label < len(labels), label, 0).astype(np.uint8)


def read_maps(prediction_file: Path, manifest: Manifest) -> dict[str, Any]:
    """Read the maps that the evaluation kept of a case: arguments of `ShownCase`.

    Runs of older versions have none, and a map that cannot be read costs its layer only.
    """
    folder = prediction_file.parent.parent / "maps"
    found: dict[str, Any] = {}
    for kind in ("uncertainty", "groups"):
        try:
            found[kind] = (
                formats.read(folder / kind / prediction_file.name).array.astype(np.float32) / 255
            )
        except UserError:
            continue
    if "groups" in found:
        names = [group.name for group in manifest.network_shape.groups]
        known = len(names) == len(found["groups"])
        found["groups"] = dict(zip(names, found["groups"], strict=True)) if known else {}
    return found


def _read_scan(path: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The first channel (X, Y, Z); None where the file is gone or of another shape."""
    try:
        array = formats.read(path).array
    except UserError:
        return None
    array = array[0] if array.ndim == 4 else array
    return array if array.shape == shape else None


def box_around(case: ShownCase) -> tuple[slice, ...]:
    """The part of the scan around all outlines, with a margin; all of it without outlines."""
    outlined = (case.truth > 0) | (case.prediction > 0)
    found = find_objects(outlined.view(np.uint8))
    if not found:
        return tuple(slice(0, size) for size in outlined.shape)
    margins = [round(MARGIN_MM / spacing) for spacing in case.spacing_mm]
    return tuple(
        slice(max(part.start - margin, 0), min(part.stop + margin, size))
        for part, margin, size in zip(found[0], margins, outlined.shape, strict=True)
    )
