"""Segmentations as DICOM SEG, with patient, study and frame of reference of the segmented series.

highdicom turns our RAS+ affine into DICOM's axes. It is an optional extra: importing this module
without it raises UserError.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DSfloat

from dkuxnet.core import extras
from dkuxnet.core.lookup import unknown
from dkuxnet.core.types import Volume
from dkuxnet.data.dicom.codes import Codes, codes_of, text_of
from dkuxnet.data.dicom.headers import quiet
from dkuxnet.data.dicom.series import Series
from dkuxnet.data.dicom.stack import LPS_RAS, Stack, arrange
from dkuxnet.data.dicom.study import (
    COLOURS,
    UNKNOWN,
    UTF_8,
    Origin,
    check_names,
    patient_and_study,
    reference,
    writing,
)
from dkuxnet.machine.files import atomically

extras.require("dicom", "highdicom")

import highdicom as hd  # noqa: E402  # behind the line that says how to install it
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription  # noqa: E402

Array = NDArray[Any]
Writer = Callable[[Volume, Path, Sequence[str]], None]
NAME, FORM = "DICOM SEG", "dicom-seg"
SEGMENTATION_TYPES = ("binary", "labelmap")
# Segmentation Storage and Label Map Segmentation Storage
SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# Higher than the numbers that scanners give
SERIES_NUMBERS = {"label": 9001, "probabilities": 9002, "uncertainty": 9003}
FRACTION_STEPS = 255
MAX_COMMENTS = 10240  # characters, as the standard has it


def check_type(segmentation_type: str) -> None:
    """Raise UserError where it is not one of SEGMENTATION_TYPES."""
    if segmentation_type not in SEGMENTATION_TYPES:
        raise unknown("segmentation type", segmentation_type, SEGMENTATION_TYPES)


def writers(
    series: Series,
    labels: dict[str, int],
    segmentation_type: str = "binary",
    origin: Origin = UNKNOWN,
) -> dict[str, Writer]:
    """The functions that write "label", "probabilities" and "uncertainty" of `series` to a path.

    They also take the notes of the segmentation, see `Origin`.

    Raises UserError where the series has no frame of reference, or where its files are damaged so
    that no segmentation can be written of them, though they could be read.
    """
    spot = np.zeros(series.header.shape, np.uint8)
    spot[0, 0, 0] = 1
    _segmentation(spot, _described(["spot"]), series, "BINARY", "label", origin)

    def noted(notes: Sequence[str]) -> Origin:
        return replace(origin, notes=tuple(notes))

    return {
        "label": lambda volume, path, notes: write_label(
            volume, labels, series, path, segmentation_type, noted(notes)
        ),
        "probabilities": lambda volume, path, notes: write_probabilities(
            volume, labels, series, path, noted(notes)
        ),
        "uncertainty": lambda volume, path, notes: write_uncertainty(
            volume, series, path, noted(notes)
        ),
    }


def write_label(
    label: Volume,
    labels: dict[str, int],
    series: Series,
    path: Path,
    segmentation_type: str = "binary",
    origin: Origin = UNKNOWN,
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
    described = _described(names, origin)
    _write(segments, described, series, path, segmentation_type.upper(), "label", origin)


def write_probabilities(
    probabilities: Volume,
    labels: dict[str, int],
    series: Series,
    path: Path,
    origin: Origin = UNKNOWN,
) -> None:
    """Write (K, X, Y, Z) in [0, 1] as fractional SEG in steps of 1/255.

    There is a segment for each class except the background.
    """
    segments = np.moveaxis(probabilities.array[1:], 0, -1)
    described = _described(list(labels)[1:], origin)
    _write(segments, described, series, path, "FRACTIONAL", "probabilities", origin)


def write_uncertainty(
    uncertainty: Volume, series: Series, path: Path, origin: Origin = UNKNOWN
) -> None:
    """Write (X, Y, Z) in [0, 1] as fractional SEG in steps of 1/255: one segment, "uncertainty"."""
    meaning = codes_of("uncertainty of the segmentation")
    segments = uncertainty.array[..., None]
    described = [_segment(1, "uncertainty", meaning, origin)]
    _write(segments, described, series, path, "FRACTIONAL", "uncertainty", origin)


def _write(
    segments: Array,
    described: Sequence[SegmentDescription],
    series: Series,
    path: Path,
    kind: str,
    what: str,
    origin: Origin,
) -> None:
    segmentation = _segmentation(segments, described, series, kind, what, origin)
    with writing(series, NAME, FORM), quiet():
        atomically(path, segmentation.save_as)


def _segmentation(
    segments: Array,
    described: Sequence[SegmentDescription],
    series: Series,
    kind: str,
    what: str,
    origin: Origin,
) -> Segmentation:
    version = metadata.version("dkuxnet")
    check_names(series, NAME, FORM)
    stack = arrange(series)
    with writing(series, NAME, FORM), quiet():
        sources = _sources(series, stack)
        segmentation = Segmentation(
            source_images=sources,
            pixel_array=_volume(segments, series, stack),
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
            content_description=f"{what} by dkuxnet",
            series_description=f"dkuxnet {what}{', to be checked' if origin.notes else ''}",
            specific_character_set=UTF_8,
        )
        if "ContentCreatorName" not in segmentation:  # must be present, but may be empty
            segmentation.ContentCreatorName = None
        if origin.notes:
            segmentation.ImageComments = "\r\n".join(origin.notes)[:MAX_COMMENTS]
        _cite(segmentation, sources, stack)
    return segmentation


def _volume(segments: Array, series: Series, stack: Stack) -> hd.Volume:
    """(X, Y, Z) or (X, Y, Z, segments) on the grid of the series -> slices, rows, columns."""
    volume = hd.Volume(
        segments,
        stack.affine,
        "PATIENT",
        frame_of_reference_uid=series.images[0].frame_of_reference_uid,
        channels={"SegmentNumber": range(1, segments.shape[3] + 1)} if segments.ndim == 4 else None,
        from_reference_convention="RAS",
    )
    return volume.permute_spatial_axes([2, 1, 0])


def _sources(series: Series, stack: Stack) -> list[Dataset]:
    """A single-frame image for each slice, exactly in its place in the stack, sorted.

    highdicom takes the frames of a multi-frame file, and several such files, no other way, and
    refuses what scanners round and leave out. The first has patient and study.
    """
    to_lps = LPS_RAS @ stack.affine
    steps = np.linalg.norm(to_lps[:3, :3], axis=0)
    along, down, _ = (to_lps[:3, :3] / steps).T
    sources: list[Dataset] = []
    for index, (image, _) in enumerate(stack.frames):
        source = Dataset() if sources else patient_and_study(series, image)
        source.SOPClassUID, source.SOPInstanceUID = CTImageStorage, hd.UID()
        source.StudyInstanceUID, source.SeriesInstanceUID = image.study_uid, image.series_uid
        source.FrameOfReferenceUID = image.frame_of_reference_uid
        source.Rows, source.Columns = image.rows, image.columns
        source.ImagePositionPatient = _decimals(to_lps[:3] @ (0, 0, index, 1))
        source.ImageOrientationPatient = _decimals([*along, *down])
        source.PixelSpacing = _decimals(steps[[1, 0]])
        source.SliceThickness = source.SpacingBetweenSlices = _decimals(steps[2:])[0]
        sources.append(source)
    return sources


def _decimals(numbers: Iterable[float]) -> list[DSfloat]:
    return [DSfloat(number, auto_format=True) for number in numbers]


def _cite(segmentation: Segmentation, sources: Sequence[Dataset], stack: Stack) -> None:
    """Name the files and frames of the series where highdicom named `sources`."""
    images = {image.name: image for image, _ in stack.frames}
    cited = [reference(image) for image in images.values()]
    segmentation.SourceImageSequence = cited
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = cited
    places = {
        source.SOPInstanceUID: place for source, place in zip(sources, stack.frames, strict=True)
    }
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                # Frames of several segments share an item
                if found := places.get(item.ReferencedSOPInstanceUID):
                    image, frame = found
                    item.update(reference(image))
                    if len(image.planes) > 1:
                        item.ReferencedFrameNumber = frame + 1


def _described(names: Sequence[str], origin: Origin = UNKNOWN) -> list[SegmentDescription]:
    return [_segment(number, name, codes_of(name), origin) for number, name in enumerate(names, 1)]


def _segment(number: int, name: str, meaning: Codes, origin: Origin) -> SegmentDescription:
    algorithm = text_of(f"dkuxnet {origin.model}")
    version = text_of(f"{metadata.version('dkuxnet')} {origin.version}")
    description = SegmentDescription(
        segment_number=number,
        segment_label=text_of(name),
        segmented_property_category=meaning.category,
        segmented_property_type=meaning.property,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            algorithm, codes.DCM.ArtificialIntelligence, version
        ),
        anatomic_regions=[meaning.region] if meaning.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*COLOURS[(number - 1) % len(COLOURS)]),
    )
    if meaning.side:
        (property_code,) = description.SegmentedPropertyTypeCodeSequence
        side = hd.sr.CodedConcept.from_code(meaning.side)
        property_code.SegmentedPropertyTypeModifierCodeSequence = [side]
    return description
