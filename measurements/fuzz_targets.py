"""Targets of fuzzing: for each kind of file a few valid ones, how to spoil them, what reads them.

`fuzz.py` runs hundreds of thousands of inputs, guided by coverage; the tests run a few hundred for
each target.
"""

import contextlib
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzz_dicom import other_element, segmentations, structure_sets

AFFINE = np.array([[0.8, 0.1, 0, 5], [-0.1, 0.8, 0, -7], [0, 0, 2, 3], [0, 0, 0, 1.0]])
NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    5,
    7,
    16,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**63 - 1,
    -(2**63),
]
WORDS = [
    *map(str, NUMBERS),
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e-300",
    "10" * 40,
    "true",
    "null",
    '""',
    "[]",
    "{}",
    '"../../x"',
]
LEAVES = [
    0,
    -1,
    1.5,
    1e300,
    2**40,
    2**63,
    10**30,
    True,
    None,
    "",
    "../../x",
    "/etc/passwd",
    "a\u0000b",
    "x" * 300,
    "\ud800",
    "\x1b[2J",
    [],
    {},
    [[]],
    [0] * 50,
    {"a": {}},
    float("inf"),
    float("nan"),
]
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Target:
    """A kind of file.

    seeds: makes valid files. read: takes the bytes of a file and an empty folder. unpack, pack:
    undo and redo what is around the part worth spoiling. tree: the file is JSON. spoil: changes
    what is peculiar to the format, such as a line of its header.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], Any]
    unpack: Callable[[bytes], bytes] = bytes
    pack: Callable[[bytes], bytes] = bytes
    tree: bool = False
    spoil: Callable[[bytes, Random], bytes] | None = None


def spoilt(target: Target, data: bytes, random: Random) -> bytes:
    """`data` with one to four things in it changed."""
    try:
        data = target.unpack(data)
    except Exception:  # what another spoilt before
        return data
    special = _other_leaf if target.tree else target.spoil
    for _ in range(random.choice((1, 1, 2, 4))):
        way = special if special is not None and random.random() < 0.7 else _other_bytes
        data = way(data, random)
    return target.pack(data)


def _other_bytes(data: bytes, random: Random) -> bytes:
    head = min(len(data), 512)  # most of what a format says stands there
    place = random.randrange(head if random.random() < 0.7 else len(data)) if data else 0
    size = random.choice((1, 2, 4, 8))
    way = random.randrange(6)
    if way == 0:
        return data[:place]
    if way == 1:
        return data[:place] + data[place + random.randrange(1, 64) :]
    if way == 2:
        return data[:place] + data[place : place + random.randrange(1, 64)] * 2 + data[place:]
    if way == 3:
        numbers = list(NUMBER.finditer(data[:4096]))
        if numbers:
            found = random.choice(numbers)
            return data[: found.start()] + random.choice(WORDS).encode() + data[found.end() :]
    if way == 4:
        return data[:place] + random.randbytes(size) + data[place + size :]
    value = random.choice(NUMBERS) % (1 << 8 * size)
    return (
        data[:place] + value.to_bytes(size, random.choice(("little", "big"))) + data[place + size :]
    )


def _other_leaf(data: bytes, random: Random) -> bytes:
    """JSON with another value, or another key, somewhere in its tree."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        node = left.pop()
        pairs = (
            node.items()
            if isinstance(node, dict)
            else enumerate(node)
            if isinstance(node, list)
            else ()
        )
        for key, value in pairs:
            places.append((node, key))
            left.append(value)
    if places:
        node, key = random.choice(places)
        if isinstance(node, dict) and random.random() < 0.3:
            value = node.pop(key)
            if random.random() < 0.5:
                node[random.choice([key + "x", "../x", "", "0", "\n"])] = value
        else:
            node[key] = random.choice(LEAVES)
    return json.dumps(tree).encode()


# --- headers: what knows their keys, numbers, types and line ends ---

LINE_ENDS = [
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b"\r\r\n",
    b"\n\n",
    b"\x0b",
    b"\x0c",
    b"\x85",
    b"\0",
    b"",
]
VALUES = [
    *(b"LOCAL", b"LIST", b"/etc/passwd", b"x%d.raw 0 9 1", b"../x.raw", b"x.raw", b"\xc3\xa9"),
    *(b"True", b"False", b"4 5 3", b"4 5 3 1", b"1 1 1", b"1 0 0 0 1 0 0 0 1", b"nan nan nan"),
    *(b"MET_FLOAT", b"MET_UCHAR", b"MET_DOUBLE_ARRAY", b"float", b"uchar", b"block", b"double"),
    *(b"raw", b"gzip", b"ascii", b"hex", b"bzip2", b"little", b"big", b"left-posterior-superior"),
    *(b"(1,0,0) (0,1,0) (0,0,1)", b"none (1,0,0) (0,1,0) (0,0,1)", b"(0,0,0)", b"((((", b"none"),
    *(b"domain domain domain", b"vector domain domain domain", b"list domain domain domain"),
]
META_KEYS = [
    *(b"ObjectType", b"NDims", b"DimSize", b"ElementType", b"ElementDataFile", b"BinaryData"),
    *(b"CompressedData", b"CompressedDataSize", b"ElementNumberOfChannels", b"HeaderSize"),
    *(b"ElementSpacing", b"ElementSize", b"Offset", b"Position", b"Origin", b"TransformMatrix"),
    *(b"Rotation", b"BinaryDataByteOrderMSB", b"ElementByteOrderMSB", b"Comment", b"Name"),
]
NRRD_KEYS = [
    *(b"type", b"dimension", b"sizes", b"encoding", b"endian", b"kinds", b"space", b"content"),
    *(b"space directions", b"space origin", b"space dimension", b"spacings", b"axis mins"),
    *(b"centers", b"data file", b"datafile", b"byte skip", b"line skip", b"block size"),
    *(b"measurement frame", b"labels", b"units", b"thicknesses", b"max", b"#", b"key:"),
]


def other_line(keys: list[bytes], mark: bytes, last: bytes) -> Callable[[bytes, Random], bytes]:
    """Spoils a header of lines: keys, values, marks between them, line ends, order, number.

    last: what ends the header, which what stands behind it must not look like.
    """

    def spoil(data: bytes, random: Random) -> bytes:
        end = data.find(last) + len(last)
        lines = [[*_parts(line, mark), b"\n"] for line in data[:end].split(b"\n")]
        place = random.randrange(len(lines))
        line = lines[place]
        way = random.randrange(8)
        if way == 0:
            line[2] = random.choice([*VALUES, *(word.encode() for word in WORDS)])
        elif way == 1:
            line[3] = random.choice(LINE_ENDS)
        elif way == 2:
            line[1] = random.choice([b":", b": ", b"=", b" = ", b":=", b"\t=\t", b"", b" "])
        elif way == 3:
            line[0] = random.choice(
                [line[0].lower(), line[0].upper(), b" " + line[0], b"#" + line[0]]
            )
        elif way == 4:
            lines.insert(place, list(random.choice(lines)))
        elif way == 5:
            lines.insert(place, [random.choice(keys), mark, random.choice(VALUES), b"\n"])
        elif way == 6:
            del lines[place]
        else:
            words = line[2].split() or [b""]
            words[random.randrange(len(words))] = random.choice(WORDS).encode()
            line[2] = b" ".join(words)
        return b"".join(map(b"".join, lines))[:-1] + data[end:]

    return spoil


def _parts(line: bytes, mark: bytes) -> tuple[bytes, bytes, bytes]:
    key, found, value = line.partition(mark)
    return key, found, value


def other_field(data: bytes, random: Random) -> bytes:
    """Spoils a NIfTI-1: extensions and their sizes, dimensions, types, scaling, offsets."""
    data = bytearray(data)
    if len(data) < 352:
        return bytes(data)
    number = random.choice(NUMBERS)
    way = random.randrange(6)
    if way == 0:  # an extension
        size = random.choice([0, 1, 7, 8, 15, 16, 17, 32, -1, -16, 2**20, 2**31 - 1, -(2**31)])
        content = random.randbytes(random.choice([0, 8, 24]))
        data[348:352] = bytes([random.choice([0, 1, 1, 1, 255]), 0, 0, 0])
        data[352:352] = np.array([size, random.choice([0, 2, 4, 6, 99])], "<i4").tobytes() + content
        if random.random() < 0.7:
            data[108:112] = np.array([360 + len(content)], "<f4").tobytes()
    elif way == 1:
        place = random.randrange(8)
        data[40 + 2 * place : 42 + 2 * place] = np.array(number, "<i8").astype("<i2").tobytes()
    elif way == 2:  # type and its bits
        kind = random.choice(
            [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792]
        )
        data[70:74] = np.array([kind, random.choice([8, 16, 32, 64, 128, 256])], "<i2").tobytes()
    elif way == 3:
        place = random.choice(
            [76, 80, 84, 88, 108, 112, 116, 256, 260, 264, 268, 280, 284, 296, 312]
        )
        value = random.choice([0, 1, -1, 352, 360, 1e9, -1e9, 1e30, np.nan, np.inf, 0.5])
        data[place : place + 4] = np.array([value], "<f4").tobytes()
    elif way == 4:
        data[344:348] = random.choice([b"ni1\0", b"n+1\0", b"n+2\0", b"\0\0\0\0"])
    else:
        data[252:256] = np.array([number, number], "<i8").astype("<i2").tobytes()
    return bytes(data)


# Of a datatype in HDF5: version and class, three bytes of flags, its size in four
DATATYPE = re.compile(rb"[\x10-\x3b][\x00-\x3f][\x00-\xff]\x00[\x01-\x20]\x00{3}", re.DOTALL)


def other_type(data: bytes, random: Random) -> bytes:
    """Spoils an HDF5: classes and sizes of its datatypes, filters, addresses and lengths."""
    found = list(DATATYPE.finditer(data[:8192]))
    way = random.randrange(3)
    if way == 0 and found:
        place = random.choice(found).start()
        kind = bytes([random.choice([0x10, 0x20, 0x30]) | random.randrange(12)])
        return data[:place] + kind + data[place + 1 :]
    if way == 1 and found:
        place = random.choice(found).start() + 4
        size = random.choice([0, 1, 2, 3, 4, 8, 16, 17, 2**16, 2**30, 2**31, 2**32 - 1])
        return data[:place] + size.to_bytes(4, "little") + data[place + 4 :]
    place = 8 * random.randrange(max(1, min(len(data), 8192) // 8))
    value = random.choice([0, 1, 8, 96, 800, 2048, len(data), 2**31, 2**32, 2**40, 2**64 - 1])
    return data[:place] + value.to_bytes(8, "little") + data[place + 8 :]


@cache
def types() -> list[bytes]:
    """HDF5 files of every class of datatype, of which but the first are refused."""
    import h5py

    made = scans(".h5")
    kinds: list[Any] = [
        *(h5py.vlen_dtype(np.uint8), h5py.ref_dtype, h5py.regionref_dtype, h5py.string_dtype()),
        *(np.dtype("c8"), np.dtype("V9"), np.dtype("(3,)f4"), np.dtype("S7"), np.dtype(bool)),
        *(np.dtype([("a", "f4"), ("b", "i2")]), h5py.enum_dtype({"a": 1, "b": 2, "c": 3})),
    ]
    for kind in kinds:
        file = io.BytesIO()
        with h5py.File(file, "w") as opened:
            opened.create_dataset("image", (4, 5, 3), kind, chunks=(2, 5, 3))
        made = [*made, file.getvalue()]
    for options in ({"compression": "lzf"}, {"compression": "gzip", "shuffle": True}, {}):
        file = io.BytesIO()
        with h5py.File(file, "w") as opened:
            opened.create_dataset("image", data=volume().array, fletcher32=True, **options)
            opened["label"] = h5py.ExternalLink("x.h5", "/label")
        made = [*made, file.getvalue()]
    return made


# --- scans ---


def volume(kind: str = "image", channels: int = 0) -> Any:
    from dkuxnet.core.types import Volume

    random = np.random.default_rng(0)
    shape = (channels, 4, 5, 3) if channels else (4, 5, 3)
    label = random.integers(0, 3, shape, np.uint8)
    return Volume(
        random.normal(size=shape).astype(np.float32) if kind == "image" else label, AFFINE
    )


@cache
def scans(suffix: str) -> list[bytes]:
    from tempfile import TemporaryDirectory

    import h5py

    from dkuxnet.data import formats

    made = []
    with TemporaryDirectory() as folder:
        for index, each in enumerate(
            [volume(), volume("label"), *([] if suffix == ".h5" else [volume(channels=2)])]
        ):
            path = Path(folder) / f"{index}{suffix}"
            formats.write(each, path)
            if suffix == ".h5" and index:
                with h5py.File(path, "a") as file:  # the field's has both
                    file["image"] = volume().array
            made.append(path.read_bytes())
    return made


def reads(suffix: str) -> Callable[[bytes, Path], Any]:
    def read(data: bytes, folder: Path) -> None:
        from dkuxnet.data import formats

        path = folder / f"x{suffix}"
        path.write_bytes(data)
        formats.read(path)
        if suffix in formats.FORMATS:
            formats.read(path, "label")

    return read


@cache
def slices() -> list[bytes]:
    """Three slices of a CT, as a scanner writes them."""
    from pydicom import FileDataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    made = []
    for index in range(3):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            f"1.2.3.{index + 1}",
        )
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        scan = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        scan.SOPClassUID, scan.SOPInstanceUID, scan.Modality = (
            CTImageStorage,
            f"1.2.3.{index + 1}",
            "CT",
        )
        scan.StudyInstanceUID, scan.SeriesInstanceUID, scan.FrameOfReferenceUID = (
            "1.2.4",
            "1.2.5",
            "1.2.6",
        )
        scan.ImagePositionPatient, scan.ImageOrientationPatient = (
            [0, 0, 2.0 * index],
            [1, 0, 0, 0, 1, 0],
        )
        scan.PixelSpacing, scan.Rows, scan.Columns = [0.5, 0.5], 4, 5
        scan.SamplesPerPixel, scan.PhotometricInterpretation, scan.PixelRepresentation = (
            1,
            "MONOCHROME2",
            0,
        )
        scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 12, 11
        scan.RescaleSlope, scan.RescaleIntercept = 1, -1024
        scan.PixelData = np.arange(20, dtype=np.uint16).tobytes()
        file = io.BytesIO()
        scan.save_as(file, enforce_file_format=True)
        made.append(file.getvalue())
    return made


def read_dicom(data: bytes, folder: Path) -> None:
    """The spoilt slice beside two whole ones."""
    from dkuxnet.data import formats

    for index, each in enumerate([*slices()[:2], data]):
        (folder / f"{index}.dcm").write_bytes(each)
    formats.read(folder)


# --- scans that other programs write, and labels with names ---


def other_mgh(data: bytes, random: Random) -> bytes:
    """Spoils an MGH: version, shape, type, whether and where it lies."""
    at = random.choice(range(0, 28, 4)) if random.random() < 0.6 else 30 + 4 * random.randrange(15)
    value = random.choice([0, 1, 2, 3, 4, 10, 2**15, 2**16, 2**31 - 1, -1, -(2**31)])
    new = np.array(value, ">i4").tobytes()
    if at >= 30:
        number = random.choice([0, 1, -1, 1e30, 3e38, 1e-40, np.nan, np.inf])
        new = np.array(number, ">f4").tobytes()
    if random.random() < 0.1:
        at, new = 28, random.randbytes(2)
    return data[:at] + new + data[at + len(new) :]


@cache
def mgh() -> list[bytes]:
    head = np.array([1, 4, 5, 3, 1, 0, 0], ">i4")
    place = np.array([0.8, 0.8, 2, -1, 0, 0, 0, 0, -1, 0, 1, 0, 5, -7, 3], ">f4").tobytes()
    made = []
    for code, kind in ((0, ">u1"), (1, ">i4"), (3, ">f4"), (4, ">i2"), (10, ">u2")):
        head[5] = code
        voxels = volume("label").array.astype(kind).tobytes(order="F")
        made.append((head.tobytes() + b"\0\1" + place).ljust(284, b"\0") + voxels + b"\0" * 20)
    return made


def other_gzip(data: bytes, random: Random) -> bytes:
    """Spoils what is around the voxels: flags and fields of the header, parts, checksums, ends."""
    data = bytearray(data)
    way = random.randrange(7)
    if way == 0:
        data[3:4] = bytes([random.randrange(256)])
    elif way == 1:  # more in the header: an extra field, a name, a comment, a checksum
        data[3:4] = bytes([random.choice([2, 4, 8, 16, 28, 30])])
        size = random.choice([0, 1, 2**8, 2**16 - 1])
        data[10:10] = size.to_bytes(2, "little") + random.randbytes(min(size, 300)) + b"\0"
    elif way == 2:  # parts
        part = random.choice([data, gzip.compress(b"", mtime=0), gzip.compress(b"x" * 2000), b"\0"])
        data += bytes(part) * random.choice([1, 3, 2000])
    elif way == 3:
        data[-8:] = random.randbytes(8)
    elif way == 4:
        del data[-random.randrange(1, 40) :]
    elif way == 5:
        data[10:11] = random.randbytes(1)  # the first block
    else:
        data += random.randbytes(random.randrange(1, 64))
    return bytes(data)


# Between a header and the file beside it, which are one input
BESIDE = b"\0BESIDE\0"


def reads_pair(name: str, beside: str) -> Callable[[bytes, Path], Any]:
    def read(data: bytes, folder: Path) -> None:
        from dkuxnet.data import formats

        header, _, voxels = data.partition(BESIDE)
        (folder / name).write_bytes(header)
        (folder / beside).write_bytes(voxels)
        formats.read(folder / name)
        formats.read(folder / name, "label")

    return read


@cache
def mhd() -> list[bytes]:
    made = []
    for packed in (False, True):
        voxels = volume("label").array.tobytes(order="F")
        voxels = zlib.compress(voxels) if packed else voxels
        lines = [
            *("ObjectType = Image", "NDims = 3", "BinaryData = True", "DimSize = 4 5 3"),
            *("BinaryDataByteOrderMSB = False", f"CompressedData = {packed}", "Offset = 5 -7 3"),
            *("TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 0.8 0.8 2"),
            *([f"CompressedDataSize = {len(voxels)}"] if packed else []),
            *("ElementType = MET_UCHAR", "ElementDataFile = x.raw", ""),
        ]
        made.append("\n".join(lines).encode() + BESIDE + voxels)
    return made


@cache
def pairs() -> list[bytes]:
    made = []
    for whole in scans(".nii"):
        header = bytearray(whole[:352])
        header[344:348], header[108:112] = b"ni1\0", bytes(4)
        made.append(bytes(header) + BESIDE + whole[352:])
    return made


SLICER_KEYS = [
    *(f"Segment{n}_{key}".encode() for n in (0, 1, 7, 99999) for key in ("ID", "Name", "Layer")),
    *(b"Segment0_LabelValue", b"Segment1_LabelValue", b"Segment1_Extent", b"Segment1_"),
]


@cache
def slicer() -> list[bytes]:
    """Two segments of 3D Slicer on a part of the grid of `ct`; also in two layers."""
    made = []
    for layers in (0, 2):
        none, kind, count = ("none ", "list ", f"{layers} ") if layers else ("", "", "")
        lines = [
            *("NRRD0004", "type: unsigned char", f"dimension: {4 if layers else 3}"),
            *("space: left-posterior-superior", f"sizes: {count}3 4 2"),
            *(f"space directions: {none}(0.5,0,0) (0,0.5,0) (0,0,2)", "encoding: raw"),
            *(f"kinds: {kind}domain domain domain", "space origin: (0.5,0,2)"),
        ]
        for number, name in enumerate(("a", "b")):
            value, layer = (1, number) if layers else (number + 1, 0)
            fields = {"ID": name, "Name": name, "LabelValue": value, "Layer": layer}
            lines += [f"Segment{number}_{key}:={each}" for key, each in fields.items()]
        voxels = np.random.default_rng(0).integers(0, 2 if layers else 3, 24 * (layers or 1))
        made.append("\n".join([*lines, "", ""]).encode() + voxels.astype(np.uint8).tobytes())
    return made


@cache
def ct() -> Any:
    """The scan of `slices`."""
    from dkuxnet.core.types import Volume

    affine = np.diag([-0.5, -0.5, 2, 1])
    return Volume(np.arange(60, dtype=np.float32).reshape(5, 4, 3), affine)


def reads_label(name: str) -> Callable[[bytes, Path], Any]:
    """The labels of a case by their own names, and by classes that were named before."""

    def read(data: bytes, folder: Path) -> None:
        from dkuxnet.core.errors import UserError
        from dkuxnet.data.labels import read_label

        path = folder / name
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            read_label("c", path, ("the scan", ct()), {"background": 0, "b": 1, "a": 2})
        read_label("c", path, ("the scan", ct()), None)

    return read


def read_dicom_tree(data: bytes, folder: Path) -> None:
    """A patient's slices and labels, found and read."""
    from dkuxnet.data.labels import read_label, with_classes
    from dkuxnet.data.layouts import find_source

    for index, each in enumerate([*slices(), data]):
        (folder / "a" / f"{index}.dcm").parent.mkdir(exist_ok=True)
        (folder / "a" / f"{index}.dcm").write_bytes(each)
    source = with_classes(find_source(folder))
    for case in source.cases:
        if case.label:
            read_label(case.name, case.label, ("the scan", ct()), source.labels)


def zipped(compress: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        for index, each in enumerate(slices()):
            archive.writestr(f"a/{index}.dcm", each)
    return file.getvalue()


# --- what describes data and runs ---

PLAN = {
    "spacing_mm": [1.0, 1.0, 2.0],
    "normalisation": [{"kind": "ct", "low": -1e3, "high": 1e3, "mean": 0.0, "std": 1.0}],
    "patch": [16, 16, 16],
    "network": "dk-uxnet-tiny",
}
LABELS = {"background": 0, "organ": 1, "tumour": 2}
PREPARED = {
    "version": 1,
    "source": "/x",
    "layout": "nnunet",
    "channels": ["CT"],
    "labels": LABELS,
    "plan": PLAN,
    "notes": [],
    "cases": [
        {"name": "a", "labelled": True, "shape": [4, 5, 3]},
        {"name": "b", "labelled": False, "shape": [4, 5, 3]},
    ],
    "fingerprint": {
        "cases": 2,
        "labelled": 1,
        "shape_median": [16, 16, 16],
        "shape_max": [16, 16, 16],
        "spacing_mm_median": [1, 1, 1],
        "extent_mm_median": [16, 16, 16],
        "percentiles_median": [[-1, 0, 1]],
        "mean": [0],
        "std": [1],
        "label_share": {"0": 0.9, "1": 0.1},
    },
}
INFO = {
    "name": "a",
    "images": ["/x/a.nii.gz"],
    "shape": [4, 5, 3],
    "affine": AFFINE.tolist(),
    "spacing_mm": [0.8, 0.8, 2.0],
    "prepared_affine": AFFINE.tolist(),
}
SOURCE = {
    "channel_names": {"0": "MRI"},
    "labels": LABELS,
    "numTraining": 1,
    "file_ending": ".nii.gz",
    "dataset": {"a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}},
}
DECATHLON = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "organ"},
    "unlabeled": [{"image": "imagesTr/b.nii.gz"}],
    "training": [{"image": "./imagesTr/a_0000.nii.gz", "label": "./labelsTr/a.nii.gz"}],
}
NNUNET_1 = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "organ"},
    "numTraining": 2,
    "training": [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in "ac"
    ],
    "test": ["./imagesTs/d.nii.gz"],
}
MANIFEST = {
    "prepared": "/x",
    "labels": LABELS,
    "channels": ["CT"],
    "cases": ["a", "b"],
    "plan": PLAN,
    "patch": [16, 16, 16],
    "split": {"labelled": ["a"], "unlabelled": ["b"], "validation": [], "test": []},
    "network": "dk-uxnet-tiny",
    "network_shape": {
        "in_channels": 1,
        "classes": 3,
        "groups": [{"name": "organ", "classes": [0, 1, 2], "queries": 8}],
    },
    "method": "dual-mutual",
    "parameters": 10,
    "machine": {},
    "train_seconds": 1.0,
    "steps_done": 3,
    "fingerprint": PREPARED["fingerprint"],
}
SETTINGS = {
    "train": {"steps": 8, "lr": 0.01, "patch": [16, 16, 16]},
    "method": {"name": "mean-teacher", "decay": 0.9},
    "network": {"name": "dk-uxnet-tiny", "depths": [1, 1, 1, 1]},
    "data": {"labelled": 1},
    "augment": {"flip": "xy"},
}
TOML = (
    b"[train]\nsteps = 8\nlr = 1e-2\npatch = [16, 16, 16]\n[method]\nname = 'mean-teacher'\ndecay "
    b"= 0.9\n"
    b"[network]\nname = 'dk-uxnet-tiny'\ngroups = [{name = 'x', classes = ['a'], queries = "
    b"3}]\n[augment]\nflip = 'xy'\n"
)
GRID = (
    b"prepared = 'p'\noutput = 'o'\nlabelled = [2, 4]\nseeds = [0, 1]\nnetworks = "
    b"['dk-uxnet-tiny', 'vnet']\n"
    b"[settings]\ntrain.steps = 8\ndata.test_cases = "
    b"2\n[methods.supervised]\n[methods.paper]\nmethod = 'dual-mutual'\n"
)


def as_json(*trees: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(tree).encode() for tree in trees]


def write_prepared(folder: Path, meta: bytes, info: bytes, image: bytes) -> None:
    (folder / "cases").mkdir()
    (folder / "dataset.json").write_bytes(meta)
    (folder / "cases" / "a.json").write_bytes(info)
    for name in "ab":
        (folder / "cases" / f"{name}.image.b2nd").write_bytes(image)


@cache
def arrays() -> list[bytes]:
    from tempfile import TemporaryDirectory

    from dkuxnet.data.prepared_set import write_array

    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.b2nd"
        write_array(path, np.random.default_rng(0).normal(size=(1, 4, 5, 3)).astype(np.float32))
        made = [path.read_bytes()]
        write_array(path, np.zeros((1, 4, 5, 3), np.float32))
        return [*made, path.read_bytes()]


def read_array(data: bytes, folder: Path) -> None:
    from dkuxnet.data.prepared_set import PreparedSet

    write_prepared(folder, *as_json(PREPARED, INFO)(), data)
    PreparedSet(folder).array("a", "image")
    PreparedSet(folder).crop("a", "image", (1, 1, 1), (2, 2, 2))


def read_prepared(data: bytes, folder: Path) -> None:
    from dkuxnet.data.prepared_set import PreparedSet

    write_prepared(folder, data, *as_json(INFO)(), arrays()[0])
    prepared = PreparedSet(folder)
    for name in prepared.names:
        prepared.array(name, "image"), prepared.crop(name, "image", (0, 0, 0), (2, 2, 2))


def read_info(data: bytes, folder: Path) -> None:
    from dkuxnet.data.prepared_set import PreparedSet

    write_prepared(folder, *as_json(PREPARED)(), data, arrays()[0])
    PreparedSet(folder).info("a")


def read_source(data: bytes, folder: Path) -> None:
    from dkuxnet.data.layouts import find_source

    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "dataset.json").write_bytes(data)
    find_source(folder)


def read_nnunet_1(data: bytes, folder: Path) -> None:
    from dkuxnet.data.layouts import find_source

    for name in (
        "imagesTr/a_0000",
        "imagesTr/c_0000",
        "labelsTr/a",
        "labelsTr/c",
        "imagesUn/e_0000",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.nii.gz").touch()
    (folder / "dataset.json").write_bytes(data)
    find_source(folder)


def read_split(data: bytes, folder: Path) -> None:
    from dkuxnet.data.splits import make_split

    path = folder / "split.json"
    path.write_bytes(data)
    make_split(["a", "b", "c", "d"], ["a", "b", "c"], file=path)


def read_settings(data: bytes, folder: Path) -> None:
    from dkuxnet.core.config import load_settings

    path = folder / "settings.toml"
    path.write_bytes(data)
    load_settings("default", path)


def read_override(data: bytes, folder: Path) -> None:
    from dkuxnet.core.config import load_settings, parse_override

    load_settings("default", None, dict([parse_override(data.decode("utf-8", "replace"))]))


def read_benchmark(data: bytes, folder: Path) -> None:
    from dkuxnet.benchmark.grid import read_grid, wanted_runs

    path = folder / "grid.toml"
    path.write_bytes(data)
    wanted_runs(read_grid(path), "dk-uxnet-tiny")


def read_run(data: bytes, folder: Path) -> None:
    """Read a run whose manifest.json and settings.json are both `data`."""
    from dkuxnet.core.errors import UserError
    from dkuxnet.runs.folder import RunFolder

    for name in ("manifest.json", "settings.json"):
        (folder / name).write_bytes(data)
    run = RunFolder.open(folder)
    with contextlib.suppress(UserError):
        _ = run.settings
    _ = run.manifest.shape


def read_metrics(data: bytes, folder: Path) -> None:
    from dkuxnet.runs.folder import RunFolder

    (folder / "metrics.jsonl").write_bytes(data)
    RunFolder(folder).metrics()


@cache
def toy() -> Any:
    import torch
    from torch import nn

    from dkuxnet.core.config import TrainSettings
    from dkuxnet.machine.devices import to_device
    from dkuxnet.training.loop import make_state

    state = make_state(
        to_device(nn.Sequential(nn.Conv3d(2, 3, 3), nn.Conv3d(3, 2, 1)), torch.device("cpu")),
        TrainSettings(),
    )
    for parameter in state.method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimiser.step()
    return state


@cache
def checkpoints() -> list[bytes]:
    from tempfile import TemporaryDirectory

    from dkuxnet.runs import checkpoints

    with TemporaryDirectory() as folder:
        return [checkpoints.save(Path(folder), toy().to_checkpoint()).read_bytes()]


def read_checkpoint(data: bytes, folder: Path) -> None:
    from dkuxnet.runs import checkpoints

    path = folder / "x"
    path.write_bytes(data)
    state = checkpoints.read(
        path.rename(folder / f"{1:08d}-{checkpoints.checksum(path)}.safetensors")
    )
    toy().restore(state)
    toy().optimiser.step()


def read_weights(data: bytes, folder: Path) -> None:
    from dkuxnet.runs.folder import RunFolder

    (folder / "final.safetensors").write_bytes(data)
    RunFolder(folder).load_weights("final")


TARGETS = {
    "nifti": Target(lambda: scans(".nii"), reads(".nii"), spoil=other_field),
    "nifti-gz": Target(
        lambda: scans(".nii.gz"),
        reads(".nii.gz"),
        gzip.decompress,
        lambda data: gzip.compress(data, 1, mtime=0),
        spoil=other_field,
    ),
    "nrrd": Target(
        lambda: scans(".nrrd"), reads(".nrrd"), spoil=other_line(NRRD_KEYS, b": ", b"\n\n")
    ),
    "mha": Target(
        lambda: scans(".mha"), reads(".mha"), spoil=other_line(META_KEYS, b" = ", b"LOCAL\n")
    ),
    "mgh": Target(mgh, reads(".mgh"), spoil=other_mgh),
    "mgz": Target(
        mgh,
        lambda data, folder: reads(".mgz")(gzip.compress(data, 1, mtime=0), folder),
        spoil=other_mgh,
    ),
    "gzip": Target(
        lambda: [gzip.compress(data, 1, mtime=0) for data in mgh()[:2]],
        reads(".mgz"),
        spoil=other_gzip,
    ),
    "mhd": Target(
        mhd, reads_pair("x.mhd", "x.raw"), spoil=other_line(META_KEYS, b" = ", b"x.raw\n")
    ),
    "hdr": Target(pairs, reads_pair("x.hdr", "x.img"), spoil=other_field),
    "seg-nrrd": Target(
        slicer,
        reads_label("x.seg.nrrd"),
        spoil=other_line([*SLICER_KEYS, *NRRD_KEYS[:8]], b":", b"\n\n"),
    ),
    "rtstruct": Target(structure_sets, reads_label("x.dcm"), spoil=other_element),
    "dicom-seg": Target(segmentations, reads_label("x.dcm"), spoil=other_element),
    "dicom-tree": Target(
        lambda: [*structure_sets(), *segmentations()], read_dicom_tree, spoil=other_element
    ),
    "h5": Target(types, reads(".h5"), spoil=other_type),
    "dicom": Target(lambda: slices()[2:], read_dicom),
    "dicom-zip": Target(
        lambda: [zipped(zipfile.ZIP_STORED), zipped(zipfile.ZIP_DEFLATED)], reads(".zip")
    ),
    "b2nd": Target(arrays, read_array),
    "prepared": Target(as_json(PREPARED), read_prepared, tree=True),
    "prepared-case": Target(as_json(INFO), read_info, tree=True),
    "source": Target(as_json(SOURCE, DECATHLON), read_source, tree=True),
    "nnunet-v1": Target(as_json(NNUNET_1), read_nnunet_1, tree=True),
    "split": Target(
        as_json({"train": ["a", "b"], "test": ["c"]}, {"labelled": ["a"], "unlabelled": ["d"]}),
        read_split,
        tree=True,
    ),
    "settings": Target(lambda: [TOML], read_settings),
    "set": Target(
        lambda: [
            b"train.lr=0.01",
            b"network.groups=[{name='x', classes=['a'], queries=2}]",
            b"method.name=bcp",
        ],
        read_override,
    ),
    "grid": Target(lambda: [GRID], read_benchmark),
    "run": Target(as_json(MANIFEST, SETTINGS), read_run, tree=True),
    "metrics": Target(
        lambda: [b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'], read_metrics
    ),
    "checkpoint": Target(checkpoints, read_checkpoint),
    "weights": Target(checkpoints, read_weights),
}
