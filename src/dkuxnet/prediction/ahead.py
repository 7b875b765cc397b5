"""Scans one after another, the next one read while a GPU computes.

It is read by a process of its own: what its files warn of would mix with the warnings of the scan
before it in one process, and Python's own work would wait for each other.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from dkuxnet.core.errors import DataWarning, UserError, data_warnings
from dkuxnet.core.types import Case, Volume
from dkuxnet.data.images import read_image
from dkuxnet.machine.child import Child, Ended, Failed
from dkuxnet.machine.memory import free_bytes

if TYPE_CHECKING:  # the process that reads needs no torch
    from dkuxnet.prediction.segment import Segmenter

READ = "dkuxnet.prediction.ahead:read_into"


@contextmanager
def reading(cases: Sequence[Case], segmenter: "Segmenter") -> Iterator[Callable[[Case], Volume]]:
    """A function that reads the scan of each of `cases` in turn, see `read_image`.

    A CPU that segments has no time to spare: there each is read when it is asked for.
    """
    if segmenter.device.type == "cpu" or len(cases) < 2:
        yield lambda case: read_image(case, len(segmenter.channels))
        return
    with TemporaryDirectory(prefix="dkuxnet-") as folder, ThreadPoolExecutor(1) as waiting:
        child = Child([READ])
        try:
            child.start()
            yield _Ahead(cases, segmenter, Path(folder), child, waiting)
        finally:
            child.end()  # whatever it reads
            waiting.shutdown()
            child.end()  # where a call had just begun


class _Ahead:
    def __init__(
        self,
        cases: Sequence[Case],
        segmenter: "Segmenter",
        folder: Path,
        child: Child,
        waiting: ThreadPoolExecutor,
    ):
        self._after = dict(zip([case.name for case in cases], cases[1:], strict=False))
        self._segmenter, self._folder = segmenter, folder
        self._child, self._waiting = child, waiting
        self._next: tuple[str, Future[Any]] | None = None

    def __call__(self, case: Case) -> Volume:
        """Raises UserError as `read_image` does."""
        channels = len(self._segmenter.channels)
        # what failed is read again here, so that its error and warnings are told in their turn
        scan = self._taken(case) or read_image(case, channels)
        after, free = self._after.get(case.name), free_bytes()
        # as if the next were like this one: what both need must be free
        if after and (free is None or 2 * self._segmenter.needed_bytes(scan) < free):
            order = [after.name, list(map(str, after.images)), after.series_uid, channels]
            voxels = str(self._folder / "voxels")
            self._next = (after.name, self._waiting.submit(self._child.call, READ, *order, voxels))
        return scan

    def _taken(self, case: Case) -> Volume | None:
        """The scan, where it was read ahead and nothing was wrong."""
        (name, future), self._next = self._next or ("", None), None
        if future is None or name != case.name:
            return None
        try:
            answer = future.result()
            voxels = np.fromfile(self._folder / "voxels", np.float32)
        except (UserError, Ended, Failed, OSError):
            return None
        for text in answer["told"]:
            warnings.warn(text, DataWarning, stacklevel=2)
        array = voxels.reshape(answer["shape"], order=answer["order"])
        nifti = bytes.fromhex(answer["nifti"])
        return Volume(array, np.array(answer["affine"]), answer["modality"], nifti)


def read_into(
    name: str, images: Sequence[str], series_uid: str | None, channels: int, voxels: str
) -> dict[str, Any]:
    """In the other process: read a scan, write its voxels to a file, and return the rest."""
    case = Case(name, tuple(map(Path, images)), series_uid=series_uid)
    with data_warnings() as told:
        volume = read_image(case, channels)
    array, order = volume.array, "F" if volume.array.flags.f_contiguous else "C"
    (array.T if order == "F" else array).tofile(voxels)
    return {
        "shape": list(array.shape),
        "order": order,
        "affine": volume.affine.tolist(),
        "modality": volume.modality,
        "nifti": volume.nifti.hex(),
        "told": told,
    }
