"""Segmentations as DICOM SEG, with patient, study and frame of reference of the segmented series.

highdicom turns our RAS+ affine into DICOM's axes. It is an optional extra: importing this module
without it raises UserError.
"""

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes

from dkuxnet.core import extras
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import unknown
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import reading
from dkuxnet.data.dicom.codes import Codes, codes_of
from dkuxnet.data.dicom.headers import quiet, read_dataset
from dkuxnet.data.dicom.series import Series
from dkuxnet.data.dicom.stack import arrange
from dkuxnet.data.dicom.tree import opened, place
from dkuxnet.machine.files import atomically

extras.require("dicom", "highdicom")

import highdicom as hd  # noqa: E402  # behind the line that says how to install it
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription  # noqa: E402

Writer = Callable[[Volume, Path], None]
SEGMENTATION_TYPES = ("binary", "labelmap")
# Segmentation Storage and Label Map Segmentation Storage
SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# Higher than the numbers that scanners give
SERIES_NUMBERS = {"label": 9001, "probabilities": 9002, "uncertainty": 9003}
FRACTION_STEPS = 255
# Type 2 attributes of patient and study: they must be present but may be empty. Anonymisers remove
# them altogether.
MAY_BE_EMPTY = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
)
# Qualitative colours that colour-blind people can tell apart (Okabe and Ito), red first
COLOURS = (
    (213, 94, 0),
    (0, 114, 178),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
)


def check_type(segmentation_type: str) -> None:
    """Raise UserError where it is not one of SEGMENTATION_TYPES."""
    if segmentation_type not in SEGMENTATION_TYPES:
        raise unknown("segmentation type", segmentation_type, SEGMENTATION_TYPES)


def check_replaceable(path: Path) -> None:
    """Raise UserError where `path` is a file but not a DICOM SEG: it may be a slice of the scan."""
    if not path.is_file():
        return
    try:
        with open_regular(path) as stream:
            kind = read_dataset(stream, tags=["SOPClassUID"]).get("SOPClassUID")
    except Exception:  # not DICOM, or damaged
        kind = None
    if kind not in SEG_CLASSES:
        raise UserError(f"{path} is there already and is no DICOM SEG; choose another --output")


def writers(
    series: Series, labels: dict[str, int], segmentation_type: str = "binary"
) -> dict[str, Writer]:
    """The functions that write "label", "probabilities" and "uncertainty" of `series` to a path.

    Raises UserError where the series has no frame of reference, or where its files are damaged so
    that no segmentation can be written of them, though they could be read.
    """
    _frame_of_reference(series)
    spot = np.zeros(series.header.shape, np.uint8)
    spot[0, 0, 0] = 1
    _segmentation(spot, _described(["spot"]), series, "BINARY", "label")
    return {
        "label": lambda volume, path: write_label(volume, labels, series, path, segmentation_type),
        "probabilities": lambda volume, path: write_probabilities(volume, labels, series, path),
        "uncertainty": lambda volume, path: write_uncertainty(volume, series, path),
    }


def write_label(
    label: Volume,
    labels: dict[str, int],
    series: Series,
    path: Path,
    segmentation_type: str = "binary",
) -> None:
    """Write a label map (X, Y, Z) on the grid of `series`: a segment for each class of `labels`.

    labels: class name -> value in the map, background first. Classes without a voxel are described
    too. Raises UserError where the series has no frame of reference, or `path` cannot be written.
    """
    check_type(segmentation_type)
    names = list(labels)[1:]
    segments = np.zeros(label.shape, np.uint8 if len(names) < 256 else np.uint16)
    for number, name in enumerate(names, 1):
        segments[label.array == labels[name]] = number
    _write(segments, _described(names), series, path, segmentation_type.upper(), "label")


def write_probabilities(
    probabilities: Volume, labels: dict[str, int], series: Series, path: Path
) -> None:
    """Write (K, X, Y, Z) in [0, 1] as fractional SEG in steps of 1/255.

    There is a segment for each class except the background.
    """
    segments = np.moveaxis(probabilities.array[1:], 0, -1)
    _write(segments, _described(list(labels)[1:]), series, path, "FRACTIONAL", "probabilities")


def write_uncertainty(uncertainty: Volume, series: Series, path: Path) -> None:
    """Write (X, Y, Z) in [0, 1] as fractional SEG in steps of 1/255: one segment, "uncertainty"."""
    meaning = codes_of("uncertainty of the segmentation")
    segments = uncertainty.array[..., None]
    described = [_segment(1, "uncertainty", meaning)]
    _write(segments, described, series, path, "FRACTIONAL", "uncertainty")


def _write(
    segments: NDArray[Any],
    described: Sequence[SegmentDescription],
    series: Series,
    path: Path,
    kind: str,
    what: str,
) -> None:
    segmentation = _segmentation(segments, described, series, kind, what)
    with quiet():
        atomically(path, segmentation.save_as)


def _segmentation(
    segments: NDArray[Any],
    described: Sequence[SegmentDescription],
    series: Series,
    kind: str,
    what: str,
) -> Segmentation:
    version = metadata.version("dkuxnet")
    sources = _sources(series)
    with reading(series.path, "DICOM"), quiet():
        segmentation = Segmentation(
            source_images=sources,
            pixel_array=_volume(segments, series),
            segmentation_type=kind,
            segment_descriptions=described,
            series_instance_uid=hd.UID(),
            series_number=SERIES_NUMBERS[what],
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="dkuxnet",
            manufacturer_model_name="dkuxnet",
            software_versions=version,
            device_serial_number=version,
            max_fractional_value=FRACTION_STEPS,
            content_label=what.upper(),
            content_description=f"{what} by dkuxnet"[:64],
            series_description=f"dkuxnet {what}"[:64],
        )
        if "ContentCreatorName" not in segmentation:  # must be present, but may be empty
            segmentation.ContentCreatorName = None
    return segmentation


def _volume(segments: NDArray[Any], series: Series) -> hd.Volume:
    """(X, Y, Z) or (X, Y, Z, segments) on the grid of the series -> slices, rows, columns."""
    volume = hd.Volume(
        segments,
        arrange(series).affine,
        "PATIENT",
        frame_of_reference_uid=_frame_of_reference(series),
        channels={"SegmentNumber": range(1, segments.shape[3] + 1)} if segments.ndim == 4 else None,
        from_reference_convention="RAS",
    )
    return volume.permute_spatial_axes([2, 1, 0])


def _frame_of_reference(series: Series) -> str:
    uid = series.images[0].frame_of_reference_uid
    if not uid:
        raise UserError(
            f"{series.path}: series {series.uid} names no frame of reference, without which a "
            "DICOM SEG cannot say where it lies; leave out --format dicom-seg"
        )
    return uid


def _sources(series: Series) -> list[Dataset]:
    """All that the files of the series hold, except voxels."""
    names = {image.name for image in series.images}
    found: list[Dataset] = []
    with opened(series.path) as entries:
        for entry in entries:
            if entry.name not in names:
                continue
            with reading(place(series.path, entry.name), "DICOM"), entry.open() as stream:
                dataset = read_dataset(stream)
            for keyword in MAY_BE_EMPTY:
                if keyword not in dataset:
                    setattr(dataset, keyword, "")
            found.append(dataset)
    return found


def _described(names: Sequence[str]) -> list[SegmentDescription]:
    return [_segment(number, name, codes_of(name)) for number, name in enumerate(names, 1)]


def _segment(number: int, name: str, meaning: Codes) -> SegmentDescription:
    description = SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=meaning.category,
        segmented_property_type=meaning.property,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            "dkuxnet", codes.DCM.ArtificialIntelligence, metadata.version("dkuxnet")
        ),
        anatomic_regions=[meaning.region] if meaning.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*COLOURS[(number - 1) % len(COLOURS)]),
    )
    if meaning.side:
        (property_code,) = description.SegmentedPropertyTypeCodeSequence
        side = hd.sr.CodedConcept.from_code(meaning.side)
        property_code.SegmentedPropertyTypeModifierCodeSequence = [side]
    return description
