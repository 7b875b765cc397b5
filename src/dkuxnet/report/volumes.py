"""A case as layers for the viewer in the page: cropped and capped, on one grid, in 8 bits."""

import base64
import gzip
from typing import Any

import numpy as np
from nibabel import Nifti1Image

from dkuxnet.data.geometry import resample, resample_label, resampled_affine
from dkuxnet.report.case import ShownCase, box_around, maps_of
from dkuxnet.report.pictures import PREDICTION, TRUTH, class_colours
from dkuxnet.report.slices import centre_of, window_of

# most voxels along an edge: the first with which all cases keep to MOST_CHARACTERS
EDGES = (192, 144, 108, 80, 60)
MOST_CHARACTERS = 10_000_000  # all else on a page takes at most about 14 million
MAP_STEPS = 32  # from 0 to 1 of a map: fine enough for the eye, and packs well


def layers_of_cases(cases: list[ShownCase], class_names: list[str]) -> list[dict[str, Any]]:
    """What the viewer needs of every case: see `layers_of`. class_names: background first."""
    shown: list[dict[str, Any]] = []
    for edge in EDGES:
        shown = [layers_of(case, class_names, edge) for case in cases]
        if sum(len(layer["data"]) for case in shown for layer in case["layers"]) <= MOST_CHARACTERS:
            break
    return shown


def layers_of(case: ShownCase, class_names: list[str], edge: int) -> dict[str, Any]:
    """The part of a case around what is outlined, on at most `edge` voxels an edge.

    oriented: as in the case. centre: where the viewer begins, as shares of the grid. layers: each
    with kind ("scan", "label" or "map"), key (the same in every case), name, colours (hex, of a
    label's values from 1), outline (of a label: not filled) and data (gzipped NIfTI in base64).
    """
    box = box_around(case)
    cut = tuple(part.stop - part.start for part in box)
    shape = capped(cut, case.spacing_mm, edge)
    affine = affine_of(case, box, shape)
    low, high = window_of(case.image[box])
    scan = (resample(case.image[box], shape) - low) / max(high - low, 1e-6)
    layers: list[dict[str, Any]] = [
        {"kind": "scan", "key": "Scan", "name": "Scan", "data": encode(255 * scan, affine)}
    ]
    for name, label, colour in (
        ("Truth", case.truth, TRUTH),
        ("Prediction", case.prediction, PREDICTION),
    ):
        layers.append(
            {
                "kind": "label",
                "key": name,
                "name": name,
                "colours": [colour]
                if len(class_names) == 2
                else class_colours(len(class_names) - 1),
                "outline": name == "Truth",
                "data": encode(resample_label(label[box], shape, len(class_names)), affine),
            }
        )
    for each in maps_of(case):
        values = resample(resample(each.values, case.image.shape)[box], shape)
        steps = np.rint(values * (MAP_STEPS - 1)) * (255 / (MAP_STEPS - 1))
        layers.append(
            {"kind": "map", "key": each.key, "name": each.title, "data": encode(steps, affine)}
        )
    centre = [(place + 0.5) / n for place, n in zip(centre_of(case, box), cut, strict=True)]
    return {"oriented": case.oriented, "centre": centre, "layers": layers}


def capped(shape: tuple[int, ...], spacing_mm: tuple[float, ...], edge: int) -> tuple[int, ...]:
    """The shape over the same box with at most `edge` voxels an edge, and no more than before."""
    lengths = [n * spacing for n, spacing in zip(shape, spacing_mm, strict=True)]
    finest = max(lengths) / edge
    return tuple(
        n if spacing >= finest else max(1, round(length / finest))
        for n, spacing, length in zip(shape, spacing_mm, lengths, strict=True)
    )


def affine_of(case: ShownCase, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The affine (4, 4) of a grid of `shape` voxels over the part `box` of the case.

    Where the file does not say how the patient lies, y runs down the axial slice, as in the
    pictures.
    """
    moved = case.affine.copy()
    moved[:3, 3] += case.affine[:3, :3] @ [part.start for part in box]
    affine = resampled_affine(moved, [part.stop - part.start for part in box], shape)
    return affine if case.oriented else np.diag([1.0, -1.0, 1.0, 1.0]) @ affine


def encode(values: np.ndarray, affine: np.ndarray) -> str:
    """Values (X, Y, Z), rounded and clipped to 0 .. 255, as gzipped NIfTI in base64.

    The same voxels give the same text.
    """
    voxels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    image = Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]  # nibabel's
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")
