"""HDF5 as in the left-atrium benchmark: datasets `image` and `label` of one scan in one file."""

import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5z
from numpy.typing import NDArray

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import MAX_DEFLATE_RATIO, Header, check_size, finish, reading, require

LA_SPACING_MM = 0.625
SLACK_BYTES = 1 << 16
FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_LZF}


@dataclass(frozen=True)
class Hdf5:
    """One file may hold a scan and its label map. Channels, if any, are on the first axis."""

    def peek(self, path: Path, kind: str = "image") -> Header:
        """Read the header of dataset `kind`. Raises UserError where the file does not hold it."""
        with _opened(path) as file:
            return _header(_own_dataset(path, file, kind))

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read the dataset `kind`, never the other.

        The affine is the attribute `affine` of the file (4x4, RAS+ mm), which `write` stores. Files
        without it are taken for the benchmark's copy of the 2018 Atrial Segmentation Challenge,
        whose voxels are 0.625 mm in every direction, though it does not say so: diag(0.625, 0.625,
        0.625, 1).
        """
        with _opened(path) as file:
            dataset = _own_dataset(path, file, kind)
            stored = dataset.id.get_storage_size()
            check_size(path, _header(dataset).nbytes, stored * MAX_DEFLATE_RATIO)
            _check_chunks(path, dataset)
            affine = _affine(path, file)
            array = np.asarray(dataset[()])
        return finish(path, array, affine, kind)

    def write(self, volume: Volume, path: Path) -> None:
        """Write integers as dataset `label`, floating-point numbers as `image`.

        They are read back with that `kind`.
        """
        name = "image" if volume.array.dtype.kind == "f" else "label"
        content = io.BytesIO()  # on a full disk HDF5 itself ends the process
        with h5py.File(content, "w") as file:
            file.create_dataset(name, data=volume.array, compression="gzip", compression_opts=1)
            file.attrs["affine"] = volume.affine
        path.write_bytes(content.getbuffer())

    def has_label(self, path: Path) -> bool:
        """Whether the file holds a dataset `label`. Raises UserError where it is no HDF5 file."""
        with _opened(path) as file:
            return "label" in file

    def has_affine(self, path: Path) -> bool:
        """Whether the file holds an affine. Raises UserError where it is no HDF5 file."""
        with _opened(path) as file:
            return "affine" in file.attrs


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    require(path, "HDF5")
    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


def _header(dataset: h5py.Dataset) -> Header:
    return Header(tuple(dataset.shape), dataset.dtype)


def _own_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset `name`, whose voxels must lie in this very file.

    HDF5 can also link to other files, and take the bytes of any file for voxels.
    """
    link = file.get(name, getlink=True) if name in file else None
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        found = ", ".join(f"'{each}'" for each in file) or "nothing"
        raise UserError(
            f"{path}: expected a dataset '{name}', but it holds {found}; rename or add it"
        )
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{path}: the voxels of '{name}' lie in another file; save them in one")
    return dataset


def _check_chunks(path: Path, dataset: h5py.Dataset) -> None:
    """Check that no chunk unpacks to more than its size: HDF5 would inflate it to the end."""
    if dataset.chunks is None:
        return
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    if set(filters) - FILTERS or len(filters) > len(set(filters)):
        raise UserError(
            f"{path}: its voxels are packed in a way that is not read here (filters {filters}); "
            "save it with gzip"
        )
    if h5z.FILTER_DEFLATE not in filters:
        return
    limit = math.prod(dataset.chunks) * dataset.dtype.itemsize + SLACK_BYTES
    for index in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(index)
        if chunk.size > limit:
            raise UserError(
                f"{path}: a chunk of its voxels is larger packed than unpacked; export it again"
            )
        mask, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if not mask and len(zlib.decompressobj().decompress(packed, limit + 1)) > limit:
            raise UserError(
                f"{path}: a chunk of its voxels unpacks to far more than it holds; export it again"
            )


def _affine(path: Path, file: h5py.File) -> NDArray[np.float64]:
    if "affine" not in file.attrs:
        return np.diag([LA_SPACING_MM] * 3 + [1.0])
    if file.attrs.get_id("affine").shape != (4, 4):
        raise UserError(f"{path}: expected the attribute 'affine' to be a 4x4 matrix; repair it")
    return np.asarray(file.attrs["affine"], dtype=np.float64)


H5 = Hdf5()
