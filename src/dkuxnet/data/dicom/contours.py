"""Label maps as RT Structure Sets: the outlines of each class on every slice of the series.

An outline runs half-way between the centres of voxels, so that the centres inside are the class's
own and `data.dicom.structures` reads the same label map back. A hole is joined to the outline
around it by a line there and back, a keyhole, as the standard (C.8.8.6) has it.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.distance import cdist

from dkuxnet.core.types import Volume
from dkuxnet.data.dicom.codes import text_of
from dkuxnet.data.dicom.headers import quiet
from dkuxnet.data.dicom.series import Series
from dkuxnet.data.dicom.stack import LPS_RAS, Stack, arrange
from dkuxnet.data.dicom.structures import RT_STRUCTURE_SET
from dkuxnet.data.dicom.study import (
    COLOURS,
    MAY_BE_EMPTY,
    UNKNOWN,
    UTF_8,
    Origin,
    check_names,
    patient_and_study,
    reference,
    writing,
)
from dkuxnet.machine.files import atomically

Array = NDArray[Any]
NAME, FORM = "RT Structure Set", "rtstruct"
SERIES_NUMBER = 9004  # beside those of a DICOM SEG
STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"  # the class by which a structure set names its study
# What is taken over of patient and study; the rest is of images
KEPT = (
    *MAY_BE_EMPTY,
    *("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
)
MAX_DESCRIPTION = 1024  # characters, as the standard has it
DECIMALS = 4  # of a millimetre


def check_series(series: Series) -> None:
    """Raise UserError where the series cannot have a structure set, before there is a label map."""
    check_names(series, NAME, FORM)
    arrange(series)


def write_contours(
    label: Volume, labels: dict[str, int], series: Series, path: Path, origin: Origin = UNKNOWN
) -> None:
    """Write a label map (X, Y, Z) on the grid of `series`: a structure for each class of `labels`.

    labels: class name -> value in the map, background first. Classes without a voxel have no
    contours. Raises UserError where the series has no frame of reference, or `path` cannot be
    written.
    """
    check_names(series, NAME, FORM)
    stack = arrange(series)
    with writing(series, NAME, FORM), quiet():
        made = _header(series, stack, origin)
        for number, (name, value) in enumerate(list(labels.items())[1:], 1):
            _add_structure(made, number, name, label.array == value, stack)
        atomically(path, lambda target: made.save_as(target, enforce_file_format=True))


def outlines(mask: Array) -> list[NDArray[np.float64]]:
    """The outlines (n, 2) of a slice (X, Y), in voxels, each closed and without its holes."""
    values = np.pad(mask, 1).T.astype(np.float64)
    found = contour_generator(z=values, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    made = []
    for points, offsets in zip(*found, strict=True):
        rings = [points[start : stop - 1] - 1 for start, stop in pairwise(offsets)]
        outer, *holes = [_corners(ring) for ring in rings]
        made.append(_keyholed(outer, holes))
    return made


def _corners(ring: Array) -> Array:
    """A ring without the points at which it goes straight on."""
    (x, y), (x_on, y_on) = (ring - np.roll(ring, 1, axis=0)).T, (np.roll(ring, -1, axis=0) - ring).T
    kept: Array = ring[x * y_on != y * x_on]
    return kept


def _keyholed(outer: Array, holes: list[Array]) -> Array:
    """One ring of an outer ring and its holes.

    The nearest hole is joined first: a line to it crosses no other one.
    """
    while holes:
        distances = [cdist(outer, hole) for hole in holes]
        nearest = int(np.argmin([each.min() for each in distances]))
        at, start = np.unravel_index(distances[nearest].argmin(), distances[nearest].shape)
        hole = np.roll(holes.pop(nearest), -int(start), axis=0)
        outer = np.concatenate([outer[: at + 1], hole, hole[:1], outer[at:]])
    return outer


def _header(series: Series, stack: Stack, origin: Origin) -> FileDataset:
    """All but the structures."""
    now, image = datetime.now(), stack.frames[0][0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(RT_STRUCTURE_SET)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    source = patient_and_study(series, image)
    for keyword in KEPT:
        if keyword in source:
            made[keyword] = source[keyword]
    made.SpecificCharacterSet = UTF_8
    made.SOPClassUID, made.SOPInstanceUID = RT_STRUCTURE_SET, meta.MediaStorageSOPInstanceUID
    made.SeriesInstanceUID = generate_uid()
    made.StudyInstanceUID = image.study_uid
    made.Modality, made.SeriesNumber, made.InstanceNumber = "RTSTRUCT", SERIES_NUMBER, 1
    made.SeriesDescription = f"dkuxnet label{', to be checked' if origin.notes else ''}"
    made.OperatorsName = ""
    made.Manufacturer = made.ManufacturerModelName = "dkuxnet"
    made.SoftwareVersions = metadata.version("dkuxnet")
    made.StructureSetLabel = "dkuxnet"
    made.StructureSetDate = made.InstanceCreationDate = now.strftime("%Y%m%d")
    made.StructureSetTime = made.InstanceCreationTime = now.strftime("%H%M%S")
    if origin.notes:
        made.StructureSetDescription = "\r\n".join(origin.notes)[:MAX_DESCRIPTION]
    made.ApprovalStatus = "UNAPPROVED"
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = image.frame_of_reference_uid, ""
    made.ReferencedFrameOfReferenceSequence = [_referenced(series, stack)]
    model = text_of(f"dkuxnet {metadata.version('dkuxnet')} {origin.model} {origin.version}")
    made.StructureSetName = model
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    made.RTROIObservationsSequence = []
    return made


def _referenced(series: Series, stack: Stack) -> Dataset:
    """The frame of reference, in it the study, in it the series, in it the images."""
    image = stack.frames[0][0]
    listed, study, frame = Dataset(), Dataset(), Dataset()
    listed.SeriesInstanceUID = image.series_uid
    images = {each.name: each for each, _ in stack.frames}
    listed.ContourImageSequence = [reference(each) for each in images.values()]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_COMPONENT, image.study_uid
    study.RTReferencedSeriesSequence = [listed]
    frame.FrameOfReferenceUID = image.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _add_structure(made: Dataset, number: int, name: str, mask: Array, stack: Stack) -> None:
    roi, drawn, observed = Dataset(), Dataset(), Dataset()
    roi.ROINumber = drawn.ReferencedROINumber = observed.ReferencedROINumber = number
    observed.ObservationNumber = number
    roi.ReferencedFrameOfReferenceUID = made.FrameOfReferenceUID
    roi.ROIName, roi.ROIGenerationAlgorithm = text_of(name), "AUTOMATIC"
    observed.RTROIInterpretedType = observed.ROIInterpreter = ""
    drawn.ROIDisplayColor = list(COLOURS[(number - 1) % len(COLOURS)])
    if contours := list(_contours(mask, stack)):
        drawn.ContourSequence = contours
    made.StructureSetROISequence.append(roi)
    made.ROIContourSequence.append(drawn)
    made.RTROIObservationsSequence.append(observed)


def _contours(mask: Array, stack: Stack) -> Iterator[Dataset]:
    to_lps = (LPS_RAS @ stack.affine)[:3]
    for index in np.flatnonzero(mask.any(axis=(0, 1))):
        image, frame = stack.frames[index]
        cited = reference(image)
        if len(image.planes) > 1:
            cited.ReferencedFrameNumber = frame + 1
        for points in outlines(mask[:, :, index]):
            place = points @ to_lps[:, :2].T + to_lps[:, 2] * index + to_lps[:, 3]
            contour = Dataset()
            contour.ContourImageSequence = [cited]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = _texts(place)
            yield contour


def _texts(place: Array) -> Sequence[str]:
    return [f"{value:.{DECIMALS}f}" for value in place.ravel()]
