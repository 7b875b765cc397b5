"""What an object that is derived from a series takes over of it: patient, study, references."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VM
from pydicom.tag import Tag
from pydicom.valuerep import DA, IS, TM, DSfloat, validate_value

from dkuxnet.core.errors import UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.data.checks import telling
from dkuxnet.data.dicom.headers import Image, read_dataset
from dkuxnet.data.dicom.series import Series
from dkuxnet.data.dicom.tree import opened

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
    """What an object says of the model that made it, and of what its reader should look at.

    model, version: in words. notes: a sentence each; none where nothing is doubtful.
    """

    model: str = ""
    version: str = ""
    notes: tuple[str, ...] = ()


UNKNOWN = Origin()


def check_names(series: Series, what_for: str, form: str) -> None:
    """Check that the series has all names by which an object says what it belongs to.

    what_for: the kind of object, in words. form: how `--format` calls it.
    """
    images = series.images
    named = {
        "frame of reference": {image.frame_of_reference_uid for image in images},
        "study": {image.study_uid for image in images},
        "SOP instance": {image.sop_instance_uid for image in images},
    }
    for what, uids in named.items():
        if not all(UID_FORM.fullmatch(uid) for uid in uids):
            raise UserError(
                f"{series.path}: series {series.uid} has no {what} UID, without which no "
                f"{what_for} can say where it belongs; leave out --format {form}"
            )


def check_replaceable(path: Path, classes: Sequence[str], what_for: str) -> None:
    """Raise UserError where `path` is a file of none of the SOP classes: it may be a slice."""
    if not path.is_file():
        return
    try:
        with open_regular(path) as stream:
            kind = read_dataset(stream, tags=["SOPClassUID"]).get("SOPClassUID")
    except Exception:  # not DICOM, or damaged
        kind = None
    if kind not in classes:
        raise UserError(f"{path} is there already and is no {what_for}; choose another --output")


def writing(series: Series, what_for: str, form: str) -> AbstractContextManager[None]:
    """Turn whatever pydicom and highdicom raise in this block into a UserError."""
    return telling(
        f"{series.path}: series {series.uid}: no {what_for} can be made of it",
        f"leave out --format {form}",
    )


def reference(image: Image) -> Dataset:
    """What names the file of `image`."""
    item = Dataset()
    item.ReferencedSOPClassUID = image.sop_class_uid
    item.ReferencedSOPInstanceUID = image.sop_instance_uid
    return item


def patient_and_study(series: Series, image: Image) -> Dataset:
    """What the file of `image` says of anything but its pixels, as far as the standard allows it.

    Dates that a separator was put into lose it; other values against the standard are left out.
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
