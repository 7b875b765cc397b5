"""What the coarse stage says of the scans, where the fine one trains.

Of unlabelled cases its own probabilities, predicted once and kept in RUN/coarse/priors. Of labelled
cases these would be better than on any other scan, for it was trained on them: there
`simulated_priors` makes what it may say of a scan that it has never seen. (Training it again and
again without some of its few labels would cost as many trainings, each of a worse model.) A label
that does not say all cannot simulate them: such cases have its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dkuxnet.core.errors import UserError
from dkuxnet.core.shares import draw_uniform
from dkuxnet.data.arrays import read_box
from dkuxnet.data.geometry import Region, resample_region
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.models.methods.blur import gaussian_blur
from dkuxnet.models.methods.outline import outline_displacement, warp

# Errors of a coarse stage, drawn for each patch: how far the outline moves, as a share of the
# organ's radius; how far a smooth field moves it, and how wide it is blurred, in edges of coarse
# voxels; the share of patches in which nothing is found.
OUTLINE, ELASTIC, BLUR, BLANK = 0.3, 1.5, (0.5, 0.9), 0.1


@dataclass(frozen=True)
class Priors:
    """The foreground probabilities of a coarse stage on its own grid, a file a case.

    coarse: the set that the stage was trained on.
    """

    folder: Path
    coarse: PreparedSet

    @property
    def channels(self) -> int:
        """The classes but the background."""
        return len(self.coarse.class_names) - 1

    def crop(
        self, name: str, grid: Sequence[int], start: Sequence[int], shape: Sequence[int]
    ) -> np.ndarray:
        """(K - 1, *shape) float32 from 0 to 1: a box of the fine grid (X, Y, Z) over the case."""
        path = self.path(name)
        try:
            stored = read_box(path, (self.channels, *self.coarse.shape(name)), np.uint8)
        except UserError:
            raise
        except Exception as error:  # blosc2's kind of error depends on the kind of damage
            raise UserError(
                f"case '{name}': {path} is missing or damaged ({error}); delete it and go on with "
                "--resume"
            ) from error
        box = [slice(a, a + n) for a, n in zip(start, shape, strict=True)]
        return resample_region(stored, Region.of(grid, box)) / np.float32(255)

    def path(self, name: str) -> Path:
        """The file of a case."""
        return self.folder / f"{name}.b2nd"


def simulated_priors(
    label: Tensor,
    classes: int,
    generator: torch.Generator,
    edges: Sequence[float],
    coarse_edges: Sequence[float],
) -> Tensor:
    """(B, K - 1, X, Y, Z): what a coarse stage may say of patches with this label (B, X, Y, Z).

    The organs are larger or smaller than they are, of another shape, and blurred; of some patches
    it has nothing. edges: of a voxel along (X, Y, Z), the shortest is 1; coarse_edges: of one of
    the coarse stage, in the same unit.
    """
    batch, device, size = len(label), label.device, label.shape[1:]

    uniform = partial(draw_uniform, device=device, generator=generator)

    organs = F.one_hot(label, classes).movedim(-1, 1)[:, 1:].float()
    displacement = outline_displacement(
        organs.sum(dim=1, keepdim=True), uniform(batch), OUTLINE, edges
    )
    voxels = [c / e for c, e in zip(coarse_edges, edges, strict=True)]  # of a coarse one
    far = torch.tensor(voxels, device=device).view(3, 1, 1, 1) * ELASTIC
    field = F.interpolate(
        uniform(batch, 3, 4, 4, 4) * far, size=tuple(size), mode="trilinear", align_corners=True
    )
    low, high = (share * min(coarse_edges) for share in BLUR)
    sigma = low + (high - low) * (uniform(batch) + 1) / 2
    moved = warp(organs, displacement + field)
    blurred = gaussian_blur(moved, sigma, math.ceil(3 * high), edges)
    found = (uniform(batch, 1, 1, 1, 1) + 1) / 2 >= BLANK
    return blurred * found
