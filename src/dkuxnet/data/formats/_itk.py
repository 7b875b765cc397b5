# mypy: untyped-calls-exclude=SimpleITK
"""What NRRD and MetaImage share: both are read and written by SimpleITK.

SimpleITK's arrays are (Z, Y, X) in LPS coordinates, ours are (X, Y, Z) in RAS.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import (
    MAX_DEFLATE_RATIO,
    Header,
    check_deflated,
    check_size,
    finish,
    reading,
)

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Packing = Literal["deflate", "raw", ""]


@dataclass(frozen=True)
class ItkHeader(Header):
    """A header and SimpleITK's reader, which has read nothing else yet.

    start: position of the first byte of the voxels. packing: how they are stored from there on,
    "" where only SimpleITK can judge whether they are complete. packed_bytes: their packed size,
    None in a format that does not state it.
    """

    reader: sitk.ImageFileReader
    start: int
    packing: Packing
    packed_bytes: int | None = None


def read_header(
    path: Path,
    name: str,
    image_io: str,
    start: int,
    packing: Packing,
    packed_bytes: int | None = None,
) -> ItkHeader:
    """Let SimpleITK read the header.

    name: of the format, for messages. image_io: SimpleITK's name of it. Raises UserError where it
    cannot.
    """
    with reading(path, name):
        reader = sitk.ImageFileReader()
        reader.SetImageIO(image_io)
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        channels = reader.GetNumberOfComponents()
        # Two components show the type; a header may promise billions.
        voxel = sitk.Image([1, 1], reader.GetPixelID(), min(channels, 2))
        dtype = sitk.GetArrayViewFromImage(voxel).dtype
        shape = (*reader.GetSize(), *([channels] if channels > 1 else []))
        return ItkHeader(shape, dtype, reader, start, packing, packed_bytes)


def read_voxels(path: Path, name: str, header: ItkHeader, kind: str) -> Volume:
    """The volume of a file.

    Channels are the components of a vector image or, as in NIfTI, the fourth axis of a 4D one.
    """
    with reading(path, name):
        _check_voxels(path, header)
        image = header.reader.Execute()
        vector = image.GetNumberOfComponentsPerPixel() > 1
        array = sitk.GetArrayFromImage(image)
        # (Z, Y, X, C) -> (C, Z, Y, X) -> (C, X, Y, Z): channels first, spatial axes reversed
        array = np.moveaxis(array, -1, 0) if vector else array
        array = array.transpose(0, 3, 2, 1) if array.ndim == 4 else array.T
        affine = _affine(image)
    return finish(path, array, affine, kind)


def write_image(volume: Volume, path: Path) -> None:
    """Write the array in its own type, compressed, the affine as spacing, direction and origin."""
    vector = volume.array.ndim == 4
    array = volume.array.transpose(3, 2, 1, 0) if vector else volume.array.T
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=vector)
    affine = LPS_RAS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def _check_voxels(path: Path, header: ItkHeader) -> None:
    """Check that the file can hold what its header promises.

    SimpleITK reads on where voxels are damaged, and of short data MetaIO prints lines of its own.
    """
    size = path.stat().st_size
    check_size(path, header.nbytes, size * MAX_DEFLATE_RATIO)
    if header.packing == "deflate":
        packed, stated = check_deflated(path, header.start, header.nbytes), header.packed_bytes
        if stated is not None and not packed <= stated <= size - header.start:
            raise UserError(
                f"{path}: expected the size of the packed voxels, {packed} bytes, in the header, "
                f"got {stated}; save the scan again"
            )
    elif header.packing == "raw":
        check_size(path, header.nbytes, size - header.start)


def _affine(image: sitk.Image) -> NDArray[np.float64]:
    """The affine (4, 4) to RAS+ mm of the first three axes.

    The unit matrix for a 2D image, which `finish` refuses anyway.
    """
    affine = np.eye(4)
    dimension = image.GetDimension()
    if dimension >= 3:
        direction = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3]
        affine[:3, :3] = direction * np.asarray(image.GetSpacing()[:3])
        affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_RAS @ affine
