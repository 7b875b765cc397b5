"""A prepared data set on disk: chunked blosc2 arrays, JSON beside them, one file a case and kind.

PREPARED/dataset.json           names, channels, labels, fingerprint, plan, SHA-256 of all files
PREPARED/cases/NAME.json        the case's geometry, and where it came from
PREPARED/cases/NAME.image.b2nd  (C, X, Y, Z) float32, RAS order, target spacing, normalised
PREPARED/cases/NAME.label.b2nd  (X, Y, Z) uint8 class indices on the same grid; of labelled cases
PREPARED/cases/NAME.truth.b2nd  (X, Y, Z) uint8 class indices on the scan's own grid, for evaluation
PREPARED/cases/NAME.rater0.b2nd  and so on: as the label, of each rater where all teach
                                (in these: 255, `core.types.IGNORED`, where nobody labelled)
PREPARED/coarse/                the same cases at coarser voxels, where a coarse stage comes first
"""

import copy
import hashlib
import math
import os
import threading
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from dkuxnet.core.documents import read_json
from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.lookup import unknown
from dkuxnet.core.schemas import Prepared, PreparedCase, PreparedInfo, parse_document, read_document
from dkuxnet.core.types import IGNORED
from dkuxnet.data.arrays import read_box
from dkuxnet.data.outlined import indistinct
from dkuxnet.machine.files import checksum

VERSION = 1
MAX_BYTES = 1 << 25  # of dataset.json: 100,000 cases have about 30 MB
COARSE = "coarse"
AGAIN = "prepare the data set again"
# Of the voxels that patches are centred on: those of a thousand left atria at 0.625 mm.
FOREGROUND_BYTES = 2**28
# Of one class of a case, as in nnU-Net: all of a large one, of 33 classes and many scans, would not
# fit, and would be looked for again for every patch.
MOST_PLACES = 10_000
MAX_INDICES = 256  # a byte each
Kind = Literal["image", "label", "truth"]
Stored = str  # a Kind, or "rater0", "rater1", ...: the labels of raters who all teach


class PreparedSet:
    """Reads a prepared folder.

    Arrays are opened on demand; `only` makes a view that opens no others than it was given. A file
    is read whole the first time, to compare it with its checksum; sets prepared before there were
    any have none.
    """

    def __init__(self, folder: Path, cache_gib: float = 0.0):
        """Raises UserError where `folder` is not a prepared data set of this version."""
        self.folder = Path(folder)
        path = self.folder / "dataset.json"
        foreign = f"{folder} is not a prepared data set; run dkuxnet prepare"
        content = read_json(path, foreign, MAX_BYTES)
        if not isinstance(content, dict):
            raise UserError(foreign)
        if content.get("version") != VERSION:
            raise UserError(
                f"{folder}: prepared with format {content.get('version')}, this program reads "
                f"{VERSION}; prepare it again"
            )
        self.meta = parse_document(content, Prepared, path, "prepare it again")
        self._cases = {case.name: case for case in self.meta.cases}
        self._cache = _Cache(int(cache_gib * 2**30))
        self._foreground = _Cache(FOREGROUND_BYTES)
        self._intact: set[Path] = set()
        self._open_to: frozenset[tuple[str, Stored]] | None = None  # None: all of it

    def only(
        self, image: Iterable[str] = (), label: Iterable[str] = (), truth: Iterable[str] = ()
    ) -> "PreparedSet":
        """A view of this set that opens these cases' arrays alone.

        Any other is refused before its file is touched. A view can open no more than the set or
        view that it was made of. Both share what is in memory.
        """
        kinds: dict[Kind, Iterable[str]] = {"image": image, "label": label, "truth": truth}
        asked = frozenset((name, kind) for kind, names in kinds.items() for name in names)
        view = copy.copy(self)
        view._open_to = asked if self._open_to is None else asked & self._open_to
        return view

    @property
    def coarse(self) -> Path | None:
        """The prepared set for a coarse stage, where there is one."""
        folder = self.folder / COARSE
        return folder if folder.exists() else None

    @property
    def names(self) -> list[str]:
        """All cases in the data set's order."""
        return list(self._cases)

    @property
    def names_with_label(self) -> list[str]:
        """The cases that have a label, in the data set's order."""
        return [case.name for case in self.meta.cases if case.labelled]

    @property
    def class_names(self) -> list[str]:
        """Class index -> name, background first."""
        return list(self.meta.labels)

    def info(self, name: str) -> PreparedInfo:
        """Where a case came from, its scan's grid and its prepared grid."""
        path = self._check(name, "json")
        missing = f"case '{name}': {path} is missing or damaged; {AGAIN}"
        info = read_document(path, PreparedInfo, AGAIN, missing)
        images = [_in_source(Path(self.meta.source), Path(image)) for image in info.images]
        return info.model_copy(update={"images": images})

    def array(self, name: str, kind: Stored) -> np.ndarray:
        """The whole array of a case, kept in memory while the cache has room.

        Raises UserError for a damaged file, and for one that is closed to this view.
        """
        self._check_open(name, kind)
        whole = self._cache.get(name, kind)
        return self._cache.keep(name, kind, self._read(name, kind)) if whole is None else whole

    def crop(
        self, name: str, kind: Stored, start: tuple[int, ...], shape: tuple[int, ...]
    ) -> np.ndarray:
        """A box of a case; `start` and `shape` are in voxels, inside the case.

        Where the cache has no room for the case, only the chunks that the box touches are read.
        Raises UserError as `array` does.
        """
        self._check_open(name, kind)
        box = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        whole = self._cache.get(name, kind)
        if whole is None and self._grid_bytes(name, kind) <= self._cache.room:
            whole = self.array(name, kind)
        return (
            self._read(name, kind, box)
            if whole is None
            else whole[(slice(None),) * (whole.ndim - 3) + box]
        )

    def foreground(self, name: str) -> np.ndarray:
        """(n,) int32: the voxels of a case that are of a class, as places in its flat label.

        Found once and then kept in memory, whether or not the cache has room for the label. Raises
        UserError as `array` does.
        """
        self._check_open(name, "label")
        found = self._foreground.get(name, "label")
        if found is None:
            label = self.array(name, "label")
            some = (label != 0) & (label != IGNORED) if self._case(name).ignored else label
            places = np.flatnonzero(some).astype(np.int32)
            found = self._foreground.keep(name, "label", places)
        return found

    def classes(self, name: str) -> np.ndarray:
        """The classes but the background that a case's label has, in their order.

        Found once and kept. Raises UserError as `array` does.
        """
        self._check_open(name, "label")
        found = self._foreground.get(name, "classes")
        if found is None:
            label = self.array(name, "label")
            there = np.zeros(len(self.class_names), bool)
            for part in label:  # a whole scan would be copied in eight times its size
                there |= np.bincount(part.ravel(), minlength=len(there))[: len(there)] > 0
            found = self._foreground.keep(name, "classes", np.flatnonzero(there[1:]) + 1)
        return found

    def class_voxels(self, name: str, index: int) -> np.ndarray:
        """As `foreground`, of one class; of a large one MOST_PLACES voxels, drawn once for all."""
        self._check_open(name, "label")
        found = self._foreground.get(name, index)
        if found is None:
            found = _some(np.flatnonzero(self.array(name, "label") == index))
            found = self._foreground.keep(name, index, found)
        return found

    def labelled_voxels(self, name: str) -> np.ndarray | None:
        """As `class_voxels`, of all that somebody labelled; None where that is every voxel."""
        if not self._case(name).ignored:
            return None
        self._check_open(name, "label")
        found = self._foreground.get(name, "labelled")
        if found is None:
            found = _some(np.flatnonzero(self.array(name, "label") != IGNORED))
            found = self._foreground.keep(name, "labelled", found)
        return found

    @cached_property
    def merged(self) -> tuple[tuple[int, ...], ...]:
        """See `core.types.NetworkShape`: for what the labels of the set do not say."""
        told = [name for name, case in self._cases.items() if case.not_labelled]
        several = {each for name in told for each in self._indistinct(name) if each[1:]}
        everything = tuple(range(len(self.class_names)))
        ignoring = () if self.meta.ignore is None else (everything,)
        merged = (*sorted(several - {everything}), *ignoring)
        if len(everything) + len(merged) > MAX_INDICES:
            raise UserError(f"{self.folder}: more classes and mixtures of them than can be stored")
        return merged

    def _indistinct(self, name: str) -> list[tuple[int, ...]]:
        return indistinct(self.meta.structures, len(self.class_names), self.not_labelled(name))

    def not_labelled(self, name: str) -> tuple[str, ...]:
        """The structures that nobody outlined in a case."""
        return self._case(name).not_labelled

    @property
    def values(self) -> list[int]:
        """Stored index of a label -> value in the data set's label files."""
        values, ignore = list(self.meta.labels.values()), self.meta.ignore
        return values if ignore is None else [*values, *[ignore] * (256 - len(values))]

    def has_ignored(self, name: str) -> bool:
        """Whether the label of a case leaves voxels out."""
        return self._case(name).ignored

    def is_partly_labelled(self, name: str) -> bool:
        """Whether the case has a label, and it does not say all."""
        return self._case(name).partly

    def targets(self, name: str) -> np.ndarray | None:
        """(256,) uint8: what a training reads for each stored index of a case's label.

        See `core.types.NetworkShape.merged`. None where it reads what is stored.
        """
        if not self._case(name).partly:
            return None
        table, classes, merged = np.arange(256, dtype=np.uint8), len(self.class_names), self.merged
        for index, several in enumerate(self._indistinct(name)):
            if several[1:]:
                table[index] = classes + merged.index(several)
        if self.meta.ignore is not None:
            table[IGNORED] = classes + len(merged) - 1
        return table

    def raters(self, name: str) -> tuple[int, dict[str, float]]:
        """How many raters of a case teach, 0 where its label does; how far its raters agree."""
        return self._case(name).raters, self._case(name).rater_dice

    def sha256(self, name: str, kind: Stored) -> str | None:
        """The checksum of a stored array, without opening it.

        None where there is no such array, or no checksum.
        """
        return self._case(name).sha256.get(f"{kind}.b2nd")

    def shape(self, name: str) -> tuple[int, int, int]:
        """Voxels of the case on the prepared grid."""
        return self._case(name).shape

    def _case(self, name: str) -> PreparedCase:
        if name not in self._cases:
            raise unknown("case", name, self.names)
        return self._cases[name]

    def _check(self, name: str, ending: str) -> Path:
        """A file of a case, compared with its checksum once."""
        expected = self._case(name).sha256.get(ending)
        path = self.folder / "cases" / f"{name}.{ending}"
        if expected and path not in self._intact:
            try:
                found = checksum(path)
            except OSError as error:
                raise UserError(
                    f"case '{name}': {path} is missing or damaged ({disk_reason(error)}); {AGAIN}"
                ) from error
            if found != expected:
                raise UserError(
                    f"case '{name}': {path} is damaged (its SHA-256 begins with {found[:8]}, that "
                    f"of what was stored with {expected[:8]}); {AGAIN}"
                )
            self._intact.add(path)
        return path

    def _stored_shape(self, name: str, kind: Stored) -> tuple[int, ...]:
        if kind == "truth":
            return self.info(name).shape
        channels = (len(self.meta.channels),) if kind == "image" else ()
        return (*channels, *self.shape(name))

    def _grid_bytes(self, name: str, kind: Stored) -> int:
        voxel = 4 * len(self.meta.channels) if kind == "image" else 1
        return math.prod(self.shape(name)) * voxel

    def _check_open(self, name: str, kind: Stored) -> None:
        self._case(name)
        of = "label" if kind.startswith("rater") else kind
        if self._open_to is not None and (name, of) not in self._open_to:
            raise UserError(
                f"the {kind} of case '{name}' is closed here: by the split of the run this part of "
                "the program may not open it; what asks for it is wrong"
            )

    def _read(self, name: str, kind: Stored, box: tuple[slice, ...] = ()) -> np.ndarray:
        path = self._check(name, f"{kind}.b2nd")
        dtype = np.float32 if kind == "image" else np.uint8
        try:
            array = read_box(path, self._stored_shape(name, kind), dtype, box)
        except UserError:
            raise
        except Exception as error:  # blosc2's kind of error depends on the kind of damage
            raise UserError(
                f"case '{name}': {path} is missing or damaged ({error}); {AGAIN}"
            ) from error
        classes = array[array != IGNORED] if self._case(name).ignored else array
        if kind != "image" and classes.max(initial=0) >= len(self.class_names):
            raise UserError(
                f"{path}: class {classes.max()} in a data set of {len(self.class_names)} classes; "
                "prepare it again"
            )
        return array


def _some(places: np.ndarray) -> np.ndarray:
    """Of many places MOST_PLACES, drawn once for all; int32."""
    found = places.astype(np.int32)
    if len(found) > MOST_PLACES:
        found = np.random.default_rng(0).choice(found, MOST_PLACES, replace=False)
    return found


class _Cache:
    """Arrays in memory while there is room: for all views of a set, and all threads that read."""

    def __init__(self, room: int):
        """room: bytes that are left."""
        self.room = room
        self._arrays: dict[tuple[str, str | int], np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, name: str, kind: str | int) -> np.ndarray | None:
        return self._arrays.get((name, kind))

    def keep(self, name: str, kind: str | int, array: np.ndarray) -> np.ndarray:
        """The array, kept where it fits; where another thread was faster, its own."""
        with self._lock:
            if (name, kind) not in self._arrays and array.nbytes <= self.room:
                self.room -= array.nbytes
                self._arrays[name, kind] = array
            return self._arrays.get((name, kind), array)


def _in_source(source: Path, image: Path) -> str:
    """The path of a scan; earlier versions stored it as seen from the folder of that day."""
    parts = () if image.is_absolute() else image.parts
    places = (os.path.normpath(source.joinpath(*parts[start:])) for start in range(len(parts)))
    return str(next(filter(os.path.exists, places), image))


def write_array(path: Path, array: np.ndarray) -> str:
    """Store (..., X, Y, Z) as .b2nd; the SHA-256 of the file.

    Raises UserError where the disk does not take it.
    """
    return write_bytes(path, packed(array))


def packed(array: np.ndarray) -> bytes:
    """The content of a .b2nd file of (..., X, Y, Z), in blocks of 16 voxels an edge.

    Small blocks, so that reading a random patch unpacks little; LZ4, since speed counts more than
    size here.
    """
    import blosc2

    chunks, blocks = (
        (*array.shape[:-3], *(min(n, edge) for n in array.shape[-3:])) for edge in (64, 16)
    )
    codec = {"codec": blosc2.Codec.LZ4, "clevel": 1, "nthreads": 1}
    # in memory first: on a full disk blosc2 names no reason, and keeps the file open
    stored = blosc2.asarray(
        np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=codec, contiguous=True
    )
    content: bytes = stored.to_cframe()
    return content


def write_bytes(path: Path, content: bytes) -> str:
    """Store a file; its SHA-256. Raises UserError where the disk does not take it."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot write: {disk_reason(error)}") from error
    return hashlib.sha256(content).hexdigest()
