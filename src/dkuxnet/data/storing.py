"""One case after another: checked, resampled, normalised and stored, in several processes."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import numpy as np

from dkuxnet.core.errors import DataWarning, Faults, UserError, data_warnings
from dkuxnet.core.schemas import Plan, PreparedCase, PreparedInfo
from dkuxnet.core.types import Case, CaseProgress, Source, Volume
from dkuxnet.data import formats
from dkuxnet.data.fingerprint import CaseFigures, check_case
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.data.images import read_image
from dkuxnet.data.labels import read_label
from dkuxnet.data.network_grid import to_network_grid
from dkuxnet.data.prepared_set import write_array, write_bytes

Result = TypeVar("Result")


def store_case(
    source: Source, labels: dict[str, int], plans: Mapping[Path, Plan], case: Case
) -> dict[Path, PreparedCase]:
    """Resample, normalise and write one case into each folder, as its plan says.

    Gives a DataWarning where a class of the label map is not there any more at a plan's spacing.
    """
    image, truth = read_image(case, len(source.channels)), None
    if case.label is not None:
        scan = f"the image {case.images[0].name}", image
        values = read_label(case.name, case.label, scan, source.labels).array
        truth = np.zeros(values.shape, np.uint8)
        for index, value in enumerate(labels.values()):
            truth[values == value] = index
    return {
        folder: _store_at(case, image, truth, list(labels), plan, folder / "cases")
        for folder, plan in plans.items()
    }


def _store_at(
    case: Case,
    image: Volume,
    truth: np.ndarray | None,
    classes: Sequence[str],
    plan: Plan,
    folder: Path,
) -> PreparedCase:
    """Store a case on the grid of one plan. truth: class indices (X, Y, Z) on the scan's grid."""
    grid = to_network_grid(image, plan)
    arrays = {"image": grid.array}
    if truth is not None:
        ras = to_ras(Volume(truth, image.affine))
        arrays["truth"] = truth
        arrays["label"] = resample_label(ras.array, grid.shape, len(classes))
        _warn_lost(case, truth, arrays["label"], classes, plan)
    info = PreparedInfo(
        name=case.name,
        images=[str(path.absolute()) for path in case.images],
        oriented=all(map(formats.has_geometry, case.images)),
        shape=image.shape,
        affine=image.affine.tolist(),
        spacing_mm=image.spacing_mm,
        prepared_affine=grid.affine.tolist(),
        nifti=image.nifti.hex(),
    )
    sha256 = {
        f"{kind}.b2nd": write_array(folder / f"{case.name}.{kind}.b2nd", array)
        for kind, array in arrays.items()
    }
    described = json.dumps(info.to_json(), indent=1).encode()
    sha256["json"] = write_bytes(folder / f"{case.name}.json", described)
    labelled = case.label is not None
    return PreparedCase(name=case.name, labelled=labelled, shape=grid.shape, sha256=sha256)


def _warn_lost(
    case: Case, truth: np.ndarray, label: np.ndarray, classes: Sequence[str], plan: Plan
) -> None:
    before, after = (np.bincount(part.ravel(), minlength=len(classes)) for part in (truth, label))
    edges = " x ".join(f"{edge:g}" for edge in plan.spacing_mm)
    for name, count, left in zip(classes, before, after, strict=True):
        if count and not left:
            warnings.warn(
                f"case '{case.name}': all {count} voxels of '{name}' are lost at {edges} mm: "
                "nothing can be learnt from them; choose a finer --spacing-mm",
                LostWarning,
                stacklevel=2,
            )


class LostWarning(DataWarning):
    """A class of a case is too small for the spacing."""


def check_noting(source: Source, case: Case) -> tuple[CaseFigures | None, list[str], str | None]:
    """`check_case`, its warnings and its fault: a process of its own has nobody to tell them to."""
    figures, fault = None, None
    with data_warnings() as notes:
        try:
            figures = check_case(source, case)
        except UserError as error:
            fault = str(error)
    return figures, notes, fault


def store_noting(
    source: Source, labels: dict[str, int], plans: Mapping[Path, Plan], case: Case
) -> tuple[dict[Path, PreparedCase], list[str]]:
    """`store_case`, and its warnings but for those that the check gave already."""
    with data_warnings(LostWarning) as notes:
        return store_case(source, labels, plans, case), notes


def told(
    done: Sequence[tuple[object, list[str], str | None]], more: Sequence[str] = ()
) -> list[str]:
    """Warn of all notes, which are returned. Raises UserError for all faults and for `more`."""
    notes, faults = [note for _, given, _ in done for note in given], Faults()
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=3)
    for fault in [*(fault for _, _, fault in done if fault is not None), *more]:
        faults.add(fault)
    faults.tell()
    return notes


def each_case(
    map_: Callable[..., Iterator[Result]],
    progress: CaseProgress,
    job: Callable[[Case], Result],
    cases: Sequence[Case],
    what: str,
) -> Iterator[Result]:
    done = 0
    try:
        for result in map_(job, cases):
            done += 1
            progress(what, done, len(cases))
            yield result
    except (BrokenProcessPool, MemoryError) as error:
        killed = "a process was killed, as happens where memory runs out"
        why = "too little memory" if isinstance(error, MemoryError) else killed
        name = cases[done].name
        raise UserError(
            f"case '{name}' or one after it: {why}; use --processes 1 or a coarser --spacing-mm"
        ) from error
