"""The field's h5: datasets `image` and `label` of one scan in one file, as the left-atrium
benchmark ships them.
"""

import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5z

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import MAX_DEFLATE_RATIO, check_size, finish, reading, require

LA_SPACING_MM = 0.625
SLACK_BYTES = 1 << 16


@dataclass(frozen=True)
class Hdf5:
    """One file may hold a scan and its label map.

    Channels, where there are any, are on the first axis.
    """

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read dataset `image` or `label`, whichever `kind` says, and never the other.

        The affine is the file's attribute `affine` (4x4, RAS+ mm), which `write` stores. Files
        without it are taken for the benchmark's copy of the 2018 Atrial Segmentation Challenge,
        whose scans are 0.625 mm in every direction but which does not say so: diag(0.625, 0.625,
        0.625, 1).
        """
        require(path, "HDF5")
        with reading(path, "HDF5"), h5py.File(path, "r") as file:
            dataset = _own_dataset(path, file, kind)
            _check_content(path, dataset)
            affine = _affine(path, file)
            array = np.asarray(dataset[()])
        return finish(path, array, affine, kind)

    def write(self, volume: Volume, path: Path) -> None:
        """Integers as dataset `label`, floating numbers as `image`: read them back with that
        `kind`.
        """
        name = "image" if volume.array.dtype.kind == "f" else "label"
        content = io.BytesIO()  # on a full disk HDF5 itself ends the process
        with h5py.File(content, "w") as file:
            file.create_dataset(name, data=volume.array, compression="gzip", compression_opts=1)
            file.attrs["affine"] = volume.affine
        path.write_bytes(content.getbuffer())

    def has_label(self, path: Path) -> bool:
        """Whether the file holds a dataset `label`; reads no voxels.

        Raises UserError where it is no HDF5 file.
        """
        require(path, "HDF5")
        with reading(path, "HDF5"), h5py.File(path, "r") as file:
            return "label" in file

    def has_affine(self, path: Path) -> bool:
        """Whether the file says where its voxels lie. Raises UserError where it is no HDF5 file."""
        require(path, "HDF5")
        with reading(path, "HDF5"), h5py.File(path, "r") as file:
            return "affine" in file.attrs


def _own_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose voxels lie in this very file: HDF5 can also link to others, and take bytes
    of any file for voxels.
    """
    link = file.get(name, getlink=True) if name in file else None
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(
            f"{path}: expected a dataset '{name}', but it holds {_listed(file)}; rename or add it"
        )
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{path}: the voxels of '{name}' lie in other files; save them in one")
    return dataset


def _check_content(path: Path, dataset: h5py.Dataset) -> None:
    """Before memory is taken: can the file hold what the dataset promises, and does no chunk of it
    unpack without end?

    HDF5 inflates a chunk to its very end, however far beyond its size that is.
    """
    needed, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    check_size(path, needed, stored * MAX_DEFLATE_RATIO)
    if dataset.chunks is None:
        return
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    unknown = set(filters) - {
        h5z.FILTER_DEFLATE,
        h5z.FILTER_SHUFFLE,
        h5z.FILTER_FLETCHER32,
        h5z.FILTER_LZF,
    }
    if unknown or len(filters) > len(set(filters)):
        raise UserError(
            f"{path}: its voxels are packed in a way that is not read here (filters {filters}); "
            "save it with gzip"
        )
    if h5z.FILTER_DEFLATE in filters:
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
                    f"{path}: a chunk of its voxels unpacks to far more than it holds; export it "
                    "again"
                )


def _affine(path: Path, file: h5py.File) -> np.ndarray:
    if "affine" not in file.attrs:
        return np.diag([LA_SPACING_MM] * 3 + [1.0])
    if file.attrs.get_id("affine").shape != (4, 4):
        raise UserError(f"{path}: expected the attribute 'affine' to be a 4x4 matrix; repair it")
    return np.asarray(file.attrs["affine"], dtype=np.float64)


def _listed(file: h5py.File) -> str:
    return ", ".join(f"'{name}'" for name in file) or "nothing"


H5 = Hdf5()
