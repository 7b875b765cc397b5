"""A DICOM series -> Volume: voxels in the units of its modality (Hounsfield units in CT)."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import MAX_DEFLATE_RATIO, finish, reading
from dkuxnet.data.dicom.codestreams import check_codestream
from dkuxnet.data.dicom.headers import MAX_ITEMS, Reads, attribute, quiet, read_dataset
from dkuxnet.data.dicom.series import Series, one_series
from dkuxnet.data.dicom.stack import Stack, arrange
from dkuxnet.data.dicom.tree import opened, place
from dkuxnet.machine.memory import check_memory

MAX_VOXELS = 2**31  # 8 GiB as float32
MAX_VOXEL_BYTES = 8  # stored
FREE_BYTES = 2**28  # any file may unpack to this
PIXEL_TAGS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
# All that voxels need. A file may hold millions of other elements.
TAGS = (
    *PIXEL_TAGS,
    *("NumberOfFrames", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "SpecificCharacterSet"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Both must be there, and grey images without them are read by everybody
OFTEN_LEFT_OUT = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
SLOPE = ("PixelValueTransformationSequence", "RescaleSlope")
INTERCEPT = ("PixelValueTransformationSequence", "RescaleIntercept")
INVERTED = (
    "is to be shown with its low values bright (MONOCHROME1); it is read as stored: check that "
    "high values mean what they mean in the other scans"
)
HIGH_BIT = (
    "says that its numbers stand in other bits than the lowest (HighBit), which DICOM forbids; "
    "they are read from the lowest: check its values"
)
SOME_SCALED = "has slices without rescale slope and intercept beside others with them"
NO_SLOPE = "has a rescale slope of 0, which is taken as 1; check its values"
JPEG, JPEG_2000 = "pylibjpeg pylibjpeg-libjpeg", "pylibjpeg pylibjpeg-openjpeg"


def read_scan(path: str | Path, series_uid: str | None = None) -> Volume:
    """The series of a folder, tree, zip or multi-frame file as (X, Y, Z) float32.

    The axes are columns, rows, and slices along their normal. Rescale slope and intercept, or the
    modality's table, are applied to every slice. Gives a DataWarning where files are left out,
    slices lie unevenly, or their numbers may mean something else. Raises UserError where there is
    not one series (`series_uid` chooses), where it is no upright stack, or where a file is damaged.
    """
    series = one_series(path, series_uid)
    stack = arrange(series)
    _check_decoders(series)
    header = series.header
    if header.voxels > MAX_VOXELS:
        raise UserError(
            f"{series.path}: series {series.uid} has {header.shape[::-1]} voxels, more than "
            f"{MAX_VOXELS:.2g}; crop it"
        )
    packed = sum(image.file_bytes for image in series.images)
    if header.nbytes > max(FREE_BYTES, MAX_DEFLATE_RATIO * packed):
        raise UserError(
            f"{series.path}: series {series.uid} has {header.voxels} voxels in {packed} bytes, "
            "which no scan does; export it again"
        )
    check_memory(header.nbytes, str(series.path))
    with reading(series.path, "DICOM"):
        array = np.empty(header.shape[::-1], header.dtype)
    told = [*stack.told, *sorted(_fill(array, series, stack))]
    if series.left_out:
        told.append(f"is read without {series.left_out}")
    for sentence in told:
        warnings.warn(f"{series.path}: series {series.uid} {sentence}", DataWarning, stacklevel=2)
    return replace(
        finish(series.path, array.T, stack.affine, "image"), modality=series.images[0].modality
    )


def _fill(array: NDArray[Any], series: Series, stack: Stack) -> set[str]:
    """Read the voxels file by file, each once; returns what is odd about them, in words.

    array: (slices, rows, columns).
    """
    odd, scaled = set(), set()
    slices: dict[str, list[tuple[int, int]]] = {}
    for index, (image, frame) in enumerate(stack.frames):
        slices.setdefault(image.name, []).append((index, frame))
    reads = Reads()
    with opened(series.path) as entries:
        for entry in entries:
            if entry.name not in slices:
                continue
            with reading(place(series.path, entry.name), "DICOM"), quiet(), entry.open() as stream:
                first, _ = stack.frames[slices[entry.name][0][0]]
                most = MAX_VOXEL_BYTES * first.rows * first.columns * len(first.planes)
                dataset = read_dataset(stream, most, TAGS, reads=reads.of(entry))
                check_fragments(dataset)
                for index, frame in slices[entry.name]:
                    array[index] = read_frame(dataset, frame)
                    slope = attribute(dataset, frame, *SLOPE)
                    scaled.add((slope, attribute(dataset, frame, *INTERCEPT)) != (None, None))
                    if slope == 0:
                        odd.add(NO_SLOPE)
                if dataset.PhotometricInterpretation == "MONOCHROME1":
                    odd.add(INVERTED)
                if dataset.get("HighBit") not in (None, dataset.BitsStored - 1):
                    odd.add(HIGH_BIT)
    return odd | {SOME_SCALED} if len(scaled) > 1 else odd


def read_frame(dataset: Dataset, frame: int) -> NDArray[Any]:
    """(rows, columns) of one frame in the modality's units."""
    for name, value in OFTEN_LEFT_OUT.items():
        if name not in dataset:
            setattr(dataset, name, value)
    index: int | None = frame if "NumberOfFrames" in dataset else None
    pixels = dataset
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        pixels, index = _checked(dataset, frame), None
    return _in_units(pixel_array(pixels, index=index), dataset, frame)


def _in_units(stored: NDArray[Any], dataset: Dataset, frame: int) -> NDArray[Any]:
    """Stored numbers in the modality's units: by its table, or by slope and intercept.

    Either of the two may be missing or empty. A slope of 0 is taken as 1, as GDCM does.
    """
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset)
    slope, intercept = (attribute(dataset, frame, *place) for place in (SLOPE, INTERCEPT))
    if slope is None and intercept is None:
        return stored
    return stored * float(slope or 1) + float(intercept or 0)


def check_fragments(dataset: Dataset) -> None:
    """Check that pydicom will not be given far more pieces of frames than a scan has to list."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        pieces = dataset.PixelData.count(b"\xfe\xff\x00\xe0")
        if pieces > MAX_ITEMS:
            raise ValueError(f"its frames are in {pieces} pieces")


def _checked(dataset: Dataset, frame: int) -> Dataset:
    """A data set of one compressed frame alone, whose decoder will make what the data set says."""
    tables = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    packed = get_frame(
        dataset.PixelData,
        frame,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        extended_offsets=tuple(dataset[table].value for table in tables)
        if tables[0] in dataset
        else None,
    )
    check_codestream(packed, dataset.file_meta.TransferSyntaxUID, dataset.Rows, dataset.Columns)
    single = Dataset()
    single.file_meta = dataset.file_meta
    for tag in PIXEL_TAGS:
        if tag in dataset:
            single.add(dataset[tag])
    single.PixelData = encapsulate([packed], has_bot=False)
    single["PixelData"].VR = "OB"
    return single


def _check_decoders(series: Series) -> None:
    for uid in sorted({image.transfer_syntax_uid for image in series.images} - {""}):
        syntax = UID(uid)
        if not syntax.is_valid or not syntax.is_transfer_syntax:
            raise UserError(
                f"{series.path}: series {series.uid} has the transfer syntax {uid}, which DICOM "
                "does not know; export it uncompressed"
            )
        if not syntax.is_compressed:
            continue
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            package = JPEG_2000 if "2000" in syntax.name else JPEG
            raise UserError(
                f"{series.path}: series {series.uid} is compressed ({syntax.name}), and the "
                f"decoder for it is not installed; pip install {package}, or export it uncompressed"
            )
