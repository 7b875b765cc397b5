"""One test case, loaded to be shown: scan, truth, prediction and the maps of the evaluation, all
in RAS order.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.data.prepared_set import PreparedSet

MARGIN_MM = 25.0  # of the scan around what is outlined


@dataclass(frozen=True)
class ShownCase:
    """image: (X, Y, Z). truth, prediction: (X, Y, Z) class indices on the same grid. affine: (4,
    4), of that grid.

    uncertainty: (x, y, z) in [0, 1] on a grid over the same box, None where the run has none.
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
        return Volume(self.image, self.affine).spacing_mm


@dataclass(frozen=True)
class Map:
    """Something known of every voxel: `key` is the same in every case, `title` is not. values: (x,
    y, z) from 0 to 1, where 1 is what the title calls the top.
    """

    key: str
    title: str
    values: np.ndarray


def maps_of(case: ShownCase) -> list[Map]:
    """Uncertainty, stretched to its own top since it seldom comes near 1, and the query groups;
    empty where a run kept none.
    """
    found = []
    if case.uncertainty is not None:
        top = max(float(case.uncertainty.max()), 0.01)
        found.append(Map("Uncertainty", f"Uncertainty, 0 to {top:.2f}", case.uncertainty / top))
    return found + [
        Map(f"Queries of {name}", f"Queries of {name}, 0 to 1", share)
        for name, share in case.groups.items()
    ]


def load_case(
    data: PreparedSet, name: str, prediction_file: Path, manifest: Manifest
) -> ShownCase:
    """A test case on its scan's grid or, where the scan cannot be read any more, on the network's.

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
        image, truth = (
            to_ras(Volume(scan, affine)),
            to_ras(Volume(data.array(name, "truth"), affine)),
        )
        return ShownCase(image.array, truth.array, prediction.array, image.affine, **more)
    image, truth = data.array(name, "image")[0], data.array(name, "label")
    shown = resample_label(prediction.array, image.shape, len(labels))
    return ShownCase(
        image,
        truth,
        shown,
        np.array(info.prepared_affine),
        **more,
        note="The scan's file cannot be read any more; shown is the scan as the network saw it, "
        "resampled, while "
        "Dice was measured on the scan's own voxels.",
    )


def read_maps(prediction_file: Path, manifest: Manifest) -> dict[str, Any]:
    """The maps that the evaluation kept of a case, as `ShownCase` holds them.

    A run from before it did has none, and a map that cannot be read costs its layer only.
    """
    folder, found = prediction_file.parent.parent / "maps", {}
    for kind in ("uncertainty", "groups"):
        try:
            found[kind] = (
                formats.read(folder / kind / prediction_file.name).array.astype(np.float32) / 255
            )
        except UserError:
            continue
    if "groups" in found:
        names = [group.name for group in manifest.network_shape.groups]
        found["groups"] = (
            dict(zip(names, found["groups"], strict=False))
            if len(names) == len(found["groups"])
            else {}
        )
    return found


def _read_scan(path: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """(X, Y, Z), the first channel; None where the file is gone or another one."""
    try:
        array = formats.read(path).array
    except UserError:
        return None
    array = array[0] if array.ndim == 4 else array
    return array if array.shape == shape else None


def box_around(case: ShownCase) -> tuple[slice, ...]:
    """The part of the scan that holds every outline, with a margin; all of it where there is none."""
    outlined = (case.truth > 0) | (case.prediction > 0)
    box = []
    for axis, spacing in enumerate(case.spacing_mm):
        occupied = np.flatnonzero(outlined.any(axis=tuple(a for a in range(3) if a != axis)))
        margin, size = round(MARGIN_MM / spacing), outlined.shape[axis]
        box.append(
            slice(max(int(occupied[0]) - margin, 0), min(int(occupied[-1]) + 1 + margin, size))
            if occupied.size
            else slice(0, size)
        )
    return tuple(box)
