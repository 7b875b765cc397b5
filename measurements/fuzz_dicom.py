"""DICOM labels for fuzzing: valid files, and how to spoil them element by element."""

import io
from functools import cache
from random import Random
from typing import Any

import numpy as np

Element = list[Any]  # tag, VR, value: bytes or a list of items, each a list of elements
LONG = (b"OB", b"OW", b"OF", b"OD", b"SQ", b"UN", b"UT", b"UC", b"OL", b"OV")
ITEM = b"\xfe\xff\x00\xe0"
START = 132
TEXTS = [
    *(b"0", b"1", b"2", b"-1", b"nan", b"NaN", b"inf", b"-inf", b"1e300", b"-1e300", b"1.7e308"),
    *(b"-1.7e308", b"1e-300", b"1e999", b"2147483648", b"-2147483649", b"65536", b"1_0", b"0x10"),
    *(
        b"",
        b" ",
        b"\\",
        b"\\\\\\",
        b"abc",
        b"\xff\xfe",
        b"\0",
        b"1.5",
        b"3.99999",
        b"12345678901234",
    ),
    *(b"CLOSED_PLANAR", b"POINT", b"BINARY", b"LABELMAP", b"FRACTIONAL", b"\x1b[2J", b"a\nb"),
]
SIZES = [0, 1, 2, 7, 8, 9, 255, 65535, 65536, 2**24, 2**31, 2**32 - 2, 2**32 - 1]


def other_element(data: bytes, random: Random) -> bytes:
    """Spoils a value, VR, length or place of an element, or the number or depth of items."""
    try:
        elements = parsed(data[START:])
        places = list(_places(elements))
        siblings, index = random.choice(places)
    except (ValueError, IndexError, RecursionError):  # what another spoilt before
        place = random.randrange(max(1, len(data)))
        return data[:place] + random.randbytes(random.choice((1, 2, 4))) + data[place + 4 :]
    element = siblings[index]
    way = random.randrange(12)
    if way <= 3 and isinstance(element[2], bytes):
        element[2] = _other_value(element, random)
    elif way == 4:
        del siblings[index]
    elif way == 5:
        siblings[index:index] = [[*element]] * random.choice((1, 2, 30))
    elif way == 6:
        element[1] = random.choice([*LONG, b"DS", b"IS", b"US", b"FD", b"LO", b"UI", b"CS", b"??"])
    elif way == 7:
        element.append(random.choice(SIZES))  # the length that it states
    elif way == 8:
        other, at = random.choice(places)
        element[2] = other[at][2]
    elif way == 9:  # in itself, many times
        for _ in range(random.choice((1, 3, 50, 2000))):
            inner = written([element])
            element[1:] = [b"SQ", ITEM + len(inner).to_bytes(4, "little") + inner]
    elif isinstance(element[2], list):
        items = element[2]
        items[:] = items * random.choice((0, 2, 40)) if way == 10 else [*items, []]
    else:
        other, at = random.choice(places)
        other[at], siblings[index] = siblings[index], other[at]
    try:
        return data[:START] + written(elements)
    except RecursionError:  # an element that came to lie in itself
        return data


def _other_value(element: Element, random: Random) -> bytes:
    value: bytes = element[2]
    if element[1] in (b"US", b"SS", b"UL", b"OB", b"OW", b"FD") and random.random() < 0.7:
        size = len(value) or 2
        if element[1] == b"FD":
            number = random.choice([0.0, np.nan, np.inf, 1e300, -1e300, 1e-300])
            return np.float64(number).tobytes()
        number = random.choice([0, 1, 2, 3, 7, 8, 16, 255, 256, 65535, 2**31, 2**64 - 1])
        return (number % (1 << 8 * size)).to_bytes(size, "little")
    parts = value.rstrip(b" \0").split(b"\\")
    parts[random.randrange(len(parts))] = random.choice(TEXTS)
    if random.random() < 0.2:
        parts = parts[: random.randrange(len(parts) + 1)] * random.choice((1, 2, 3))
    return b"\\".join(parts)


def _places(elements: list[Element]) -> Any:
    for index, element in enumerate(elements):
        yield elements, index
        if isinstance(element[2], list):
            for item in element[2]:
                yield from _places(item)


def parsed(data: bytes) -> list[Element]:
    """The elements of explicit little endian, whose lengths are all stated."""
    elements, at = [], 0
    while at < len(data):
        tag, vr = data[at : at + 4], data[at + 4 : at + 6]
        start, width = (at + 12, 4) if vr in LONG else (at + 8, 2)
        size = int.from_bytes(data[start - width : start], "little")
        value: Any = data[start : start + size]
        if len(value) < size or len(tag) < 4:
            raise ValueError("a length is wrong")
        if vr == b"SQ":
            value, inner = [], value
            while inner:
                size = int.from_bytes(inner[4:8], "little")
                if inner[:4] != ITEM or len(inner) < 8 + size:
                    raise ValueError("an item is wrong")
                value.append(parsed(inner[8 : 8 + size]))
                inner = inner[8 + size :]
            size = int.from_bytes(data[start - 4 : start], "little")
        elements.append([tag, vr, value])
        at = start + size
    return elements


def written(elements: list[Element]) -> bytes:
    """The bytes of elements; nothing is put right."""
    made = []
    for tag, vr, value, *stated in elements:
        if isinstance(value, list):
            inner = map(written, value)
            value = b"".join(ITEM + len(item).to_bytes(4, "little") + item for item in inner)
        value += b" " * (len(value) % 2)
        size = (stated[0] if stated else len(value)) % 2**32
        wide = vr in LONG
        made += [tag, vr, b"\0\0" * wide]
        made += [(size % (2**32 if wide else 2**16)).to_bytes(4 if wide else 2, "little"), value]
    return b"".join(made)


def item(**fields: Any) -> Any:
    """A data set with these fields; one in the place of a value is a sequence of it."""
    from pydicom import Dataset

    made = Dataset()
    for name, value in fields.items():
        setattr(made, name, [value] if isinstance(value, Dataset) else value)
    return made


def file_of(kind: str, dataset: Any, syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    """A DICOM file of SOP class `kind`."""
    from pydicom.dataset import FileMetaDataset

    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, "1.2.3.9"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.7"
    dataset.FrameOfReferenceUID = "1.2.6"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.9"
    dataset.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def contour(*points: tuple[float, float, float]) -> Any:
    return item(
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[number for point in points for number in point],
    )


@cache
def structure_sets() -> list[bytes]:
    """Two structures on the slices of `fuzz_targets.slices`; one has a hole, one none."""
    outer, inner = (
        contour((a, a, z), (b, a, z), (b, b, z), (a, b, z))
        for a, b, z in ((0, 2, 0), (0.4, 1.1, 0))
    )
    second = contour((0.1, 0.1, 2), (1.9, 0.2, 2), (0.2, 1.3, 2))
    series = item(SeriesInstanceUID="1.2.5")
    dataset = item(
        ReferencedFrameOfReferenceSequence=item(
            FrameOfReferenceUID="1.2.6",
            RTReferencedStudySequence=item(RTReferencedSeriesSequence=series),
        ),
        StructureSetROISequence=[
            item(ROINumber=n, ROIName=name) for n, name in ((1, "a"), (2, "b"))
        ],
        ROIContourSequence=[
            item(ReferencedROINumber=1, ContourSequence=[outer, inner]),
            item(ReferencedROINumber=2, ContourSequence=[second]),
        ],
    )
    return [file_of("1.2.840.10008.5.1.4.1.1.481.3", dataset)]


@cache
def segmentations() -> list[bytes]:
    """Binary, fractional, label map and packed with RLE, on `fuzz_targets.slices`."""
    voxels = np.random.default_rng(0).integers(0, 3, (3, 4, 5), np.uint8)
    packed = np.packbits(np.stack([voxels[0] == 1, voxels[1] == 2]).ravel(), bitorder="little")
    made = [_segmentation("BINARY", 1, [(1, 0), (2, 1)], packed.tobytes() + b"\0")]
    two = [(1, 0), (2, 0)]
    values = np.stack([voxels[0] == 1, voxels[0] == 2]).astype(np.uint8) * 255
    made.append(_segmentation("FRACTIONAL", 8, two, values.tobytes()))
    frames = [(0, z) for z in range(3)]
    made.append(_segmentation("LABELMAP", 8, frames, voxels.tobytes()))
    made.append(_segmentation("LABELMAP", 8, frames, voxels.tobytes(), packed=True))
    return made


def _segmentation(
    kind: str, bits: int, frames: list[tuple[int, int]], pixels: bytes, packed: bool = False
) -> bytes:
    from pydicom.uid import RLELossless

    labels = kind == "LABELMAP"
    dataset = item(
        **{"Rows": 4, "Columns": 5, "SamplesPerPixel": 1, "PixelRepresentation": 0},
        **{"PhotometricInterpretation": "MONOCHROME2", "NumberOfFrames": len(frames)},
        **{"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1},
        SegmentationType=kind,
        SegmentSequence=[
            item(SegmentNumber=n, SegmentLabel=name) for n, name in ((1, "a"), (2, "b"))
        ],
        ReferencedSeriesSequence=item(SeriesInstanceUID="1.2.5"),
        SharedFunctionalGroupsSequence=item(
            PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            PixelMeasuresSequence=item(PixelSpacing=[0.5, 0.5], SliceThickness=2),
        ),
        PerFrameFunctionalGroupsSequence=[_frame(number, z) for number, z in frames],
        PixelData=pixels,
    )
    if kind == "FRACTIONAL":
        dataset.MaximumFractionalValue = 255
    dataset["PixelData"].VR = "OB"
    uid = "1.2.840.10008.5.1.4.1.1.66." + ("7" if labels else "4")
    made = file_of(uid, dataset)
    if not packed:
        return made
    dataset.compress(RLELossless, np.frombuffer(pixels, np.uint8).reshape(-1, 4, 5))
    return file_of(uid, dataset, RLELossless)


def _frame(number: int, z: int) -> Any:
    made = item(PlanePositionSequence=item(ImagePositionPatient=[0, 0, 2.0 * z]))
    if number:
        made.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=number)]
    return made
