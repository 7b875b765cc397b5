"""Patches for the steps of a training: which case, which box, read ahead in threads.

Every draw is a function of (seed, stream, step), never of what was drawn before: a resumed run, or
one with another number of workers, sees the same patches.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from dkuxnet.core.shares import own_patches
from dkuxnet.data.geometry import pad_to
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.training.priors import Priors

LABELLED, UNLABELLED = 0, 1  # the streams' numbers, part of the random state
READY = 3  # steps that are read ahead
Patches = tuple[np.ndarray, np.ndarray | None]  # images, labels of labelled ones
Finish = Callable[[Patches], Any]


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
        class_first: bool = True,
        margin: int = 0,
        priors: Priors | None = None,
    ):
        """patch: (X, Y, Z) voxels.

        A smaller case is padded, its image with its lowest value and its label with background.

        margin: voxels that are read around the patch on every side, for views that turn it. Where
        the case ends its last voxels are repeated, as views do.

        priors: what a coarse stage says of the cases, further channels of their images; NaN for
        those of which the label says all, see `training.priors`.

        Of a case that is labelled in part, every patch is centred on a voxel that is labelled, and
        the label reads as `NetworkShape.merged` has it. Where several raters teach, a patch has the
        label of one of them, drawn anew: the cross-entropy then has the gradient of their mean, on
        average.

        class_first: a foreground patch is centred on a voxel of a class that was drawn among those
        of its case, each as likely, so that a lesion is seen as often as the organ around it. Else,
        as runs of earlier versions have it, on any foreground voxel. The case is drawn regardless
        of its classes, as in nnU-Net: one with a rare lesion that came more often would be learnt
        by heart.
        """
        self.prepared, self.cases = prepared, list(cases)
        self.patch, self.batch, self.own = tuple(patch), batch, own_patches(batch)
        self.key = (seed, LABELLED if with_label else UNLABELLED)
        self.with_label, self.foreground_share = with_label, foreground_share
        self.class_first, self.margin, self.priors = class_first, margin, priors
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))  # of the cases, in an epoch

    def at(self, step: int) -> Patches:
        """The patches of a step with their margins: images (B, C, X, Y, Z), labels (B, X, Y, Z).

        Those of this process alone, where several share the batch. Images are float32, labels
        uint8.
        """
        images, labels = [], []
        for i in self.own:
            name = self._case(step * self.batch + i)
            image, label = self._patch(name, np.random.default_rng((*self.key, 1, step, i)))
            images.append(image)
            labels += [] if label is None else [label]
        return np.stack(images), np.stack(labels) if labels else None

    def names_at(self, step: int) -> list[str]:
        """The cases that the patches of a step are of, those of all processes."""
        return [self._case(step * self.batch + i) for i in range(self.batch)]

    def _case(self, index: int) -> str:
        epoch, place = divmod(index, len(self.cases))
        known, order = self._order
        if known != epoch:  # drawn once an epoch: of 10,000 cases it takes as long as a patch
            order = np.random.default_rng((*self.key, 0, epoch)).permutation(len(self.cases))
            self._order = epoch, order
        return self.cases[int(order[place])]

    def _patch(self, name: str, rng: np.random.Generator) -> Patches:
        shape = self.prepared.shape(name)
        size = [min(n, p) for n, p in zip(shape, self.patch, strict=True)]
        start = [int(rng.integers(n - s + 1)) for n, s in zip(shape, size, strict=True)]
        if self.with_label and tuple(size) != shape:
            foreground = rng.random() < self.foreground_share
            places = self._foreground(name, rng) if foreground else None
            if places is None or not len(places):
                places = self.prepared.labelled_voxels(name)
            if places is not None and len(places):
                centre = np.unravel_index(places[rng.integers(len(places))], shape)
                fits = zip(centre, size, shape, strict=True)
                start = [int(np.clip(c - s // 2, 0, n - s)) for c, s, n in fits]
        image = self._with_margin(name, "image", start, size)
        if self.priors:
            prior = np.full((self.priors.channels, *image.shape[1:]), np.nan, np.float32)
            if not self.with_label or self.prepared.is_partly_labelled(name):
                prior = self._with_margin(name, "prior", start, size)
            image = np.concatenate([image, prior])
        if not self.with_label:
            return image, None
        (raters, _), targets = self.prepared.raters(name), self.prepared.targets(name)
        kind = f"rater{rng.integers(raters)}" if raters else "label"
        label = self._with_margin(name, kind, start, size)
        return image, label if targets is None else targets[label]

    def _with_margin(
        self, name: str, kind: str, start: Sequence[int], size: Sequence[int]
    ) -> np.ndarray:
        """A box of a case, padded to the patch, with the margin around it.

        kind: of the prepared set, or "prior".
        """
        margin, shape = self.margin, self.prepared.shape(name)
        before = [min(margin, a) for a in start]
        after = [min(margin, n - a - s) for n, a, s in zip(shape, start, size, strict=True)]
        first = tuple(a - b for a, b in zip(start, before, strict=True))
        read = tuple(b + s + a for b, s, a in zip(before, size, after, strict=True))
        if kind != "prior":
            box = self.prepared.crop(name, kind, first, read)
        elif self.priors:
            box = self.priors.crop(name, shape, first, read)
        if tuple(size) != self.patch:  # of an axis that is too short, all was read
            padded = [max(p - s, 0) for p, s in zip(self.patch, size, strict=True)]
            wanted = [r + p for r, p in zip(read, padded, strict=True)]
            box, _ = pad_to(box, wanted, float(box.min()) if kind == "image" else 0)
        if not margin:
            return box
        missing = [(margin - b, margin - a) for b, a in zip(before, after, strict=True)]
        return np.pad(box, [(0, 0)] * (box.ndim - 3) + missing, mode="edge")

    def _foreground(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """The voxels that a foreground patch may be centred on, as places in the flat label."""
        if not self.class_first:
            return self.prepared.foreground(name)
        classes = self.prepared.classes(name)
        if not len(classes):
            return np.empty(0, np.int32)
        drawn = rng.integers(len(classes)) if len(classes) > 1 else 0
        return self.prepared.class_voxels(name, int(classes[drawn]))


def read_ahead(
    streams: Sequence[PatchStream],
    first: int,
    last: int,
    workers: int,
    finish: Finish = lambda patches: patches,
) -> Iterator[list[Any]]:
    """The steps first .. last - 1: for each, what `finish` makes of each stream's patches.

    `workers` threads keep READY steps; without any, each step is made when it is asked for.
    """

    def make(step: int) -> list[Any]:
        return [finish(stream.at(step)) for stream in streams]

    if workers == 0:
        yield from map(make, range(first, last))
        return
    with ThreadPoolExecutor(workers) as pool:
        ready: deque[Future[list[Any]]] = deque()
        for step in range(first, last + READY):
            if step < last:
                ready.append(pool.submit(make, step))
            if step - first >= READY:
                yield ready.popleft().result()
