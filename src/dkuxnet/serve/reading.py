"""Reading a stranger's file, in a process that may die of it: a bad file is a line on the page.

Only `read_file` opens the file, and it runs in the child. Here arrive JSON, which is checked, and
voxels as plain bytes.
"""

import logging
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dkuxnet.core.errors import NO_ROOM, UserError, data_warnings, disk_reason
from dkuxnet.core.types import Case, Volume
from dkuxnet.data import formats
from dkuxnet.data.checks import check_affine
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.data.labels import read_label, segment_names
from dkuxnet.data.values import check_modality
from dkuxnet.machine.child import Child, Ended, Failed, Stopped, limit_memory
from dkuxnet.serve.headers import check_header, check_voxels, check_zip
from dkuxnet.serve.limits import Limits, no_room
from dkuxnet.serve.names import FILE
from dkuxnet.serve.tasks import Cancelled, Task

log = logging.getLogger("dkuxnet.serve")
READ = "dkuxnet.serve.reading:read_file"
READ_MAP = "dkuxnet.serve.reading:read_map"
IMPORTS = (
    READ,
    READ_MAP,
    *sorted(set(formats.FORMATS.values())),
    "dkuxnet.data.dicom.series:one_series",
    "dkuxnet.data.dicom.read:read_scan",
)
# A thread of a library takes addresses for a stack and a heap of its own, which count as memory.
FEW_THREADS = {"MALLOC_ARENA_MAX": "2"} | dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)
ROOM_BYTES = 2**30  # that reading may take beside what the voxels need
BYTES_A_VOXEL = 24  # as stored, unpacked, scaled in float64, as float32, and looked at
BYTES_A_SECOND = 4 * 2**20  # of a file, the least that a slow machine reads

Word = Annotated[str, Field(max_length=3000)]
Row = Annotated[list[float], Field(min_length=4, max_length=4)]
Edge = Annotated[int, Field(ge=1)]


class Answer(BaseModel):
    """What the child says of a scan; its voxels, of four bytes, stand in a file beside.

    order: of the voxels in that file, as numpy calls it. told: warnings. oriented: the scan's own
    file says how the patient lies. nifti: of `Volume`, in hexadecimal.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    shape: Annotated[list[Edge], Field(min_length=4, max_length=4)]
    order: Literal["C", "F"]
    affine: Annotated[list[Row], Field(min_length=4, max_length=4)]
    modality: Word
    oriented: bool
    told: Annotated[list[Word], Field(max_length=100)]
    nifti: Annotated[str, Field(max_length=2 * formats.PLACE_BYTES)]


@dataclass(frozen=True)
class ReadScan:
    """A scan (C, X, Y, Z) float32, or a label map, and what was noticed of it; see `Answer`."""

    volume: Volume
    oriented: bool
    told: list[str]


class Reader:
    """Reads the scan of a task in a process of its own, which stays for the next one.

    channels: names of those that the model takes. folder: for what the process writes meanwhile.
    """

    def __init__(self, limits: Limits, channels: list[str], folder: Path):
        self.limits, self.channels = limits, channels
        folder.mkdir(mode=0o700, exist_ok=True)
        self.folder = folder
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
        self._child = Child(IMPORTS, FEW_THREADS | temporary, quiet=True)
        self._child.start()

    def __call__(self, task: Task) -> ReadScan:
        """The scan of `task`. Raises UserError for any fault of the file, and Cancelled."""
        voxels, most = task.folder / "voxels", self.limits.voxels
        given = [str(path) for path in task.images]
        answer = (READ, str(task.scan), str(voxels), most, self.channels, given)
        with self._one_call(task.files, task.unwanted) as call:
            return read_back(call(*answer), voxels, len(self.channels), most)

    def label(
        self,
        case: Case,
        path: Path,
        labels: dict[str, int],
        values: list[int] | None,
        folder: Path,
        unwanted: threading.Event | None = None,
    ) -> ReadScan:
        """The label map (1, X, Y, Z) int32 in a file, on the grid of the scan of `case`.

        labels: class name -> value, others are refused. values: of those in the file, from 0 on;
        None where they need no change. folder: private, for what is read. Raises UserError as
        `data.labels.read_label` does, and Cancelled.
        """
        voxels, most = folder / "voxels", self.limits.voxels
        images = [str(image) for image in case.images]
        answer = (READ_MAP, str(path), str(voxels), most, case.name, images, labels, values)
        with self._one_call((path, *case.images), unwanted) as call:
            read = read_back(call(*answer), voxels, 1, most, np.int32)
        if not np.isin(read.volume.array, list(labels.values())).all():
            raise UserError(f"{path}: the label map was not read as expected")
        return read

    @contextmanager
    def _one_call(
        self, files: Sequence[Path], unwanted: threading.Event | None
    ) -> Iterator[Callable[..., object]]:
        """A call of a function in the child, whose first arguments are a file and its voxels'."""
        seconds = self.limits.read_seconds + sum(map(size_of, files)) / BYTES_A_SECOND
        written: list[Path] = []

        def call(function: str, path: str, voxels: str, *arguments: object) -> object:
            written.append(Path(voxels))
            return self._child.call(
                function,
                *(path, voxels, *arguments),
                seconds=math.ceil(seconds),
                memory=ROOM_BYTES,
                stop=unwanted.is_set if unwanted else lambda: False,
            )

        try:
            yield call
        except Stopped:
            raise Cancelled from None
        except Ended as error:
            raise UserError(
                f"{files[0]}: expected a readable scan, but reading it {error}; export it again, "
                "in another format"
            ) from error
        except Failed as error:
            log.error("reading a scan failed: %s", error)
            name = str(error).partition("\n")[0]
            raise UserError(
                f"The program failed to read this scan ({name}); see the terminal in which it runs."
            ) from None
        finally:
            for voxels in written:
                with suppress(OSError):
                    voxels.unlink(missing_ok=True)  # where it is mapped, its pages stay
            for left in self.folder.iterdir():  # by a process that died
                shutil.rmtree(left, ignore_errors=True)
                left.unlink(missing_ok=True)
            self._child.start()  # where it died: to be ready for the next scan

    def stop(self) -> None:
        """End the process."""
        self._child.end()


def read_file(
    path: str, voxels: str, most: int, channels: list[str], given: Sequence[str] = ()
) -> dict[str, Any]:
    """Read and verify a scan, and write its voxels to the new file `voxels`; returns an `Answer`.

    most: voxels that a scan may have. given: the scan's files, where it is no upload at `path`.
    Raises UserError.
    """
    scans = [Path(each) for each in given or [path]]
    for scan in scans:
        check_zip(scan, most)
    with data_warnings() as told:  # shown on the page instead of the terminal
        case = Case(FILE, tuple(scans)) if given else only_case(scans[0])
        limit_memory(ROOM_BYTES + BYTES_A_VOXEL * check_header(case, most))
        volume = read_image(case, len(channels))
        check_modality(f"case '{case.name}'", volume.modality, channels)
        oriented = formats.has_geometry(scans[0])
    check_voxels(volume.array.size, most, "with all its channels")
    return _answer(volume, Path(voxels), told, oriented)


def read_map(
    path: str,
    voxels: str,
    most: int,
    name: str,
    images: Sequence[str],
    labels: dict[str, int],
    values: list[int] | None,
) -> dict[str, Any]:
    """As `read_file`, of a label map (1, X, Y, Z) int32 on the grid of the first of `images`."""
    file, case = Path(path), Case(name, (Path(images[0]),))
    for each in (file, *case.images):
        check_zip(each, most)
    promised = check_header(case, most)
    if not formats.is_dicom(file):
        promised += check_header(Case(name, (file,)), most)
    limit_memory(ROOM_BYTES + BYTES_A_VOXEL * promised)
    with data_warnings() as told:
        scan, names = formats.read(case.images[0]), segment_names(file)
        if wrong := [each for each in names or () if each not in labels]:
            raise unknown_class(case, f"a segment named '{wrong[0]}'", labels)
        label = read_label(name, file, ("the scan", scan), labels).array
    found = np.unique(label).tolist()
    given = dict(enumerate(values)) if values and names is None else None
    meant = given or {value: value for value in labels.values()}
    if absent := [value for value in found if value not in meant]:
        raise unknown_class(case, f"the value {absent[0]}", labels)
    array = np.zeros((1, *label.shape), np.int32)
    for value in found:
        array[0][label == value] = meant[value]
    return _answer(Volume(array, scan.affine, nifti=scan.nifti), Path(voxels), told, True)


def unknown_class(case: Case, what: str, labels: dict[str, int]) -> UserError:
    """The error for a label with a class that the model lacks."""
    return UserError(
        f"case '{case.name}': its label has {what}, which is no class of the model "
        f"({', '.join(list(labels)[1:])})"
    )


def _answer(volume: Volume, voxels: Path, told: list[str], oriented: bool) -> dict[str, Any]:
    """Write the voxels to the new file `voxels`; returns an `Answer`. Raises UserError."""
    array, order = volume.array, "F" if volume.array.flags.f_contiguous else "C"
    stored = array.T if order == "F" else np.ascontiguousarray(array)
    try:
        with voxels.open("xb") as file:  # numpy's own ways do not tell of a full disk
            file.write(stored.data.cast("B"))
    except OSError as error:
        raise UserError(str(no_room()) if error.errno in NO_ROOM else disk_reason(error)) from error
    return {
        "shape": list(array.shape),
        "order": order,
        "affine": volume.affine.tolist(),
        "modality": volume.modality,
        "oriented": oriented,
        "told": told[:100],
        "nifti": volume.nifti.hex(),
    }


def read_back(
    content: object, voxels: Path, channels: int, most: int, dtype: type[np.generic] = np.float32
) -> ReadScan:
    """The scan that `read_file` wrote. Raises UserError where it is not what was asked for.

    dtype: of its voxels, of four bytes each.
    """
    try:
        answer = Answer.model_validate(content)
    except ValidationError as error:
        raise UserError(f"the scan was not read as expected: {error.errors()[0]['msg']}") from None
    shape, count = tuple(answer.shape), math.prod(answer.shape)
    check_voxels(count, most, "with all its channels")
    if shape[0] != channels or min(shape[1:]) < 2 or voxels.stat().st_size != 4 * count:
        raise UserError("the scan was not read as expected: its voxels are not all there")
    array = np.memmap(voxels, dtype, "c", shape=shape, order=answer.order)
    affine = check_affine(voxels, np.array(answer.affine))
    volume = Volume(array, affine, answer.modality, formats.place_of(answer.nifti))
    return ReadScan(volume, answer.oriented, answer.told)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size


def only_case(path: Path) -> Case:
    """The one scan of a file. Raises UserError where it holds several."""
    cases = find_cases([path], channels=1)
    if len(cases) != 1:
        raise UserError(
            f"{path}: expected one scan, but it holds {len(cases)}; send them one by one"
        )
    return cases[0]
