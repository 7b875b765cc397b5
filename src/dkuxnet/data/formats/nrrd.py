"""NRRD in one file, the format of 3D Slicer and of the Atrial Segmentation Challenge."""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import inflate
from dkuxnet.data.formats import _inline

# Names as the format's definition has them. Spaces and case of letters do not matter in ours.
FIELDS = {
    *("type", "dimension", "sizes", "encoding", "endian", "kinds", "space", "spacedimension"),
    *("spacedirections", "spaceorigin", "spacings", "axismins", "centerings"),
    *("blocksize", "byteskip", "lineskip"),
    *("content", "number", "sampleunits", "spaceunits", "measurementframe", "min", "max"),
    *("oldmin", "oldmax", "thicknesses", "axismaxs", "labels", "units"),
}
ALIASES = {"centers": "centerings"}
TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int"), "i2"),
    **dict.fromkeys(("int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int"), "u2"),
    **dict.fromkeys(("uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int"), "i8"),
    **dict.fromkeys(("signed long long", "signed long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int"), "u8"),
    **dict.fromkeys(("uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
PACKINGS: dict[str, _inline.Packing] = {
    "raw": "raw",
    **dict.fromkeys(("gzip", "gz"), "deflate"),
    **dict.fromkeys(("ascii", "text", "txt"), "text"),
    "hex": "hex",
}
SPATIAL_KINDS = {"domain", "space", "time", "???", "none", "unknown"}
CHANNEL_KINDS = {
    *("vector", "covariant-vector", "normal", "point", "list", "scalar", "stub"),
    *("rgb-color", "rgba-color", "hsv-color", "xyz-color", "3-color", "4-color"),
    *("2-vector", "3-vector", "4-vector", "3-gradient", "3-normal"),
}
# Space -> the signs that turn its first two coordinates into right and anterior. All others are
# taken for left-posterior-superior, as ITK does.
SIGNS = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1)),
}
MAGIC = re.compile(r"NRRD000[1-5]")
DATA_FILE = re.compile(r"\s*data ?file\s*:(?!=)", re.IGNORECASE)
SEGMENT = re.compile(r"Segment(\d{1,6})_(ID|Name|LabelValue|Layer):=(.*)", re.ASCII)
MAX_SEGMENTS = 4096
VECTORS = re.compile(r"none|\([^()]*\)")


@dataclass(frozen=True)
class Segment:
    """A segment of 3D Slicer's .seg.nrrd: voxels of `value` in one layer, the first being 0."""

    name: str
    value: int
    layer: int


@dataclass(frozen=True)
class Nrrd:
    """Vector images are volumes with channels first."""

    def peek(self, path: Path, kind: str = "image") -> _inline.InlineHeader:
        """Read the header. Raises UserError where it is none or its voxels lie in another file."""
        fields, start = _fields(path)
        packing = PACKINGS.get(fields.get("encoding", "").lower())
        if packing is None:
            raise _inline.wrong(path, "encoding", "raw or gzip", fields.get("encoding", ""))
        axes = _inline.sizes(path, "dimension", fields.get("dimension", ""), 1)[0]
        if axes not in (2, 3, 4):
            raise _inline.wrong(path, "dimension", "3", str(axes))
        shape = _inline.sizes(path, "sizes", fields.get("sizes", ""), axes)
        directions = _directions(path, fields, axes)
        channel = _channel_axis(path, fields, directions, axes)
        spatial = [axis for axis in range(axes) if axis != channel]
        if len(spatial) < 3:
            raise UserError(
                f"{path}: expected a 3D scan, but its shape is {shape}; give one volume per file"
            )
        affine = _affine(path, fields, directions, spatial[:3])
        dtype = _dtype(path, fields, packing)
        return _inline.InlineHeader(shape, dtype, affine, channel, start, packing)

    def read(self, path: Path, kind: str = "image") -> Volume:
        """Read the volume."""
        return _inline.read_voxels(path, "NRRD", self.peek(path), kind)

    def segments(self, path: Path) -> list[Segment]:
        """The segments that 3D Slicer described in the header, in its order; none elsewhere.

        Raises UserError where they are not described as Slicer does.
        """
        lines, _ = _header(path)
        found: dict[int, dict[str, str]] = {}
        for line in lines:
            if match := SEGMENT.fullmatch(line):
                found.setdefault(int(match[1]), {})[match[2]] = match[3].strip()
        if len(found) > MAX_SEGMENTS:
            raise _inline.wrong(path, "segments", f"{MAX_SEGMENTS} at most", str(len(found)))
        return [_segment(path, number, found[number]) for number in sorted(found)]

    def write(self, volume: Volume, path: Path) -> None:
        """Write the volume, and read it back: ITK keeps silent about a full disk."""
        _inline.write_image(volume, path)
        try:
            inflate(path, self.peek(path).start, volume.array.nbytes, keep=False)
        except (UserError, zlib.error) as error:
            raise RuntimeError("the disk did not take all of it") from error


def _header(path: Path) -> tuple[list[str], int]:
    """The lines of a header, and where the voxels begin."""
    return _inline.header_lines(path, "NRRD", lambda line: not line or bool(DATA_FILE.match(line)))


def _segment(path: Path, number: int, given: dict[str, str]) -> Segment:
    """A segment of its fields. Slicer's first versions gave each a layer of its own, of ones."""
    layer = "0" if "LabelValue" in given else str(number)
    numbers = [given.get("LabelValue", "1"), given.get("Layer", layer)]
    if not all(re.fullmatch(r"\d{1,9}", number, re.ASCII) for number in numbers):
        raise _inline.wrong(path, "LabelValue and Layer", "whole numbers", " ".join(numbers))
    # Slicer writes UTF-8, which was read byte by byte.
    text = (given.get("Name") or given.get("ID", "")).encode("latin-1").decode(errors="replace")
    name = "".join(c if c.isprintable() else "?" for c in text).strip()
    return Segment(name or f"segment {numbers[0]}", int(numbers[0]), int(numbers[1]))


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of a header by name, and where the voxels begin. Key/value pairs are left out."""
    lines, start = _header(path)
    if not MAGIC.fullmatch(lines[0]):
        raise _inline.wrong(path, "the first line", "NRRD0001 to NRRD0005", lines[0])
    if lines[-1]:
        raise UserError(
            f"{path}: expected header and voxels in one file, but they are in two; save it as one"
        )
    fields: dict[str, str] = {}
    for line in lines[1:-1]:
        name, colon, value = line.partition(":")
        key = name.strip().lower().replace(" ", "")
        key = ALIASES.get(key, key)
        if line.startswith("#") or (":=" in line and (key not in FIELDS or value[:1] == "=")):
            continue
        if not colon or key not in FIELDS:
            raise _inline.wrong(path, "each line", "'field: value' or 'key:=value'", line)
        if key in fields:
            raise UserError(
                f"{path}: expected '{name[:80]}' once in the header, but it is there again; save "
                "the scan again"
            )
        fields[key] = value.strip()
    for key in ("byteskip", "lineskip"):
        if fields.get(key, "0") != "0":
            raise _inline.wrong(path, key, "0", fields[key])
    return fields, start


def _dtype(path: Path, fields: dict[str, str], packing: _inline.Packing) -> "np.dtype[np.generic]":
    name = " ".join(fields.get("type", "").lower().split())
    if name not in TYPES:
        raise _inline.wrong(path, "type", "a type of numbers", name)
    dtype, order = np.dtype(TYPES[name]), fields.get("endian", "").lower()
    if order not in ("little", "big") and dtype.itemsize > 1 and packing != "text":
        raise _inline.wrong(path, "endian", "little or big", order)
    return dtype.newbyteorder(">" if order == "big" else "<")


def _directions(
    path: Path, fields: dict[str, str], axes: int
) -> list[NDArray[np.float64] | None] | None:
    """A step along each axis in space, None for an axis that has none; None where none is given."""
    if "spacedirections" not in fields:
        return None
    text = fields["spacedirections"]
    words = VECTORS.findall(text)
    if len(words) != axes or VECTORS.sub("", text).strip():
        raise _inline.wrong(path, "space directions", f"{axes} vectors", text)
    lengths = {word.count(",") + 1 for word in words if word != "none"}
    if len(lengths) > 1:
        raise _inline.wrong(path, "space directions", "vectors of one length", text)
    return [None if word == "none" else _vector(path, word, *lengths) for word in words]


def _vector(path: Path, text: str, length: int) -> NDArray[np.float64]:
    """The numbers of "(1,0,0)"."""
    if text[:1] + text[-1:] != "()":
        raise _inline.wrong(path, "a vector", f"{length} numbers in brackets", text)
    return _inline.numbers(path, "a vector", text[1:-1].replace(",", " "), length)


def _channel_axis(
    path: Path,
    fields: dict[str, str],
    directions: list[NDArray[np.float64] | None] | None,
    axes: int,
) -> int | None:
    """The axis of channels, by its kind or by its lack of a direction."""
    kinds = fields.get("kinds", "??? " * axes).lower().split()
    known = SPATIAL_KINDS | CHANNEL_KINDS
    if len(kinds) != axes or not known.issuperset(kinds):
        raise _inline.wrong(path, "kinds", "those of a scan or of its channels", " ".join(kinds))
    found = {axis for axis, kind in enumerate(kinds) if kind in CHANNEL_KINDS}
    found |= {axis for axis, step in enumerate(directions or []) if step is None}
    if len(found) > 1:
        raise _inline.wrong(path, "kinds", "those of at most one axis of channels", " ".join(kinds))
    return found.pop() if found else None


def _affine(
    path: Path,
    fields: dict[str, str],
    directions: list[NDArray[np.float64] | None] | None,
    spatial: list[int],
) -> NDArray[np.float64]:
    """The affine to RAS+ mm of three axes, from their directions or else their spacings."""
    name = fields.get("space", "").lower().removesuffix("-time")
    name = name[:3] if len(name) == 4 else name  # LPST: left-posterior-superior-time
    signs = np.diag([*SIGNS.get(name, (-1, -1)), 1.0, 1.0])
    if directions is not None:
        steps = np.array([directions[axis] for axis in spatial]).T
        if len(steps) < 3:
            raise _inline.wrong(path, "space directions", "3D", fields["spacedirections"])
        origin = fields.get("spaceorigin")
        return signs @ _inline.affine_of(
            steps, np.zeros(3) if origin is None else _vector(path, origin, len(steps))
        )
    axes = len(fields["sizes"].split())
    spacing = _of_axes(path, fields, "spacings", axes, 1.0)[spatial]
    # An axis begins at the edge of its first voxel, unless its samples are nodes.
    nodes = fields.get("centerings", "").lower().split() == ["node"] * axes
    start = _of_axes(path, fields, "axismins", axes, np.nan)[spatial]
    origin_mm = np.where(np.isnan(start), 0.0, start + (0.0 if nodes else spacing / 2))
    return signs @ _inline.affine_of(np.diag(spacing), origin_mm)


def _of_axes(
    path: Path, fields: dict[str, str], key: str, axes: int, default: float
) -> NDArray[np.float64]:
    """A number for each axis; "nan" stands for the default."""
    words = fields.get(key, "nan " * axes).lower().split()
    given = [word for word in words if word != "nan"]
    values = iter(_inline.numbers(path, key, " ".join(given), axes - words.count("nan")))
    return np.array([default if word == "nan" else next(values) for word in words])


NRRD = Nrrd()
