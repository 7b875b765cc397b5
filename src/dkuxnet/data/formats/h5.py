"""HDF5 as in the left-atrium benchmark: datasets `image` and `label` of one scan in one file."""

import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5l, h5t, h5z
from numpy.typing import NDArray

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import (
    MAX_DEFLATE_RATIO,
    Header,
    check_axes,
    check_size,
    finish,
    reading,
    require,
)
from dkuxnet.machine.memory import check_memory

LA_SPACING_MM = 0.625
SLACK_BYTES = 1 << 16
MAX_ITEM_BYTES = 16
MAX_LISTED = 20
MAX_CHUNKS = 1 << 19
LARGE_CHUNK_BYTES = 1 << 26
MAX_LZF_RATIO = 132  # of three bytes come at most 264 and of one byte one


@dataclass(frozen=True)
class Hdf5:
    """One file may hold a scan and its label map. Channels, if any, are on the first axis."""

    def peek(self, path: Path, kind: str = "image") -> Header:
        """Read the header of dataset `kind`. Raises UserError where the file does not hold it."""
        with _opened(path) as file:
            return _header(path, _own_dataset(path, file, kind))

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read the dataset `kind`, never the other.

        The affine is the attribute `affine` of the file (4x4, RAS+ mm), which `write` stores. Files
        without it are taken for the benchmark's copy of the 2018 Atrial Segmentation Challenge,
        whose voxels are 0.625 mm in every direction, though it does not say so: diag(0.625, 0.625,
        0.625, 1).
        """
        with _opened(path) as file:
            dataset = _own_dataset(path, file, kind)
            header = _header(path, dataset)
            _check_stored(path, dataset, header)
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
            return _link(file, "label") is not None

    def has_affine(self, path: Path) -> bool:
        """Whether the file holds an affine. Raises UserError where it is no HDF5 file."""
        with _opened(path) as file:
            return "affine" in file.attrs


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    require(path, "HDF5")
    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


def _link(file: h5py.File, name: str) -> int | None:
    """The kind of link that `name` is; None where there is none. Links are never followed."""
    links = file.id.links
    return links.get_info(name.encode()).type if links.exists(name.encode()) else None


def _header(path: Path, dataset: h5py.Dataset) -> Header:
    _check_type(path, dataset.id.get_type())
    if dataset.shape is None:
        raise UserError(f"{path}: expected voxels, but the dataset is empty; export it again")
    check_axes(path, dataset.shape)
    return Header(tuple(dataset.shape), dataset.dtype)


def _check_type(path: Path, stored: h5t.TypeID) -> None:
    """Check that elements are plain numbers. Others can refer to any number of bytes, each."""
    plain = stored.get_class() in (h5t.INTEGER, h5t.FLOAT)
    truth = stored.get_class() == h5t.ENUM and stored.get_nmembers() == 2  # h5py's bool
    if not (plain or truth) or stored.get_size() > MAX_ITEM_BYTES:
        raise UserError(
            f"{path}: expected one real number a voxel, but its elements are of another type; "
            "convert it"
        )


def _own_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset `name`, whose voxels must lie in this very file.

    HDF5 can also link to other files, and take the bytes of any file for voxels.
    """
    dataset = file[name] if _link(file, name) == h5l.TYPE_HARD else None
    if not isinstance(dataset, h5py.Dataset):
        found = ", ".join(f"'{each}'" for each in islice(file, MAX_LISTED)) or "nothing"
        raise UserError(
            f"{path}: expected a dataset '{name}', but it holds {found}; rename or add it"
        )
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{path}: the voxels of '{name}' lie in another file; save them in one")
    return dataset


def _check_stored(path: Path, dataset: h5py.Dataset, header: Header) -> None:
    """Check that the file can hold what the header promises, before HDF5 unpacks any of it."""
    size = path.stat().st_size
    chunks = _chunks(path, dataset) if dataset.chunks is not None else []
    stored = sum(chunk.size for chunk in chunks) or dataset.id.get_storage_size()
    if stored > size:  # also where chunks are said to lie in one place
        raise UserError(
            f"{path}: expected more bytes of voxels than the file has; copy or export it again"
        )
    check_size(path, header.nbytes, stored * MAX_DEFLATE_RATIO)
    if dataset.chunks is not None:
        _check_chunks(path, dataset, header, chunks)


def _chunks(path: Path, dataset: h5py.Dataset) -> list[h5d.StoreInfo]:
    """The chunks of a dataset as the file lists them. Raises UserError for far too many.

    Their index may also lead in a circle.
    """
    chunks: list[h5d.StoreInfo] = []

    def take(chunk: h5d.StoreInfo) -> bool | None:
        chunks.append(chunk)
        return True if len(chunks) > MAX_CHUNKS else None  # anything but None ends the list

    dataset.id.chunk_iter(take)
    if len(chunks) > MAX_CHUNKS:
        raise UserError(
            f"{path}: its voxels are in more than {MAX_CHUNKS} chunks; save it in larger ones"
        )
    return chunks


def _check_chunks(
    path: Path, dataset: h5py.Dataset, header: Header, chunks: list[h5d.StoreInfo]
) -> None:
    """Check that no chunk unpacks to more than its size: HDF5 would unpack it to the end."""
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    if filters not in PIPELINES:
        raise UserError(
            f"{path}: its voxels are packed in a way that is not read here (filters {filters}); "
            "save it with gzip"
        )
    size = math.prod(dataset.chunks) * header.dtype.itemsize
    if size > max(header.nbytes, LARGE_CHUNK_BYTES):
        raise UserError(
            f"{path}: a chunk of its voxels holds more than all of them; export it again"
        )
    check_memory(header.nbytes + size, str(path))
    limit = size + SLACK_BYTES
    packer = next((i for i, each in enumerate(filters) if each in UNPACKED_BYTES), None)
    for chunk in chunks:
        if chunk.size > limit:
            raise UserError(
                f"{path}: a chunk of its voxels is larger packed than unpacked; export it again"
            )
        if packer is None or chunk.filter_mask >> packer & 1:
            continue
        _, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if UNPACKED_BYTES[filters[packer]](packed, limit) > limit:
            raise UserError(
                f"{path}: a chunk of its voxels unpacks to far more than it holds; export it again"
            )


def _inflated_bytes(packed: bytes, limit: int) -> int:
    """How much a deflated chunk unpacks to; a number above `limit` where it is more than that."""
    inflater, count = zlib.decompressobj(), 0
    while count <= limit and (part := inflater.decompress(packed, 1 << 20)):
        count, packed = count + len(part), inflater.unconsumed_tail
    return count


def _lzf_bytes(packed: bytes, limit: int) -> int:
    """As `_inflated_bytes`, of LZF: runs of up to 32 bytes, copies of up to 264 earlier ones."""
    at, count = 0, 0
    if len(packed) * MAX_LZF_RATIO <= limit:
        return 0
    while at < len(packed) and count <= limit:
        control = packed[at]
        if control < 32:
            at, count = at + control + 2, count + control + 1
        elif control < 224:
            at, count = at + 2, count + (control >> 5) + 2
        else:
            at, count = at + 3, count + (packed[at + 1] if at + 1 < len(packed) else 0) + 9
    return count


def _affine(path: Path, file: h5py.File) -> NDArray[np.float64]:
    if "affine" not in file.attrs:
        return np.diag([LA_SPACING_MM] * 3 + [1.0])
    attribute = file.attrs.get_id("affine")
    if attribute.shape != (4, 4):
        raise UserError(f"{path}: expected the attribute 'affine' to be a 4x4 matrix; repair it")
    _check_type(path, attribute.get_type())
    return np.asarray(file.attrs["affine"], dtype=np.float64)


UNPACKED_BYTES = {h5z.FILTER_DEFLATE: _inflated_bytes, h5z.FILTER_LZF: _lzf_bytes}
# The filters of a chunk that are undone, in the order in which they were applied: what is behind
# the packer must not change what is unpacked.
PIPELINES = [
    [*before, *packer, *after]
    for before in ([], [h5z.FILTER_SHUFFLE])
    for packer in ([], [h5z.FILTER_DEFLATE], [h5z.FILTER_LZF])
    for after in ([], [h5z.FILTER_FLETCHER32])
]

H5 = Hdf5()
