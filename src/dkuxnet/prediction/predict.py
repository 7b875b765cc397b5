"""Scans in, label maps out, each on its scan's own grid and in its scan's own format, or as DICOM
SEG.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.lookup import unknown
from dkuxnet.core.types import Case, Volume
from dkuxnet.data import formats
from dkuxnet.data.dicom.series import one_series
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.data.values import check_modality
from dkuxnet.machine.files import atomically
from dkuxnet.prediction.segment import Segmentation, Segmenter

FORMS = ("auto", "dicom-seg")
DESCRIPTION = "dataset.json"  # beside the label maps: what their values mean
Writer = Callable[[Volume, Path], None]
Progress = Callable[[str, int, int], None]  # a sentence, cases done, of how many


class ScansFailed(UserError):
    """Some scans could not be segmented, all others are. failed: name of a case -> one line;
    written: the label maps.
    """

    def __init__(self, failed: dict[str, str], written: list[Path]):
        super().__init__("; ".join(failed.values()))
        self.failed, self.written = failed, written


def predict_scans(
    run: Path,
    inputs: Sequence[Path],
    output: Path,
    save_probabilities: bool = False,
    save_uncertainty: bool = False,
    weights: str = "final",
    device: str = "auto",
    progress: Progress | None = None,
    *,
    localise: Path | None = None,
    margin_mm: float | None = None,
    series_uid: str | None = None,
    form: str = "auto",
    segmentation_type: str | None = None,
) -> list[Path]:
    """Segment scans with the model of `run`; returns the label maps written to `output`, one a
    case.

    inputs: scans, or folders in any layout that `prepare` reads; series_uid chooses from a DICOM
    input of several series. A label map has its scan's shape, affine and format (NIfTI for h5,
    which no viewer opens, and for DICOM), and the label values of the training data. Where asked
    for, output/probabilities holds (K, X, Y, Z) float32 and output/uncertainty (X, Y, Z) float32 in
    [0, 1]. localise, margin_mm: a coarse run that chooses where to look, see `Segmenter`. form
    "dicom-seg" writes all of these as DICOM SEG: see `export.dicom_seg`, also for
    segmentation_type.

    Raises ScansFailed, at the end, where a scan cannot be read or segmented: the others are done.
    Any other UserError, as of an output that does not take the maps, ends the work; maps that are
    done stay. Only label maps of an earlier prediction are ever replaced.
    """
    progress = progress or (lambda sentence, done, total: None)
    if form not in FORMS:
        raise unknown("format", form, FORMS)
    if segmentation_type is not None and form != "dicom-seg":
        raise UserError(
            "--segmentation-type is for DICOM SEG: add --format dicom-seg, or leave the type out"
        )
    segmentation_type = segmentation_type or "binary"
    cases = find_cases(inputs, series_uid)
    kinds = [
        kind
        for kind, wanted in (
            ("probabilities", save_probabilities),
            ("uncertainty", save_uncertainty),
        )
        if wanted
    ]
    targets = [
        Path(output) / f"{case.name}{'.dcm' if form == 'dicom-seg' else _ending(case)}"
        for case in cases
    ]
    _check_no_scan(targets, cases)
    if form == "dicom-seg":
        replaced = [
            target.parent / kind / target.name for target in targets for kind in ("", *kinds)
        ]
        _check_dicom(cases, replaced, segmentation_type)
    _check_output(Path(output), targets)
    segmenter = Segmenter(run, weights, device, localise, margin_mm)
    _check_description(Path(output), segmenter.labels)
    written: list[Path] = []
    failed: dict[str, str] = {}
    for done, (case, target) in enumerate(zip(cases, targets, strict=True)):
        try:
            writers = _writers(case, form, segmenter.labels, segmentation_type)
            result = _segmented(
                case,
                segmenter,
                kinds,
                lambda sentence, done=done: progress(sentence, done, len(cases)),
            )
        except UserError as error:
            failed[case.name] = str(error)
            continue
        if not written:  # nothing is made for scans that cannot be read
            _make_folder(Path(output), segmenter.labels, kinds)
        writers["label"](result.label, target)
        for kind in kinds:
            writers[kind](getattr(result, kind), target.parent / kind / target.name)
        written.append(target)
    progress("done", len(cases), len(cases))
    if failed:
        raise ScansFailed(failed, written)
    return written


def _segmented(
    case: Case, segmenter: Segmenter, kinds: Sequence[str], say: Callable[[str], None]
) -> Segmentation:
    """Raises UserError that names the case or its file."""
    scan = read_image(case, len(segmenter.channels))
    check_modality(f"case '{case.name}'", scan.modality, segmenter.channels)
    asked = {kind: kind in kinds for kind in ("probabilities", "uncertainty")}
    try:
        region = segmenter.region(scan, f"case '{case.name}'")
        needed = segmenter.needed_bytes(scan, **asked, region=region)
        part = "" if region.is_whole else f"{_voxels(region.shape)} of "
        say(
            f"{case.name}: {_voxels(scan.shape)} voxels, {part}{_voxels(region.grid)} for the "
            "network, "
            f"about {max(needed / 2**20, 1):.0f} MiB"
        )
        return segmenter(scan, **asked, region=region)
    except UserError as error:
        raise UserError(f"case '{case.name}': {error}") from error


def _ending(case: Case) -> str:
    """The format of the scan; for DICOM, and for h5, which no viewer opens, NIfTI."""
    if formats.is_dicom(case.images[0]):
        return ".nii.gz"
    ending = formats.suffix(case.images[0])
    return ".nii.gz" if ending == ".h5" else ending


def _check_no_scan(targets: Sequence[Path], cases: Sequence[Case]) -> None:
    scans = {image.resolve() for case in cases for image in case.images}
    for target in targets:
        if target.resolve() in scans:
            raise UserError(
                f"{target} is a scan, and its label map would replace it; choose another --output"
            )


def _check_output(output: Path, targets: Sequence[Path]) -> None:
    """Before the work: can a folder be there, and is what it holds already a prediction? Labels
    drawn by hand often have the names of their scans, and nobody draws them twice.
    """
    nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(
            f"{output}: cannot write there: {nearest} is a file; choose another --output"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{output}: cannot write there: no right to write in {nearest}; choose another --output"
        )
    there = [target for target in targets if target.exists()]
    if there and not (output / DESCRIPTION).exists():
        raise UserError(
            f"{there[0]} is there already and was not written by `dkuxnet predict`; choose another "
            "--output"
        )


def _check_description(output: Path, labels: dict[str, int]) -> None:
    described = output / DESCRIPTION
    try:
        foreign = described.exists() and described.read_bytes() != _description(labels).encode()
    except OSError as error:
        raise UserError(
            f"{described}: cannot be read: {error.strerror}; choose another --output"
        ) from error
    if foreign:
        raise UserError(
            f"{described} describes other data than these label maps would be; choose another "
            "--output"
        )


def _check_dicom(cases: Sequence[Case], targets: Sequence[Path], segmentation_type: str) -> None:
    from dkuxnet.data.dicom.segmentation import check_replaceable, check_type

    check_type(segmentation_type)
    for case in cases:
        if not formats.is_dicom(case.images[0]):
            raise UserError(
                "--format dicom-seg needs the DICOM series that it belongs to, but "
                f"{case.images[0]} is not DICOM; "
                "leave --format out"
            )
    for target in targets:
        check_replaceable(target)


def _writers(
    case: Case, form: str, labels: dict[str, int], segmentation_type: str
) -> dict[str, Writer]:
    """What writes a label map, probabilities and uncertainty of a case."""
    if form == "auto":
        return dict.fromkeys(("label", "probabilities", "uncertainty"), formats.write)
    from dkuxnet.data.dicom.segmentation import writers

    return writers(one_series(case.images[0], case.series_uid), labels, segmentation_type)


def _make_folder(output: Path, labels: dict[str, int], kinds: Sequence[str]) -> None:
    try:
        for folder in (output, *(output / kind for kind in kinds)):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot write there: {disk_reason(error)}") from error
    # `dkuxnet evaluate` reads from it what the values mean
    atomically(output / DESCRIPTION, lambda part: part.write_text(_description(labels), "utf-8"))


def _description(labels: dict[str, int]) -> str:
    return json.dumps({"labels": labels}, indent=1)


def _voxels(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
