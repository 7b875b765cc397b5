"""Segmentations as DICOM SEG, with patient, study and frame of reference of the segmented series.

highdicom turns our RAS+ affine into DICOM's axes. It is an optional extra: importing this module
without it raises UserError.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VM
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DA, IS, TM, DSfloat, validate_value

from dkuxnet.core import extras
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import unknown
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import telling
from dkuxnet.data.dicom.codes import Codes, codes_of, text_of
from dkuxnet.data.dicom.headers import Image, quiet, read_dataset
from dkuxnet.data.dicom.series import Series
from dkuxnet.data.dicom.stack import LPS_RAS, Stack, arrange
from dkuxnet.data.dicom.tree import opened
from dkuxnet.machine.files import atomically

extras.require("dicom", "highdicom")

import highdicom as hd  # noqa: E402  # behind the line that says how to install it
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription  # noqa: E402

Array = NDArray[Any]
Writer = Callable[[Volume, Path, Sequence[str]], None]
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
UTF_8 = "ISO_IR 192"  # as the standard calls it
DESCRIPTIVE_GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0032, 0x0040)
LOSSY_TAGS = [Tag(f"LossyImageCompression{ending}") for ending in ("", "Ratio", "Method")]
MAX_COMMENTS = 10240  # characters, as the standard has it
IDENTITY = ("PatientName", "PatientID", "AccessionNumber")  # kept, however long
CALENDAR: dict[str, Callable[[str], object]] = {"DA": DA, "TM": TM}
SEXES = {"MALE": "M", "FEMALE": "F", "OTHER": "O"}
UID_FORM = re.compile(r"[\w.-]{1,64}", re.ASCII)  # more than the standard: they are only repeated
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


@dataclass(frozen=True)
class Origin:
    """What a SEG says of the model that made it, and of what its reader should look at.

    model, version: in words. notes: a sentence each; none where nothing is doubtful.
    """

    model: str = ""
    version: str = ""
    notes: tuple[str, ...] = ()


UNKNOWN = Origin()


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
    with _writing(series), quiet():
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
    _check_names(series)
    stack = arrange(series)
    with _writing(series), quiet():
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


def _writing(series: Series) -> AbstractContextManager[None]:
    """Turn whatever pydicom and highdicom raise in this block into a UserError."""
    return telling(
        f"{series.path}: series {series.uid} cannot become a DICOM SEG",
        "leave out --format dicom-seg",
    )


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


def _check_names(series: Series) -> None:
    """Check that the series has all names by which a DICOM SEG says what it belongs to."""
    images = series.images
    named = {
        "frame of reference": {image.frame_of_reference_uid for image in images},
        "study": {image.study_uid for image in images},
        "SOP instance": {image.sop_instance_uid for image in images},
    }
    for what, uids in named.items():
        if not all(UID_FORM.fullmatch(uid) for uid in uids):
            raise UserError(
                f"{series.path}: series {series.uid} has no {what} UID, without which a DICOM SEG "
                "cannot say where it belongs; leave out --format dicom-seg"
            )


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
        source = Dataset() if sources else _patient_and_study(series, image)
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
    cited = [_reference(image) for image in images.values()]
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
                    item.update(_reference(image))
                    if len(image.planes) > 1:
                        item.ReferencedFrameNumber = frame + 1


def _reference(image: Image) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.sop_class_uid
    reference.ReferencedSOPInstanceUID = image.sop_instance_uid
    return reference


def _patient_and_study(series: Series, image: Image) -> Dataset:
    """What the file of `image` says of anything but its pixels, as far as the standard allows it.

    Dates that a separator was put into lose it; other values that a SEG may not have are left out.
    """
    kept = Dataset()
    with opened(series.path) as entries:
        entry = next(entry for entry in entries if entry.name == image.name)
        with entry.open() as stream:
            header = read_dataset(stream)
    for tag in header.keys():  # noqa: SIM118  # reading an element may fail
        if tag.group in DESCRIPTIVE_GROUPS or tag in LOSSY_TAGS:
            with suppress(Exception):  # what cannot be decoded
                element = _normalised(header[tag])
                if _is_valid(element):
                    kept.add(element)
    for keyword in MAY_BE_EMPTY:
        if keyword not in kept:
            setattr(kept, keyword, "")
    return kept


def _normalised(element: DataElement) -> DataElement:
    """A date as 2020-01-31, a time as 12:00:00 and a sex as female are common enough."""
    value = element.value
    if isinstance(value, str):
        if element.VR in ("DA", "TM"):
            element.value = re.sub(r"[-.:/]" if element.VR == "DA" else "[-:]", "", value)
        if element.keyword == "PatientSex":
            element.value = SEXES.get(value.upper(), value.upper())
    return element


def _is_valid(element: DataElement) -> bool:
    """Whether the values are as the standard has them, and so all that a sequence holds.

    Also raises ValueError where they are not.
    """
    if element.VR == "SQ":
        return all(_is_valid(each) for item in element.value for each in item)
    if element.keyword == "PatientSex" and element.value not in ("", *SEXES.values()):
        return False
    if element.VM > 1 and dictionary_VM(element.tag) == "1":
        return False
    for value in element.value if element.VM > 1 else [element.value]:
        if element.keyword not in IDENTITY:
            # pydicom holds numbers in a form that its check does not know
            written = str(value) if isinstance(value, DSfloat | IS) else value
            validate_value(element.VR, written, config.RAISE)
        if element.VR in CALENDAR:
            CALENDAR[element.VR](value)
    return True


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
