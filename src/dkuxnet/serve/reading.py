"""Reading a stranger's file, in a process that may die of it: a bad file is a line on the page.

Only `read_file` opens the file, and it runs in the child. Here arrive JSON, which is checked, and
voxels as plain bytes.
"""

import logging
import math
import shutil
from contextlib import suppress
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
from dkuxnet.data.values import check_modality
from dkuxnet.machine.child import Child, Ended, Failed, Stopped, limit_memory
from dkuxnet.serve.headers import check_header, check_voxels, check_zip
from dkuxnet.serve.limits import Limits, no_room
from dkuxnet.serve.tasks import Cancelled, Task

log = logging.getLogger("dkuxnet.serve")
READ = "dkuxnet.serve.reading:read_file"
IMPORTS = (
    READ,
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
    """What the child says of a scan; its voxels, float32, stand in a file beside.

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
    """A scan (C, X, Y, Z) float32, and what was noticed about its file; see `Answer`."""

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
        voxels = task.folder / "voxels"
        seconds = self.limits.read_seconds + task.scan.stat().st_size / BYTES_A_SECOND
        try:
            answer = self._child.call(
                READ,
                *(str(task.scan), str(voxels), self.limits.voxels, self.channels),
                seconds=math.ceil(seconds),
                memory=ROOM_BYTES,
                stop=task.unwanted.is_set,
            )
            return read_back(answer, voxels, len(self.channels), self.limits.voxels)
        except Stopped:
            raise Cancelled from None
        except Ended as error:
            raise UserError(
                f"{task.scan}: expected a readable scan, but reading it {error}; export it again, "
                "in another format"
            ) from error
        except Failed as error:
            log.error("reading a scan failed: %s", error)
            name = str(error).partition("\n")[0]
            raise UserError(
                f"The program failed to read this scan ({name}); see the terminal in which it runs."
            ) from None
        finally:
            with suppress(OSError):
                voxels.unlink(missing_ok=True)  # where it is mapped, its pages stay
            for left in self.folder.iterdir():  # by a process that died
                shutil.rmtree(left, ignore_errors=True)
                left.unlink(missing_ok=True)
            self._child.start()  # where it died: to be ready for the next scan

    def stop(self) -> None:
        """End the process."""
        self._child.end()


def read_file(path: str, voxels: str, most: int, channels: list[str]) -> dict[str, Any]:
    """Read and verify a scan, and write its voxels to the new file `voxels`; returns an `Answer`.

    most: voxels that a scan may have. Raises UserError.
    """
    scan = Path(path)
    check_zip(scan, most)
    with data_warnings() as told:  # shown on the page instead of the terminal
        case = only_case(scan)
        limit_memory(ROOM_BYTES + BYTES_A_VOXEL * check_header(case, most))
        volume = read_image(case, len(channels))
        check_modality(f"case '{case.name}'", volume.modality, channels)
        oriented = formats.has_geometry(scan)
    check_voxels(volume.array.size, most, "with all its channels")
    array, order = volume.array, "F" if volume.array.flags.f_contiguous else "C"
    stored = array.T if order == "F" else np.ascontiguousarray(array)
    try:
        with Path(voxels).open("xb") as file:  # numpy's own ways do not tell of a full disk
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


def read_back(content: object, voxels: Path, channels: int, most: int) -> ReadScan:
    """The scan that `read_file` wrote. Raises UserError where it is not what was asked for."""
    try:
        answer = Answer.model_validate(content)
    except ValidationError as error:
        raise UserError(f"the scan was not read as expected: {error.errors()[0]['msg']}") from None
    shape, count = tuple(answer.shape), math.prod(answer.shape)
    check_voxels(count, most, "with all its channels")
    if shape[0] != channels or min(shape[1:]) < 2 or voxels.stat().st_size != 4 * count:
        raise UserError("the scan was not read as expected: its voxels are not all there")
    array = np.memmap(voxels, np.float32, "c", shape=shape, order=answer.order)
    affine = check_affine(voxels, np.array(answer.affine))
    volume = Volume(array, affine, answer.modality, formats.place_of(answer.nifti))
    return ReadScan(volume, answer.oriented, answer.told)


def only_case(path: Path) -> Case:
    """The one scan of a file. Raises UserError where it holds several."""
    cases = find_cases([path], channels=1)
    if len(cases) != 1:
        raise UserError(
            f"{path}: expected one scan, but it holds {len(cases)}; send them one by one"
        )
    return cases[0]
