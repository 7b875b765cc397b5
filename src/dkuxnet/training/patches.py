"""Patches for the steps of a training: which case, which box, read ahead in threads.

Every draw is a function of (seed, stream, step), never of what was drawn before: a resumed run, or
one with another number of workers, sees the same patches.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dkuxnet.data.geometry import pad_to
from dkuxnet.data.prepared_set import PreparedSet

LABELLED, UNLABELLED = 0, 1  # the streams' numbers, part of the random state


class PatchStream:
    """Endless patches of the given cases: every case once an epoch, in an order of its own."""

    def __init__(
        self,
        prepared: PreparedSet,
        cases: Sequence[str],
        patch: Sequence[int],
        batch: int,
        seed: int,
        with_label: bool,
        foreground_share: float = 0.0,
    ):
        """patch: (X, Y, Z) voxels; a smaller case is padded with its lowest value (label:
        background).
        """
        self.prepared, self.cases, self.patch, self.batch = (
            prepared,
            list(cases),
            tuple(patch),
            batch,
        )
        self.key = (seed, LABELLED if with_label else UNLABELLED)
        self.with_label, self.foreground_share = with_label, foreground_share
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))  # of the cases, in an epoch

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The patches of a step: images (B, C, X, Y, Z) float32, labels (B, X, Y, Z) uint8 or
        None.
        """
        patches = [
            self._patch(name, np.random.default_rng((*self.key, 1, step, i)))
            for i, name in enumerate(self.names_at(step))
        ]
        images = np.stack([image for image, _ in patches])
        return images, np.stack([label for _, label in patches]) if self.with_label else None

    def names_at(self, step: int) -> list[str]:
        """The cases that the patches of a step are of."""
        return [self._case(step * self.batch + i) for i in range(self.batch)]

    def _case(self, index: int) -> str:
        epoch, place = divmod(index, len(self.cases))
        known, order = self._order
        if known != epoch:  # drawn once an epoch: of 10,000 cases it takes as long as a patch
            order = np.random.default_rng((*self.key, 0, epoch)).permutation(len(self.cases))
            self._order = epoch, order
        return self.cases[order[place]]

    def _patch(self, name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        shape = self.prepared.shape(name)
        size = [min(n, p) for n, p in zip(shape, self.patch, strict=True)]
        start = [int(rng.integers(n - s + 1)) for n, s in zip(shape, size, strict=True)]
        if self.with_label and rng.random() < self.foreground_share and tuple(size) != shape:
            foreground = self.prepared.foreground(name)
            if len(foreground):
                centre = np.unravel_index(foreground[rng.integers(len(foreground))], shape)
                start = [
                    int(np.clip(c - s // 2, 0, n - s))
                    for c, s, n in zip(centre, size, shape, strict=True)
                ]
        image = self.prepared.crop(name, "image", tuple(start), tuple(size))
        if tuple(size) != self.patch:
            image, _ = pad_to(image, self.patch, float(image.min()))
        if not self.with_label:
            return image, None
        label, _ = pad_to(
            self.prepared.crop(name, "label", tuple(start), tuple(size)), self.patch, 0
        )
        return image, label


def read_ahead(
    streams: Sequence[PatchStream],
    first: int,
    last: int,
    workers: int,
    depth: int = 3,
    finish: Callable[[list], Any] = lambda patches: patches,
) -> Iterator[Any]:
    """The steps first .. last - 1: for each, what `finish` makes of a list of one `PatchStream.at`
    a stream. `workers` threads keep `depth` steps ready; without any, each step is made when it
    is asked for.
    """

    def make(step: int) -> Any:
        return finish([stream.at(step) for stream in streams])

    if workers == 0:
        yield from map(make, range(first, last))
        return
    with ThreadPoolExecutor(workers) as pool:
        ready: deque = deque()
        for step in range(first, last + depth):
            if step < last:
                ready.append(pool.submit(make, step))
            if step - first >= depth:
                yield ready.popleft().result()
