"""Every shape of the project, stated once.

Letters: B batch, C channels, K classes (class 0 = background), G query groups, N queries, (X, Y, Z)
voxels in the array order of the file's affine. World coordinates are RAS+ millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Callbacks that report the progress of a long job:
CountProgress = Callable[[int, int], None]  # done, of how many
CaseProgress = Callable[[str, int, int], None]  # what, cases done, of how many
# what, done, of how many, figures
TrainProgress = Callable[[str, int, int, dict[str, float]], None]

Stride = tuple[int, int, int]  # along X, Y, Z
Strides = tuple[Stride, Stride, Stride, Stride]
THICK = 3.0  # edges over the shortest: no view turns or scales across slices that are thicker
Flat = tuple[bool, bool, bool]  # whether kernels do not look along (X, Y, Z)
LevelsFlat = tuple[Flat, Flat, Flat, Flat, Flat]  # at full resolution, and after each reduction
NOT_FLAT: Flat = (False, False, False)
NEVER_FLAT: LevelsFlat = (NOT_FLAT,) * 5
HALVINGS: Strides = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))  # the paper's
IGNORE = "ignore"  # in the place of a class: a value of voxels that nobody labelled, as in nnU-Net
IGNORED = 255  # in stored class indices: a voxel of which nobody said what it is


@dataclass(frozen=True)
class Volume:
    """A scan or a label map with its place in the world.

    array: (X, Y, Z), or (C, X, Y, Z) for a scan of several channels.
    affine: (4, 4) float64, voxel index (x, y, z, 1) -> RAS+ world in mm.
    modality: "CT", "MR", ... of a scan that was read from DICOM; empty where the file does not say.
    nifti: what the NIfTI header of the scan's own file says of its place, a header that is blank
    otherwise; empty for other files. A map on the same grid is written with it: programs differ in
    which of its fields they read.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = ""
    nifti: bytes = b""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z, without the channels."""
        x, y, z = self.array.shape[-3:]
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Length of a voxel's edges along X, Y, Z in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z


@dataclass(frozen=True)
class Case:
    """One patient's scan in a source folder. `label` is None where the case is unlabelled.

    images: one file per channel in channel order, or a single file that holds all channels, or a
    folder or zip of DICOM. label: may be the very file of the image, where one file holds both
    (h5). raters: the labels of all raters, where there are several. series_uid: which series, where
    the image is a DICOM folder or zip of several; None: the only one.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    series_uid: str | None = None
    raters: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Source:
    """A folder of scans as a layout found it.

    channels: names of the channels ("MRI", "CT"); "CT" in a name chooses the CT normalisation.
    labels: class name -> value in the label files, background first; None where the layout does not
    say (`prepare` then takes the values that it finds). ignore: the value of voxels that nobody
    labelled. not_labelled: name of a case -> structures that nobody outlined in it. regions: see
    `core.schemas`. same: further values in the label files -> the value of their class.
    mean_of_raters: whether all raters of a case teach.
    """

    layout: str
    folder: Path
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = ("image",)
    labels: dict[str, int] | None = None
    ignore: int | None = None
    not_labelled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    same: Mapping[int, int] = field(default_factory=dict)
    mean_of_raters: bool = False

    @property
    def named_values(self) -> dict[str, int] | None:
        """`labels`, and "ignore" among them where it is in use."""
        more = {} if self.ignore is None else {IGNORE: self.ignore}
        return None if self.labels is None else self.labels | more


def structures_of(
    labels: Mapping[str, int], regions: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Name -> indices of classes, of each region or, where there are none, of each class.

    labels: class name -> value, background first.
    """
    if not regions:
        return {name: (index,) for index, name in enumerate(labels) if index}
    return {
        name: tuple(index for index, value in enumerate(labels.values()) if value in values)
        for name, values in regions.items()
    }


@dataclass(frozen=True)
class Group:
    """A group of queries: the classes that it stands for and how many queries it owns."""

    name: str
    classes: tuple[int, ...]
    queries: int


@dataclass(frozen=True)
class NetworkShape:
    """What a data set asks of a network: channels in, classes out, groups of queries.

    strides: of each of the four reductions, voxels along (X, Y, Z) that become one, each 1 or 2.
    flat: axes along which no kernel looks, at full resolution and after each reduction: there each
    slice is seen by itself.
    merged: what the label values from `classes` on mean: a voxel of the first of them is of one of
    the classes in merged[0], and its label does not say of which.
    """

    in_channels: int
    classes: int
    groups: tuple[Group, ...]
    strides: Strides = HALVINGS
    flat: LevelsFlat = NEVER_FLAT
    merged: tuple[tuple[int, ...], ...] = ()

    @property
    def divisor(self) -> Stride:
        """What the edges (X, Y, Z) of a patch must be multiples of."""
        return divisor_of(self.strides)


def divisor_of(strides: Strides) -> Stride:
    """What edges (X, Y, Z) must be multiples of so that all four reductions come out even."""
    x, y, z = map(math.prod, zip(*strides, strict=True))
    return x, y, z


@dataclass
class Output:
    """What a network returns.

    logits: (B, K, X, Y, Z) segmentation logits. group_prob: (B, G, X, Y, Z) the grouped assignment,
    a distribution over groups at every voxel; None without queries. layer_group_prob: the same from
    each kMaX layer at its own scale, (B, G, x, y, z) each. features: (B, C', X, Y, Z) the voxel
    features under the head, for methods that put a head of their own on them. uncertainty: (B, X,
    Y, Z) in [0, 1], where the predictor has something to say.
    """

    logits: Tensor
    group_prob: Tensor | None = None
    layer_group_prob: tuple[Tensor, ...] = ()
    features: Tensor | None = None
    uncertainty: Tensor | None = None


def plane_of_slices(edges: Sequence[float]) -> tuple[int, int]:
    """The two axes of the plane of slices, by the edges of a voxel: across the longest, or Z."""
    across = 2 if 1.01 * edges[2] >= max(edges) else list(edges).index(max(edges))
    u, v = (axis for axis in range(3) if axis != across)
    return u, v


@dataclass
class Views:
    """Two views of the same patches: their voxels are the same places.

    weak, strong: (B, C, X, Y, Z) float. label: (B, X, Y, Z) int64 class indices, and those of
    `NetworkShape.merged` after them; None for unlabelled patches. edges: of a voxel along (X, Y,
    Z), the shortest is 1.
    """

    weak: Tensor
    strong: Tensor
    label: Tensor | None = None
    edges: tuple[float, ...] = (1.0, 1.0, 1.0)


def unchanged(image: Tensor) -> Tensor:
    """The image itself."""
    return image


@dataclass
class Batch:
    """What one training step sees. `unlabelled` is None where the run has no unlabelled cases.

    strengthen: changes the intensities of images (B, C, X, Y, Z) as those of strong views are
    changed, drawn anew for each from torch's own generator. A method that mixes patches mixes weak
    views and then calls it: views with intensities of their own would show the seam.
    """

    labelled: Views
    unlabelled: Views | None = None
    strengthen: Callable[[Tensor], Tensor] = unchanged

    @property
    def label(self) -> Tensor:
        """The class indices of the labelled patches, (B, X, Y, Z) int64, see `Views.label`."""
        if self.labelled.label is None:
            raise ValueError("the labelled patches of this batch have no label")
        return self.labelled.label
