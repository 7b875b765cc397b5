"""A prepared data set on disk: chunked blosc2 arrays, JSON beside them, one file a case and kind.

PREPARED/dataset.json           what it is: names, channels, labels, fingerprint, plan
PREPARED/cases/NAME.json        the case's geometry, and where it came from
PREPARED/cases/NAME.image.b2nd  (C, X, Y, Z) float32, RAS order, target spacing, normalised
PREPARED/cases/NAME.label.b2nd  (X, Y, Z) uint8 class indices on the same grid; absent for unlabelled cases
PREPARED/cases/NAME.truth.b2nd  (X, Y, Z) uint8 class indices on the scan's own grid, for evaluation; likewise
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dkuxnet.data.arrays import read_box
from dkuxnet.described import Prepared, PreparedInfo, check_described
from dkuxnet.documents import read_json
from dkuxnet.errors import UserError
from dkuxnet.lookup import unknown

VERSION = 1
Kind = Literal["image", "label", "truth"]


class PreparedSet:
    """Reads a prepared folder. Arrays are opened on demand, so a label that nobody asks for is never opened."""

    def __init__(self, folder: Path, cache_gib: float = 0.0):
        """Raises UserError where `folder` is not a prepared data set of this version."""
        self.folder = Path(folder)
        path = self.folder / "dataset.json"
        self.meta = read_json(path, f"{folder} is not a prepared data set; run dkuxnet prepare")
        if not isinstance(self.meta, dict):
            raise UserError(f"{folder} is not a prepared data set; run dkuxnet prepare")
        if self.meta.get("version") != VERSION:
            raise UserError(f"{folder}: prepared with format {self.meta.get('version')}, this program reads {VERSION}; "
                            "prepare it again")
        check_described(self.meta, Prepared, path, "prepare it again")
        self._room = int(cache_gib * 2**30)
        self._cache: dict[tuple[str, Kind], np.ndarray] = {}

    @property
    def names(self) -> list[str]:
        """All cases in the data set's order."""
        return [case["name"] for case in self.meta["cases"]]

    @property
    def names_with_label(self) -> list[str]:
        """The cases that have a label, in the data set's order."""
        return [case["name"] for case in self.meta["cases"] if case["labelled"]]

    @property
    def class_names(self) -> list[str]:
        """Class index -> name, background first."""
        return list(self.meta["labels"])

    def info(self, name: str) -> dict[str, Any]:
        """Geometry of a case: shape, affine and spacing_mm of the scan, shape and affine of the prepared grid."""
        path = self._path(name, "json")
        info = read_json(path, f"case '{name}' of {self.folder}: its json is missing or broken")
        return check_described(info, PreparedInfo, path, "prepare it again")

    def array(self, name: str, kind: Kind) -> np.ndarray:
        """The whole array of a case, kept in memory while the cache has room. Raises UserError for a damaged file."""
        key = (name, kind)
        if key in self._cache:
            return self._cache[key]
        array = self._read(name, kind)
        if array.nbytes <= self._room:
            self._room -= array.nbytes
            self._cache[key] = array
        return array

    def crop(self, name: str, kind: Kind, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """A box of a case; `start` and `shape` are in voxels, inside the case. Where the cache has no room for the case,
        only the chunks that the box touches are read. Raises UserError for a damaged file."""
        box = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        whole = self._cache.get((name, kind))
        if whole is None and self._grid_bytes(name, kind) <= self._room:
            whole = self.array(name, kind)
        return whole[(..., *box)] if whole is not None else self._read(name, kind, box)

    def shape(self, name: str) -> tuple[int, int, int]:
        """Voxels of the case on the prepared grid."""
        return tuple(next(case["shape"] for case in self.meta["cases"] if case["name"] == name))

    def _path(self, name: str, ending: str) -> Path:
        if name not in self.names:
            raise unknown("case", name, self.names)
        return self.folder / "cases" / f"{name}.{ending}"

    def _stored_shape(self, name: str, kind: Kind) -> tuple[int, ...]:
        if kind == "truth":
            return tuple(self.info(name)["shape"])
        return (len(self.meta["channels"]), *self.shape(name)) if kind == "image" else self.shape(name)

    def _grid_bytes(self, name: str, kind: Kind) -> int:
        return math.prod(self.shape(name)) * (4 * len(self.meta["channels"]) if kind == "image" else 1)

    def _read(self, name: str, kind: Kind, box: tuple[slice, ...] = ()) -> np.ndarray:
        path = self._path(name, f"{kind}.b2nd")
        try:
            array = read_box(path, self._stored_shape(name, kind), np.float32 if kind == "image" else np.uint8, box)
        except UserError:
            raise
        except Exception as error:  # blosc2 raises RuntimeError, OSError or ValueError by the kind of damage
            raise UserError(f"{path}: missing or damaged ({error}); prepare the data set again") from error
        if kind != "image" and array.max(initial=0) >= len(self.class_names):
            raise UserError(f"{path}: class {array.max()} in a data set of {len(self.class_names)} classes; "
                            "prepare it again")
        return array


def write_array(path: Path, array: np.ndarray) -> None:
    """Store (..., X, Y, Z) as .b2nd in chunks of about 64 voxels an edge, so that a random patch reads little.
    Raises UserError where the disk does not take it."""
    import blosc2

    chunks = (*array.shape[:-3], *(min(n, 64) for n in array.shape[-3:]))
    codec = {"codec": blosc2.Codec.ZSTD, "clevel": 3, "nthreads": 1}
    try:
        blosc2.asarray(np.ascontiguousarray(array), urlpath=str(path), mode="w", chunks=chunks, cparams=codec)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot write ({error}); check the folder's rights and space") from error
