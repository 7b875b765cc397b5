# mypy: untyped-calls-exclude=SimpleITK
"""What NRRD and MetaImage share: a header of text lines, and the voxels behind it in one file.

Both headers are parsed here and the voxels read here. The formats' own libraries follow names in a
header to other files, and no check before them can be sure to read a header as they do. SimpleITK
only writes. Its arrays are (Z, Y, X) in LPS coordinates, ours are (X, Y, Z) in RAS.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dkuxnet.core.errors import UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.data.checks import (
    MAX_DEFLATE_RATIO,
    Header,
    check_exact,
    check_size,
    finish,
    inflate,
    reading,
    require,
)

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would print past our own warnings

MAX_HEADER_BYTES = 1 << 20
MAX_AXIS = 10**9
MAX_WORD = 64  # letters of a number
# No control characters. A carriage return ends no line by itself: some readers take it for an end.
LINE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*(\r?\n)")
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Packing = Literal["deflate", "raw", "text", "hex"]


@dataclass(frozen=True)
class InlineHeader(Header):
    """A header and where its voxels lie: in the same file, first axis fastest.

    affine: of the spatial axes, to RAS+ mm. channel_axis: index of the axis of channels, if any.
    voxels_in: the file beside the header that holds them, None where they follow the header. start:
    position of the first byte of the voxels. packing: how they are stored from there on.
    packed_bytes: their packed size, None in a format that does not state it.
    """

    affine: NDArray[np.float64]
    channel_axis: int | None
    start: int
    packing: Packing
    packed_bytes: int | None = None
    voxels_in: Path | None = None


def header_lines(path: Path, name: str, is_last: Callable[[str], bool]) -> tuple[list[str], int]:
    """The lines of a header without their ends, and where the voxels begin.

    is_last: whether a line is the last one. Raises UserError where there is none, and for a line
    that is not plain text.
    """
    require(path, name)
    lines: list[str] = []
    start = 0
    with reading(path, name), open_regular(path) as file:
        while start < MAX_HEADER_BYTES and (line := file.readline(MAX_HEADER_BYTES - start)):
            start += len(line)
            end = LINE.fullmatch(line)
            if end is None:
                raise UserError(
                    f"{path}: expected a {name} header of plain text, but line {len(lines) + 1} "
                    "holds other characters or is cut short; save the scan again"
                )
            lines.append(line[: end.start(1)].decode("latin-1"))
            if is_last(lines[-1]):
                return lines, start
    raise UserError(
        f"{path}: expected a {name} header that ends within {MAX_HEADER_BYTES} bytes, but it does "
        "not: it is cut short or its header is wrong; copy or save the scan again"
    )


def wrong(path: Path, key: str, expected: str, value: str) -> UserError:
    """The error for a field of a header."""
    return UserError(
        f"{path}: expected {key} to be {expected} in the header, got {value[:80]!r}; save the "
        "scan again"
    )


def numbers(path: Path, key: str, text: str, count: int) -> NDArray[np.float64]:
    """`count` finite numbers that stand in field `key`; else UserError."""
    words = text.split(maxsplit=count)
    plain = all(len(word) <= MAX_WORD and NUMBER.fullmatch(word) for word in words)
    values = np.array(words if plain else [], dtype=np.float64)
    if len(values) != count or not np.isfinite(values).all():
        raise wrong(path, key, f"{count} numbers", text)
    return values


def sizes(path: Path, key: str, text: str, count: int) -> tuple[int, ...]:
    """`count` whole numbers above 0 that stand in field `key`; else UserError."""
    values = numbers(path, key, text, count)
    if not ((values >= 1) & (values <= MAX_AXIS) & (values % 1 == 0)).all():
        raise wrong(path, key, f"{count} whole numbers above 0", text)
    return tuple(map(int, values))


def affine_of(axes: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) of the first three coordinates: axes holds a step along each axis as a column."""
    affine = np.eye(4)
    affine[:3, :3] = axes[:3, :3]
    affine[:3, 3] = origin[:3]
    return affine


def read_voxels(path: Path, name: str, header: InlineHeader, kind: str) -> Volume:
    """The volume of a file. Channels come first; without an axis of them the fourth axis is one."""
    with reading(path, name):
        array = _stored(path, header).reshape(header.shape, order="F")
        axis = len(header.shape) - 1 if header.channel_axis is None else header.channel_axis
        array = np.moveaxis(array, axis, 0) if array.ndim > 3 else array
    return finish(path, array, header.affine, kind)


def write_image(volume: Volume, path: Path) -> None:
    """Write the array in its own type, compressed, the affine as spacing, direction and origin."""
    vector = volume.array.ndim == 4
    array = volume.array.transpose(3, 2, 1, 0) if vector else volume.array.T
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=vector)
    affine = LPS_RAS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    lower = path.with_suffix(path.suffix.lower())  # of .MHA it would make two other files
    sitk.WriteImage(image, str(lower), useCompression=True)
    lower.replace(path)


def _stored(path: Path, header: InlineHeader) -> NDArray[Any]:
    """The voxels as a line: all that the header promises, or UserError."""
    if header.voxels_in is not None:
        needed = header.nbytes if header.packed_bytes is None else header.packed_bytes
        check_exact(path, header.voxels_in, needed)
        path = header.voxels_in
    size = max(0, path.stat().st_size - header.start)
    most = size * (MAX_DEFLATE_RATIO if header.packing == "deflate" else 1)
    check_size(
        path, header.nbytes, most * (header.dtype.itemsize if header.packing == "text" else 1)
    )
    if header.packing == "deflate":
        voxels, packed = inflate(path, header.start, header.nbytes)
        stated = header.packed_bytes
        if stated is not None and not packed <= stated <= size:
            raise UserError(
                f"{path}: expected the size of the packed voxels, {packed} bytes, in the header, "
                f"got {stated}; save the scan again"
            )
        return voxels.view(header.dtype)
    with open_regular(path) as file:
        file.seek(header.start)
        if header.packing == "raw":
            array = np.fromfile(file, header.dtype, header.voxels)
        elif header.packing == "hex":
            text = file.read(3 * header.nbytes)  # some have line ends, or spaces between bytes
            array = np.frombuffer(bytes.fromhex(text.decode("latin-1")), header.dtype)
        else:
            text = file.read(MAX_WORD * header.voxels)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of text that is no number
                array = np.fromstring(text, header.dtype, header.voxels, sep=" ")
    check_size(path, header.nbytes, array.nbytes)
    return array[: header.voxels]
