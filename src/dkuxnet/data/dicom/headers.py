"""The header of a DICOM file: whether it is an image, of which series, where its frames lie."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from pydicom import Dataset, FileDataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial, read_sequence
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from dkuxnet.core.errors import UserError
from dkuxnet.data.checks import reading
from dkuxnet.data.dicom.tree import Entry, has_preamble, head, may_be_bare, place

REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "BitsAllocated")
TAGS = [
    *REQUIRED,
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesDescription",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "PixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
PIXELS_GROUP = 0x7FE0
# Of headers, each about an element: it becomes an object of up to 2 KB, in 10 microseconds. 5,000
# frames that say where they lie have a quarter of these. What a tree of files may have grows with
# their number and sizes.
MAX_READS = 400_000
READS_A_FILE, BYTES_A_READ = 1000, 256
MAX_ITEMS = 200_000
MAX_META = 1000  # elements before the data set; there are 14
MAX_SEQUENCE_BYTES = 2**24
MAX_ELEMENT_BYTES = 2**26


@dataclass(frozen=True)
class Plane:
    """Where a frame lies, in DICOM's terms (LPS, mm).

    position: centre of the first voxel. orientation: directions along a row and down a column.
    spacing_mm: between rows, between columns.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class Image:
    """A file of one or more frames.

    planes: one for each frame, None where the file does not say where the frame lies. file_bytes:
    what it takes on the disk. secondary: it says that it was made of other images, as a screenshot
    is. sop_instance_uid: empty where the file has none.
    """

    name: str
    file_bytes: int
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    description: str
    modality: str
    frame_of_reference_uid: str
    transfer_syntax_uid: str
    rows: int
    columns: int
    grey: bool
    secondary: bool
    planes: tuple[Plane | None, ...]

    @property
    def place(self) -> Plane | None:
        """Where the first of its frames lies that says so; None where none does."""
        return next((plane for plane in self.planes if plane), None)


class Reads:
    """How many reads of headers the files of a tree may still take."""

    def __init__(self, most: int = MAX_READS) -> None:
        self.left = most

    def of(self, entry: Entry) -> "Reads":
        """With what one file more may have."""
        self.left += READS_A_FILE + entry.size // BYTES_A_READ
        return self


def read_header(path: Path, entry: Entry, reads: Reads | None = None) -> Image | None:
    """The header of file `entry` of the tree `path`; None where it is no image, or a localizer.

    A file without preamble is DICOM where it reads as such and names its SOP class. reads: those
    of the tree. Raises UserError for a DICOM file that is cut short or damaged.
    """
    where = place(path, entry.name)
    with reading(where, "DICOM"), quiet():
        first, reads = head(entry), (reads or Reads()).of(entry)
        if not has_preamble(first):
            return _bare(where, entry, reads) if may_be_bare(first) else None
        if _first_group(first) == b"\0\0":
            raise UserError(
                f"{where}: expected a DICOM file, but zeros follow its first bytes: it is damaged; "
                "copy it again"
            )
        with entry.open() as stream:
            header = read_dataset(stream, tags=TAGS, reads=reads)
        return _image(where, entry, header)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings of values that are not quite to the standard.

    There are many in each file, and a user can do nothing about them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def attribute(dataset: Dataset, frame: int, group: str, name: str) -> Any:
    """What a file says of a frame: in the functional `group` of that frame, of all, or at its top.

    Files of one frame say it at the top, and so do those of several that were converted without
    care. None where it is nowhere.
    """
    for level, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        items = dataset.get(level) or ()
        if index < len(items) and items[index].get(group):
            value = items[index][group].value[0].get(name)
            if value not in (None, ""):
                return value
    value = dataset.get(name)
    return None if value == "" else value


def text(dataset: Dataset, name: str) -> str:
    """An element as text, empty where it is missing. Raises ValueError for a sequence.

    pydicom's text of nested sequences grows exponentially where they are too deep.
    """
    value = dataset.get(name)
    if isinstance(value, Items):
        raise ValueError(f"its {name} is a sequence")
    return "" if value is None else str(value)


def items(dataset: Dataset, name: str, reads: Reads) -> Sequence[Dataset]:
    """The items of a sequence without texts, whose elements count as `reads`."""
    if name not in dataset:
        return ()
    raw = dataset.get_item(name)
    if not isinstance(raw, RawDataElement):  # its length is not stated: it is read already
        return cast(Items, raw.value)
    value = raw.value or b""
    most = len(value) + MAX_SEQUENCE_BYTES  # some bytes are read twice
    stream = cast(BinaryIO, _Bounded(io.BytesIO(value), most, reads))
    return read_sequence(stream, raw.is_implicit_VR, raw.is_little_endian, len(value), "latin-1")


def read_dataset(
    stream: IO[bytes],
    voxels: int = 0,
    tags: Sequence[str] | None = None,
    sequence_bytes: int = MAX_SEQUENCE_BYTES,
    reads: Reads | None = None,
) -> FileDataset:
    """The data set of a file, with or without preamble.

    tags: read these alone, None for all. voxels: bytes of them that are read at most, 0 for none.
    sequence_bytes: the most that all sequences may take. reads: those of a tree.

    Reading ends at group 0, which no valid file holds: a gigabyte of zeros would be read as a
    hundred million elements. (At the very beginning pydicom reads on: see `_first_group`.) Raises
    ValueError for a header of far more elements than a scan has, and for a deflated file.
    """
    _check_meta(stream)
    most = max(MAX_ELEMENT_BYTES, sequence_bytes) + voxels
    dataset = read_partial(
        cast(BinaryIO, _Bounded(stream, most, reads or Reads())),
        lambda tag, vr, length: tag.group == 0 or (tag.group == PIXELS_GROUP and not voxels),
        force=True,
        specific_tags=None if tags is None else [Tag(tag) for tag in tags],
    )
    _check_sequences(dataset, sequence_bytes)
    if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set: what pydicom found
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )
    return dataset


def _check_meta(stream: IO[bytes]) -> None:
    """Raise ValueError where the file meta information holds a sequence, see `text`."""
    start = stream.tell()
    if has_preamble(stream.read(132)):
        for _ in range(MAX_META):
            tag_and_vr = stream.read(6)
            if tag_and_vr[:2] != b"\2\0":
                break
            vr = tag_and_vr[4:].decode("latin-1")
            if vr in ("SQ", "UN"):
                raise ValueError("its file meta information holds a sequence")
            if long := vr in EXPLICIT_VR_LENGTH_32:
                stream.read(2)
            stream.seek(int.from_bytes(stream.read(4 if long else 2), "little"), io.SEEK_CUR)
        else:
            raise ValueError("its file meta information is far larger than that of a scan")
    stream.seek(start)


class _Bounded:
    """A stream for pydicom, which reads each element by itself.

    Only to inflate a deflated file does it ask for all that is left.
    """

    def __init__(self, stream: IO[bytes], most: int, reads: Reads):
        self._stream = stream
        self._left = most
        self._reads = reads
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int | None = None) -> bytes:
        self._reads.left -= 1
        if size is None or size < 0:
            raise ValueError("it is deflated as a whole, which is not supported")
        if self._reads.left < 0 or size > self._left:
            raise ValueError("its header is far larger than that of a scan")
        content = self._stream.read(size)
        self._left -= len(content)
        return content


def _check_sequences(dataset: Dataset, most: int) -> None:
    """Check all elements that may be sequences, of which pydicom makes objects."""
    size = count = 0
    for tag in dataset.keys():  # noqa: SIM118  # a data set yields elements, which it converts
        raw = dataset.get_item(tag)
        if raw.VR == "SQ" and dictionary_has_tag(tag) and dictionary_VR(tag) != "SQ":
            raise ValueError(f"its {keyword_for_tag(tag)} is a sequence")  # see `text`
        if isinstance(raw, RawDataElement) and raw.VR in (None, "SQ", "UN"):
            value = raw.value or b""
            size += len(value)
            count += sum(map(value.count, (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")))
    if size > most or count > MAX_ITEMS:
        raise ValueError("an element of its header is far larger than that of a scan")


def _first_group(first: bytes) -> bytes:
    """The group, two bytes, with which the data set after the file meta information begins."""
    start = 132
    if first[start : start + 6] == b"\2\0\0\0UL":  # the length of the file meta information
        start += 12 + int.from_bytes(first[140:144], "little")
    return first[start : start + 2]


def _bare(where: Path, entry: Entry, reads: Reads) -> Image | None:
    try:
        with entry.open() as stream:
            header = read_dataset(stream, tags=TAGS, reads=reads)
        named = (
            "SOPClassUID" in header
            and header.SOPClassUID.is_valid
            and "SeriesInstanceUID" in header
        )
    except Exception:  # any other file that happens to start like a data set
        return None
    return _image(where, entry, header) if named else None


def _image(where: Path, entry: Entry, header: Dataset) -> Image | None:
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    if kind is None:
        raise UserError(
            f"{where}: expected a DICOM file, but it does not say what it holds: it is cut short; "
            "copy it again"
        )
    image_type = header.get("ImageType") or ()
    if not kind.keyword.endswith("ImageStorage") or "LOCALIZER" in image_type:
        return None
    missing = [tag for tag in REQUIRED if header.get(tag) in (None, "")]
    if missing:
        raise UserError(
            f"{where}: expected a DICOM image, but {missing[0]} is missing: it is cut short; copy "
            "it again"
        )
    return Image(
        name=entry.name,
        file_bytes=entry.size,
        sop_class_uid=str(kind),
        sop_instance_uid=text(header, "SOPInstanceUID")
        or text(header.file_meta, "MediaStorageSOPInstanceUID"),
        series_uid=text(header, "SeriesInstanceUID"),
        study_uid=text(header, "StudyInstanceUID"),
        description=text(header, "SeriesDescription"),
        modality=text(header, "Modality") or "image",
        frame_of_reference_uid=text(header, "FrameOfReferenceUID"),
        transfer_syntax_uid=text(header.file_meta, "TransferSyntaxUID"),
        rows=int(header.Rows),
        columns=int(header.Columns),
        grey=int(header.get("SamplesPerPixel", 1)) == 1
        and header.get("PhotometricInterpretation") != "PALETTE COLOR",
        secondary="SecondaryCapture" in kind.keyword or "SECONDARY" in image_type,
        planes=_planes(where, header),
    )


def _planes(where: Path, header: Dataset) -> tuple[Plane | None, ...]:
    frames = int(header.get("NumberOfFrames") or 1)
    described = len(header.get("PerFrameFunctionalGroupsSequence") or ())
    if not described and frames > 1:
        return (None, None)
    if described not in (0, frames):
        raise UserError(
            f"{where}: expected as many frames as it describes, got {frames} and {described}; "
            "export it again"
        )
    return tuple(_plane(header, frame) for frame in range(frames))


def _plane(header: Dataset, frame: int) -> Plane | None:
    values = (
        attribute(header, frame, "PlanePositionSequence", "ImagePositionPatient"),
        attribute(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient"),
        attribute(header, frame, "PixelMeasuresSequence", "PixelSpacing"),
    )
    if [len(value or ()) for value in values] != [3, 6, 2]:
        return None
    return Plane(*(tuple(map(float, value)) for value in values))
