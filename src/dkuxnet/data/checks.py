"""What all readers of scans share: headers, and the checks before and after voxels are read."""

import math
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from dkuxnet.core.documents import names_a_file
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.regular import open_regular
from dkuxnet.core.types import Volume
from dkuxnet.machine.memory import check_memory

HEAD_BYTES = 65536
CHUNK_BYTES = 1 << 16
UNPACKED_BYTES = 1 << 20
# What a header promises beyond this is inflated once without being kept before memory is taken.
UNPROVEN_BYTES = 1 << 28
PAIR = "the header (.hdr) of a NIfTI pair"
ANALYZE = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # 348, the size of its header
MAGIC = (
    (b"NRRD", "NRRD"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
)
ROUNDING = 0.01 + 1e-6  # of a label value; float32 holds 0.99 a little lower
# Deflate cannot compress better than this: a header that promises more than the file could unpack
# to is wrong.
MAX_DEFLATE_RATIO = 1032
# Unpacked bytes after the voxels that a header promises: some writers pad a little, a bomb does not
# end.
MAX_REST_BYTES = 1 << 27


@dataclass(frozen=True)
class Header:
    """What a file promises before any voxel is read.

    shape: number of voxels along each axis as the file stores them, channels included.
    dtype: of the stored voxels.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def voxels(self) -> int:
        """Number of voxels of all channels together."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Memory that the unpacked voxels take."""
        return self.voxels * self.dtype.itemsize


def reason(error: BaseException) -> str:
    """The error's text on one line."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Exception thrown in SimpleITK"):
        # A trace of C++ files, whose last line says what went wrong.
        lines = [re.sub(r"^(itk::|sitk::|ITK )ERROR: (\w+\(\w+\): )?", "", lines[-1])]
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= 240 else text[:240] + " ..."


def content(head: bytes) -> str:
    """What a file holds, in words, judged by its first bytes."""
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return "NIfTI"
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        return PAIR
    if head[128:132] == b"DICM":
        return "DICOM"
    for magic, name in MAGIC:
        if head.startswith(magic):
            return name
    if re.search(rb"(?m)^(ObjectType|NDims|DimSize)\s*=", head):
        return "MetaImage"
    if len(head) == 348 and head[:4] in ANALYZE:
        return "an Analyze 7.5 header, which does not tell left from right"
    if head[:4] == b"\0\0\0\1" and len(head) > 284:
        return "MGH"
    return "text" if re.fullmatch(rb"[\t\n\r\x20-\x7e]+", head) else "unknown data"


def require(path: Path, expected: str) -> bytes:
    """The first bytes of `path`, which must be a file that starts as `expected` does.

    Raises UserError where it is missing, empty or another kind of file.
    """
    if os.path.isdir(path):
        raise UserError(
            f"{path}: expected a {expected} file, but this is a folder; give the file in it"
        )
    if not os.path.isfile(path):  # a named pipe would be waited for
        raise UserError(f"{path}: expected a {expected} file, but there is none; check the path")
    with reading(path, expected), open_regular(path) as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise UserError(
            f"{path}: expected a {expected} file, but it is empty (0 bytes); copy or export it "
            "again"
        )
    found = content(head)
    if found != expected:
        raise UserError(
            f"{path}: expected {expected} by its name, but it holds {found}; rename or convert it"
        )
    return head


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a library raises in this block into a UserError that names the file.

    All exceptions, because a damaged file makes parsers raise nearly any of them (zlib.error,
    KeyError, EOFError, ...).
    """
    with telling(f"{path}: expected a readable {expected} file, but", "copy or export it again"):
        yield


@contextmanager
def telling(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises in this block into the UserError "what: reason; remedy"."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {reason(error)}; {remedy}") from error


def check_size(path: Path, needed: int, available: int) -> None:
    """Raise UserError where voxels need more bytes than the file can hold or memory has left."""
    if needed > available:
        raise UserError(
            f"{path}: expected {needed} bytes of voxels by its header, but the file holds at most "
            f"{available}: it is cut short or its header is wrong; copy or export it again"
        )
    check_memory(needed, str(path))


def beside(path: Path, name: str) -> Path:
    """The file `name` in the folder of `path`, a header whose voxels it holds.

    Raises UserError where the name leads out of the folder, as a path or as a link, and where there
    is no file: a stranger's header must not choose what is read.
    """
    shown = name[:80]
    if not names_a_file(name):
        raise UserError(
            f"{path}: expected its voxels in a file beside it, but the header names {shown!r}; put "
            "both in one folder, and the file's bare name in the header"
        )
    file = same_name(path.with_name(name))
    if not os.path.isfile(file):
        raise UserError(f"{path}: expected its voxels in {shown!r} beside it, but there is none")
    if file.resolve().parent != path.parent.resolve():
        raise UserError(
            f"{path}: expected its voxels in a file beside it, but {shown!r} is a link to another "
            "folder; link the folder, or copy the file"
        )
    return file.resolve()


def same_name(path: Path) -> Path:
    """`path`, or the file beside it whose name is the same text in another form of Unicode.

    macOS writes an accent as a letter of its own, other systems do not.
    """
    if path.exists() or path.name.isascii() or not path.parent.is_dir():
        return path
    wanted = normalize("NFC", path.name)
    return next((p for p in path.parent.iterdir() if normalize("NFC", p.name) == wanted), path)


def check_exact(path: Path, voxels_in: Path, needed: int) -> None:
    """Raise UserError where the file beside the header `path` is not exactly as long as it says."""
    size = voxels_in.stat().st_size
    if size != needed:
        raise UserError(
            f"{path}: expected {needed} bytes of voxels in {voxels_in.name}, but it has {size}: "
            "one of the two is not of this scan; copy or export both again"
        )


def check_axes(path: Path, shape: Sequence[int]) -> None:
    """Raise UserError where voxels are no 3D scan, nor channels of one."""
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise UserError(
            f"{path}: expected a 3D scan, but its shape is {tuple(shape)}; give one volume per file"
        )


def check_numbers(path: Path, dtype: np.dtype[Any]) -> None:
    """Raise UserError where voxels are anything but one plain real number each."""
    if dtype.kind not in "biuf":
        raise UserError(
            f"{path}: expected one real number a voxel, but its voxels are {dtype}; convert it"
        )


def inflate(
    path: Path, start: int, needed: int, keep: bool = True
) -> tuple[NDArray[np.uint8], int]:
    """Inflate the voxels (zlib or gzip) from byte `start` on: `needed` bytes, and the packed size.

    The rest is inflated too, a little at a time, to check length and checksum. Where the header
    promises much, all of it is inflated once before any memory is taken. keep: False gives an empty
    array. Raises UserError or zlib.error.
    """
    if keep and needed > UNPROVEN_BYTES:
        inflate(path, start, needed, keep=False)
    voxels = np.empty(needed if keep else 0, np.uint8)
    inflater, count = zlib.decompressobj(wbits=zlib.MAX_WBITS + 32), 0
    with open_regular(path) as file:
        file.seek(start)
        while not inflater.eof:
            packed = inflater.unconsumed_tail or file.read(CHUNK_BYTES)
            part = inflater.decompress(packed, UNPACKED_BYTES)
            if not packed and not part:
                raise UserError(
                    f"{path}: expected {needed} bytes of voxels, but it is cut short after "
                    f"{count}; copy it again"
                )
            room = voxels[count : count + len(part)]
            room[:] = np.frombuffer(part, np.uint8, len(room))
            count += len(part)
            if count > needed + MAX_REST_BYTES:
                raise UserError(
                    f"{path}: expected {needed} bytes of voxels by its header, but it unpacks to "
                    "far more; export it again"
                )
        packed_bytes = file.tell() - len(inflater.unused_data) - start
    check_size(path, needed, count)
    return voxels, packed_bytes


def finish(path: Path, array: NDArray[Any], affine: NDArray[Any], kind: str) -> Volume:
    """The volume of a file: shape, number type and affine checked, a single channel squeezed.

    array: (X, Y, Z) or (C, X, Y, Z). Raises UserError where it is neither, or not a label map
    where `kind` is "label".
    """
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    check_axes(path, array.shape)
    if kind == "label" and array.ndim != 3:
        raise UserError(
            f"{path}: expected a 3D label map, but its shape is {array.shape}; give one channel"
        )
    array = _plain(path, array)
    if kind == "label":
        array = _integers(path, array)
    return Volume(array, check_affine(path, affine))


def check_affine(path: Path, affine: NDArray[Any]) -> NDArray[Any]:
    """`affine` as (4, 4) float64. Raises UserError where it is not finite or is singular."""
    affine = np.asarray(affine, dtype=np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(affine).all() and np.isfinite(np.linalg.norm(affine))
    if affine.shape != (4, 4) or not finite:
        raise UserError(
            f"{path}: expected a finite 4x4 affine, but it is {affine.tolist()}; repair the header"
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise UserError(
            f"{path}: expected independent axes, but the affine {affine.tolist()} is singular; "
            "repair it"
        )
    return affine


def storable(volume: Volume, path: Path) -> Volume:
    """`volume` in a form that every format can hold, see `formats.write`; else UserError."""
    finished = finish(path, np.asarray(volume.array), volume.affine, "image")
    return replace(finished, nifti=volume.nifti)


def _plain(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """Real numbers in native byte order and in a type that numpy, torch and every format know."""
    check_numbers(path, array.dtype)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _integers(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """`array` in an integer type: floats become the smallest one that holds them.

    What is nearly whole, as after scaling by a header of integers, is rounded and told.
    """
    if array.dtype.kind != "f":
        return array
    worst, strays, first = 0.0, 0, 0.0
    for part in array:  # a slice at a time, to save memory
        with np.errstate(invalid="ignore"):
            off = np.abs(part - np.rint(part))
        stray = part[~(off <= ROUNDING)]
        strays, first = strays + len(stray), first if strays or not len(stray) else stray[0]
        worst = max(worst, float(off.max(initial=0)))
    if strays:
        raise UserError(
            f"{path}: expected a label map of whole numbers, but {strays} voxels are not, the "
            f"first is {first:.6g}; give the label file"
        )
    if worst:
        warnings.warn(
            f"{path}: its label values are up to {worst:.2g} off whole numbers, as after scaling; "
            "they are rounded",
            DataWarning,
            stacklevel=2,
        )
        array = np.rint(array)
    low, high = array.min(), array.max()
    smallest = np.result_type(np.min_scalar_type(int(low)), np.min_scalar_type(int(high)))
    if smallest.kind not in "iu":
        raise UserError(
            f"{path}: expected labels that fit an integer, but they reach from {low} to {high}; "
            "repair it"
        )
    return array.astype(smallest)
