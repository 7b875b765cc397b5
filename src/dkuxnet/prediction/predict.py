"""Scans in, label maps out, each on its scan's own grid and in its format, or as DICOM SEG."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dkuxnet.core.confidence import unsure
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import NO_RIGHT, NO_ROOM, DataWarning, UserError, UserErrors, data_warnings
from dkuxnet.core.types import Case, CaseProgress, Volume
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import check_inputs, find_cases
from dkuxnet.data.values import check_modality
from dkuxnet.machine.devices import is_out_of_memory
from dkuxnet.prediction.ahead import reading
from dkuxnet.prediction.outputs import Outputs
from dkuxnet.prediction.segment import Segmentation, Segmenter
from dkuxnet.prediction.volumes import volumes_written


class ScansFailed(UserErrors):
    """Some scans could not be segmented, all others are.

    failed: name of a case -> one line. written: the label maps.
    """

    def __init__(self, failed: dict[str, str], written: list[Path]):
        super().__init__(list(failed.values()))
        self.failed, self.written = failed, written


def predict_scans(
    run: StrPath,
    inputs: Sequence[StrPath],
    output: StrPath,
    save_probabilities: bool = False,
    save_uncertainty: bool = False,
    weights: str | None = None,
    device: str = "auto",
    progress: CaseProgress | None = None,
    *,
    localise: StrPath | None = None,
    margin_mm: float | None = None,
    others: Sequence[StrPath] = (),
    series_uid: str | None = None,
    form: str = "auto",
    segmentation_type: str | None = None,
    cases: StrPath | None = None,
    infer: Mapping[str, Any] | None = None,
    volumes: StrPath | None = None,
    shard: tuple[int, int] | None = None,
    skip_existing: bool = False,
) -> list[Path]:
    """Segment scans with the model of `run`; returns the label maps written, one a case.

    inputs: scans, or folders in any layout that `prepare` reads; series_uid chooses from a DICOM
    input of several series. A label map has its scan's shape, affine and format (NIfTI for h5,
    which no viewer opens, and for DICOM), and the label values of the training data. classes.csv
    has volume, confidence (`core.confidence`) and estimated Dice (`prediction.trust`) of each
    class; what makes a label map doubtful is a DataWarning. Where asked for, output/probabilities
    holds (K, X, Y, Z) float32 and output/uncertainty (X, Y, Z) float32 in [0, 1]. localise,
    margin_mm, others: a coarse run that chooses where to look, runs that segment together with this
    one, see `Segmenter`, also for infer. form "dicom-seg" writes all of these as DICOM SEG: see
    `data.dicom.segmentation`, also for segmentation_type; "rtstruct" writes label maps as RT
    Structure Sets, see `data.dicom.contours`. cases: a file that names the cases to take, see
    `find_cases`. shard: (2, 8) takes the second eighth of them; the label maps of all shards may go
    into one folder. skip_existing: leave out cases whose maps are there. volumes: a CSV
    file that gets a row a case, with the ml of each class; not of a shard.

    Raises ScansFailed, at the end, where a scan cannot be read or segmented, or its maps cannot be
    written: the others are done. A disk that takes no maps ends the work at once; those that are
    done stay. Only label maps of an earlier prediction are ever replaced.
    """
    progress = progress or (lambda sentence, done, total: None)
    if segmentation_type is not None and form != "dicom-seg":
        raise UserError(
            "--segmentation-type is for DICOM SEG: add --format dicom-seg, or leave the type out"
        )
    wanted = {"probabilities": save_probabilities, "uncertainty": save_uncertainty}
    kinds = tuple(kind for kind, asked in wanted.items() if asked)
    listed, paths = None if cases is None else Path(cases), [Path(each) for each in inputs]
    check_inputs(paths)  # a slip of the pen needs no model to be told
    localiser = None if localise is None else Path(localise)
    together = [Path(each) for each in others]
    segmenter = Segmenter(Path(run), weights, device, localiser, margin_mm, together, infer)
    found = find_cases(paths, series_uid, len(segmenter.channels), listed)
    if shard is not None:
        found = found[shard[0] - 1 :: shard[1]]
    model = segmenter.name, segmenter.version
    type_, shared = segmentation_type or "binary", shard is not None
    outputs = Outputs(Path(output), found, kinds, form, type_, *model, shared)
    outputs.check()
    outputs.check_description(segmenter.description)
    structures, names = list(segmenter.structures), [case.name for case in found]
    with volumes_written(volumes, outputs.folder, names, structures, shared):
        todo = outputs.missing() if skip_existing else found
        return _segment_all(todo, segmenter, replace(outputs, cases=todo), progress)


def _segment_all(
    cases: Sequence[Case], segmenter: Segmenter, outputs: Outputs, progress: CaseProgress
) -> list[Path]:
    """The label maps written. Raises ScansFailed."""
    written: list[Path] = []
    failed: dict[str, str] = {}
    with reading(cases, segmenter) as read:
        for done, case in enumerate(cases):
            say = _saying(progress, done, len(cases))
            try:
                writers = outputs.writers(case, segmenter.labels)
                result = segment_case(case, segmenter, outputs.kinds, say, read)
            except UserError as error:
                failed[case.name] = str(error)
                continue
            try:
                if not written:  # nothing is made for scans that cannot be read
                    outputs.make_folder(segmenter.description)
                written.append(outputs.write(case, result, writers, segmenter.scored))
            except UserError as error:
                failed[case.name] = str(error)
                if is_of_disk(error):
                    break
        else:
            progress("done", len(cases), len(cases))
    if failed:
        raise ScansFailed(failed, written)
    return written


def is_of_disk(error: BaseException) -> bool:
    """Whether the next file would not be written either."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (*NO_ROOM, *NO_RIGHT)


def is_of_memory(error: BaseException | None) -> bool:
    """Whether there was too little memory at the time."""
    while error is not None and not is_out_of_memory(error):
        error = error.__cause__
    return error is not None


def _saying(progress: CaseProgress, done: int, total: int) -> Callable[[str], None]:
    return lambda sentence: progress(sentence, done, total)


def segment_case(
    case: Case,
    segmenter: Segmenter,
    kinds: Sequence[str],
    say: Callable[[str], None],
    read: Callable[[Case], Volume] | None = None,
) -> Segmentation:
    """Read and segment a scan; what is warned of becomes its notes too.

    say: told what is being done. read: see `prediction.ahead`. Raises UserError that names the
    case or its file.
    """
    try:
        with data_warnings() as told:
            scan = read(case) if read else read_image(case, len(segmenter.channels))
            result = _segmented(case, scan, segmenter, kinds, say)
    finally:
        for text in told:
            warnings.warn(text, DataWarning, stacklevel=2)
    return replace(result, notes=tuple(_note(text, case) for text in told))


def _note(text: str, case: Case) -> str:
    """A warning without the name of the case and the place of its files."""
    for path in case.images:
        text = text.replace(str(path), case.name)
    return text.removeprefix(f"case '{case.name}': ").removeprefix(f"{case.name}: ")


def _segmented(
    case: Case, scan: Volume, segmenter: Segmenter, kinds: Sequence[str], say: Callable[[str], None]
) -> Segmentation:
    check_modality(f"case '{case.name}': {case.images[0]}", scan.modality, segmenter.channels)
    probabilities, uncertainty = "probabilities" in kinds, "uncertainty" in kinds
    try:
        region = segmenter.region(scan, f"case '{case.name}'")
        needed = segmenter.needed_bytes(scan, probabilities, uncertainty, region)
        part = "" if region.is_whole else f"{_voxels(region.shape)} of "
        say(
            f"{case.name}: {_voxels(scan.shape)} voxels, {part}{_voxels(region.grid)} for the "
            f"network, about {max(needed / 2**20, 1):.0f} MiB"
        )
        result = segmenter(scan, probabilities, uncertainty, region)
    except UserError as error:
        raise UserError(f"case '{case.name}': {error}") from error
    doubts = [doubt] if (doubt := unsure(result.confidence)) else []
    for said in (*doubts, *result.trust.flags):
        warnings.warn(f"case '{case.name}': {said}", DataWarning, stacklevel=2)
    return result


def _voxels(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
