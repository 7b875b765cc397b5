"""Synthetic scans with ground truth, for the demonstration and the tests.

A bright ellipsoidal organ with a tumour in it, in a noisy body with distractors. Scans differ in
size, spacing, orientation and contrast, as real ones do.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from dkuxnet.core.types import Volume
from dkuxnet.data import formats

LABELS = {"background": 0, "organ": 1, "tumour": 2}
SPACING_MM = 2.5


def make_case(rng: np.random.Generator, size: int = 48) -> tuple[Volume, Volume]:
    """A scan (X, Y, Z) int16 and its label map uint8 with the values of LABELS.

    size: voxels along each edge; their own edges are SPACING_MM long. Both vary by a tenth.
    """
    shape = tuple(int(n) for n in rng.integers(int(size * 0.9), int(size * 1.1) + 1, 3))
    spacing = SPACING_MM * rng.uniform(0.9, 1.1, 3)
    extent = np.multiply(shape, spacing)
    axes = [np.arange(n) * s for n, s in zip(shape, spacing, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    # No organ is a perfect ellipsoid.
    points = points + _smooth_noise(rng, shape, 3)[..., None] * 0.04 * extent.mean()

    body = _inside(points, extent / 2, extent * 0.46)
    centre = extent * rng.uniform(0.42, 0.58, 3)
    radii = extent.mean() * rng.uniform(0.16, 0.24, 3)
    organ = _inside(points, centre, radii, _rotation(rng)) & body
    offset = rng.normal(size=3)
    tumour = organ & _inside(
        points,
        centre + 0.6 * radii * offset / np.linalg.norm(offset),
        radii.mean() * rng.uniform(0.5, 0.7, 3),
    )

    image = np.where(body, 300.0, 0.0)
    # Other organs, some of the same brightness: position and shape must decide, not a threshold.
    for _ in range(3):
        place = extent * rng.uniform(0.2, 0.8, 3)
        brightness = 300 + rng.uniform(60, 180)
        other = _inside(points, place, extent.mean() * rng.uniform(0.06, 0.12, 3))
        image[other & body & ~organ] = brightness
    image[organ] = 300 + rng.uniform(160, 240)
    image[tumour] = 300 - rng.uniform(60, 140)
    image = gaussian_filter(image, 0.7) * np.exp(0.25 * _smooth_noise(rng, shape, 2))
    image = rng.uniform(0.8, 1.25) * image + rng.normal(0, 35, shape)

    label = np.zeros(shape, np.uint8)
    label[organ], label[tumour] = LABELS["organ"], LABELS["tumour"]
    affine = np.eye(4)
    # Scanners store axes in either direction.
    affine[:3, :3] = np.diag(spacing * rng.choice([-1.0, 1.0], 3))
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return Volume(image.round().astype(np.int16), affine), Volume(label, affine)


def write_dataset(
    folder: Path, cases: int = 16, labelled: int = 4, seed: int = 0, size: int = 48
) -> Path:
    """Write a data set of synthetic scans in nnU-Net's layout; returns `folder`.

    Only the first `labelled` cases have a label file in labelsTr. The truth of all others is in
    labelsHidden, where only an evaluation looks.
    """
    folder = Path(folder)
    for name in ("imagesTr", "labelsTr", "labelsHidden"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(cases):
        image, label = make_case(np.random.default_rng((seed, i)), size)
        formats.write(image, folder / "imagesTr" / f"phantom_{i:03d}_0000.nii.gz")
        truth = "labelsTr" if i < labelled else "labelsHidden"
        formats.write(label, folder / truth / f"phantom_{i:03d}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1), "utf-8")
    return folder


def _inside(
    points: NDArray[Any],
    centre: NDArray[Any],
    radii: NDArray[Any],
    rotation: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Which points (X, Y, Z, 3), in mm, lie in the ellipsoid."""
    away = points - centre
    away = away if rotation is None else away @ rotation
    return np.asarray((away**2 / radii**2).sum(-1) <= 1)


def _rotation(rng: np.random.Generator) -> NDArray[Any]:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return rotation


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> NDArray[Any]:
    """Smooth noise (X, Y, Z) from a few random knots, with a standard deviation of about 1."""
    coarse = rng.normal(size=(knots + 2,) * 3)
    factors = np.divide(shape, coarse.shape)
    return np.asarray(zoom(coarse, factors, order=2, mode="nearest", grid_mode=True))
