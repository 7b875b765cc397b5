"""What NRRD and MetaImage share: SimpleITK's arrays are (Z, Y, X) and its world is LPS, ours are
(X, Y, Z) and RAS.
"""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dkuxnet.core.types import Volume
from dkuxnet.data.checks import MAX_DEFLATE_RATIO, check_size, finish, reading

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def open_header(path: Path, image_io: str) -> sitk.ImageFileReader:
    """A reader that has read the header only.

    Raises UserError where the file cannot hold the voxels it promises.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    check_size(path, voxel_bytes(reader), path.stat().st_size * MAX_DEFLATE_RATIO)
    return reader


def voxel_bytes(reader: sitk.ImageFileReader) -> int:
    """Size of the uncompressed voxels by the header."""
    bytes_each = sitk.Image(
        [1, 1], reader.GetPixelID(), reader.GetNumberOfComponents()
    ).GetSizeOfPixelComponent()
    return (
        int(np.prod(reader.GetSize(), dtype=object)) * reader.GetNumberOfComponents() * bytes_each
    )


def read_voxels(path: Path, reader: sitk.ImageFileReader, expected: str, kind: str) -> Volume:
    """Channels are the components of a vector image or, as in NIfTI, the fourth axis of a 4D one."""
    with reading(path, expected):
        image = reader.Execute()
        vector = image.GetNumberOfComponentsPerPixel() > 1
        array = sitk.GetArrayFromImage(image)
        # (Z, Y, X, C) -> (C, X, Y, Z) and (C, Z, Y, X) -> (C, X, Y, Z): the spatial axes turn
        # round, the channels lead
        array = np.moveaxis(array, -1, 0) if vector else array
        array = array.transpose(0, 3, 2, 1) if array.ndim == 4 else array.T
        affine = _affine(image)
    return finish(path, array, affine, kind)


def write_image(volume: Volume, path: Path) -> None:
    """Write the array with its own type, compressed, and the affine as spacing, direction and
    origin.
    """
    vector = volume.array.ndim == 4
    array = volume.array.transpose(3, 2, 1, 0) if vector else volume.array.T
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=vector)
    affine = LPS_RAS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def _affine(image: sitk.Image) -> np.ndarray:
    """(4, 4) RAS+ mm of the first three axes; the unit matrix for a 2D image, which `finish`
    refuses anyway.
    """
    affine = np.eye(4)
    dimension = image.GetDimension()
    if dimension >= 3:
        direction = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3]
        affine[:3, :3] = direction * np.asarray(image.GetSpacing()[:3])
        affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_RAS @ affine
