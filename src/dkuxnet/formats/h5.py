"""The field's h5: datasets `image` and `label` of one scan in one file, as the left-atrium benchmark ships them."""

import io
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dkuxnet.errors import UserError
from dkuxnet.formats._checks import finish, reading, require
from dkuxnet.types import Volume

LA_SPACING_MM = 0.625


@dataclass(frozen=True)
class Hdf5:
    """One file may hold a scan and its label map. Channels, where there are any, are on the first axis."""

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read dataset `image` or `label`, whichever `kind` says, and never the other.

        The affine is the file's attribute `affine` (4x4, RAS+ mm), which `write` stores. Files without it are taken for
        the benchmark's copy of the 2018 Atrial Segmentation Challenge, whose scans are 0.625 mm in every direction but
        which does not say so: diag(0.625, 0.625, 0.625, 1).
        """
        require(path, "HDF5")
        with reading(path, "HDF5"), h5py.File(path, "r") as file:
            dataset = file.get(kind)
            if not isinstance(dataset, h5py.Dataset):
                raise UserError(f"{path}: expected a dataset '{kind}', but it holds {_listed(file)}; rename or add it")
            affine = np.asarray(file.attrs.get("affine", np.diag([LA_SPACING_MM] * 3 + [1.0])), dtype=np.float64)
            array = np.asarray(dataset[()])
        return finish(path, array, affine, kind)

    def write(self, volume: Volume, path: Path) -> None:
        """Integers as dataset `label`, floating numbers as `image`: read them back with that `kind`."""
        name = "image" if volume.array.dtype.kind == "f" else "label"
        content = io.BytesIO()  # on a full disk HDF5 itself ends the process
        with h5py.File(content, "w") as file:
            file.create_dataset(name, data=volume.array, compression="gzip", compression_opts=1)
            file.attrs["affine"] = volume.affine
        path.write_bytes(content.getbuffer())

    def has_label(self, path: Path) -> bool:
        """Whether the file holds a dataset `label`; reads no voxels. Raises UserError where it is no HDF5 file."""
        require(path, "HDF5")
        with reading(path, "HDF5"), h5py.File(path, "r") as file:
            return "label" in file


def _listed(file: h5py.File) -> str:
    return ", ".join(f"'{name}'" for name in file) or "nothing"


H5 = Hdf5()
