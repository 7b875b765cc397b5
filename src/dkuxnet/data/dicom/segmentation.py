"""Segmentations as DICOM SEG of the series that was segmented: its patient, study and frame of
reference, its slices cited.

Where a voxel lies is highdicom's business: our affine goes in as RAS+, its geometry says what that
is in DICOM's axes.
"""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import unknown
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import reading
from dkuxnet.data.dicom.codes import Codes, codes_of
from dkuxnet.data.dicom.headers import quiet, read_dataset
from dkuxnet.data.dicom.series import Series
from dkuxnet.data.dicom.stack import arrange
from dkuxnet.data.dicom.tree import opened, place
from dkuxnet.machine.files import atomically

Writer = Callable[[Volume, Path], None]
SEGMENTATION_TYPES = ("binary", "labelmap")
SEG_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",
)  # Segmentation and Label Map Segmentation
SERIES_NUMBERS = {
    "label": 9001,
    "probabilities": 9002,
    "uncertainty": 9003,
}  # apart from those that scanners give
FRACTION_STEPS = 255
# Type 2 attributes of patient and study: they must be there, and may be empty. Anonymisers take
# them away altogether.
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
# Qualitative colours that are told apart by the colour-blind too (Okabe and Ito), red to start with
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
    """Raises UserError where it is not one of SEGMENTATION_TYPES."""
    if segmentation_type not in SEGMENTATION_TYPES:
        raise unknown("segmentation type", segmentation_type, SEGMENTATION_TYPES)


def check_replaceable(path: Path) -> None:
    """Raises UserError where `path` is a file and not a DICOM SEG: a slice of the scan may have
    that name.
    """
    if not path.is_file():
        return
    try:
        kind = dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).get(
            "SOPClassUID"
        )
    except Exception:  # no DICOM, or a damaged one
        kind = None
    if kind not in SEG_CLASSES:
        raise UserError(f"{path} is there already and is no DICOM SEG; choose another --output")


def writers(
    series: Series, labels: dict[str, int], segmentation_type: str = "binary"
) -> dict[str, Writer]:
    """For "label", "probabilities" and "uncertainty" the function that writes such a volume of
    `series` to a path.

    Raises UserError where the series has no frame of reference.
    """
    _frame_of_reference(series)
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
    """Write a label map (X, Y, Z) on the grid of `series` as SEG: a segment a class, in the order
    of `labels`.

    labels: class name -> value in the map, background first. Every class is described, those
    without a voxel too. Raises UserError where the series has no frame of reference, or `path`
    cannot be written.
    """
    check_type(segmentation_type)
    names = list(labels)[1:]
    segments = np.zeros(label.shape, np.uint8 if len(names) < 256 else np.uint16)
    for number, name in enumerate(names, 1):
        segments[label.array == labels[name]] = number
    _write(
        _volume(segments, series),
        [_described(i, name, codes_of(name)) for i, name in enumerate(names, 1)],
        series,
        path,
        segmentation_type.upper(),
        "label",
    )


def write_probabilities(
    probabilities: Volume, labels: dict[str, int], series: Series, path: Path
) -> None:
    """Write (K, X, Y, Z) in [0, 1] as fractional SEG, in steps of 1/255: a segment a class but the
    background.
    """
    names = list(labels)[1:]
    described = [_described(i, name, codes_of(name)) for i, name in enumerate(names, 1)]
    _write(
        _volume(np.moveaxis(probabilities.array[1:], 0, -1), series),
        described,
        series,
        path,
        "FRACTIONAL",
        "probabilities",
    )


def write_uncertainty(uncertainty: Volume, series: Series, path: Path) -> None:
    """Write (X, Y, Z) in [0, 1] as fractional SEG, in steps of 1/255: one segment that is called
    uncertainty.
    """
    meaning = codes_of("uncertainty of the segmentation")
    _write(
        _volume(uncertainty.array[..., None], series),
        [_described(1, "uncertainty", meaning)],
        series,
        path,
        "FRACTIONAL",
        "uncertainty",
    )


def _write(
    volume: hd.Volume,
    described: list[SegmentDescription],
    series: Series,
    path: Path,
    kind: str,
    what: str,
) -> None:
    version = metadata.version("dkuxnet")
    with quiet():
        segmentation = Segmentation(
            source_images=_sources(series),
            pixel_array=volume,
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
        if "ContentCreatorName" not in segmentation:  # may be empty, but must be there
            segmentation.ContentCreatorName = None
        atomically(path, segmentation.save_as)


def _volume(array: np.ndarray, series: Series) -> hd.Volume:
    """array: (X, Y, Z) or (X, Y, Z, segments) on the grid of the series -> slices, rows, columns
    in highdicom's order.
    """
    stack = arrange(series)
    channels = {"SegmentNumber": list(range(1, array.shape[3] + 1))} if array.ndim == 4 else None
    return hd.Volume(
        array,
        stack.affine,
        "PATIENT",
        frame_of_reference_uid=_frame_of_reference(series),
        channels=channels,
        from_reference_convention="RAS",
    ).permute_spatial_axes([2, 1, 0])


def _frame_of_reference(series: Series) -> str:
    uid = series.images[0].frame_of_reference_uid
    if not uid:
        raise UserError(
            f"{series.path}: series {series.uid} names no frame of reference, without which a "
            "DICOM SEG cannot "
            "say where it lies; leave out --format dicom-seg"
        )
    return uid


def _sources(series: Series) -> list[Dataset]:
    """The headers of the series' files, whole but for the voxels."""
    names, found = {image.name for image in series.images}, []
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


def _described(number: int, name: str, meaning: Codes) -> SegmentDescription:
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
        description.SegmentedPropertyTypeCodeSequence[
            0
        ].SegmentedPropertyTypeModifierCodeSequence = [_coded(meaning.side)]
    return description


def _coded(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept.from_code(code)
