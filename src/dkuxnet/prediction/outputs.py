"""The output files of a prediction: checked before the work, then written."""

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dkuxnet.core.classes_table import CLASSES, COLUMNS, lines, read_rows
from dkuxnet.core.confidence import UNSURE_BELOW
from dkuxnet.core.documents import MAX_BYTES, read_text
from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.lookup import unknown
from dkuxnet.core.types import Case, Volume
from dkuxnet.data import formats
from dkuxnet.data.dicom.series import Series, one_series
from dkuxnet.data.dicom.structures import RT_STRUCTURE_SET
from dkuxnet.data.dicom.study import Origin, check_replaceable
from dkuxnet.machine.files import append, inside, write_text
from dkuxnet.machine.lock import waited_for
from dkuxnet.prediction.segment import Segmentation

FORMS = ("auto", "dicom-seg", "rtstruct")
DESCRIPTION = "dataset.json"  # beside the label maps: what their values mean
Writer = Callable[[Volume, Path, Sequence[str]], None]  # the last: see `Segmentation.notes`


@dataclass(frozen=True)
class Outputs:
    """Label maps in `folder`, and in folders below it the other kinds of maps that were asked for.

    CLASSES has a row for each case and class: volume, confidence (`core.confidence`), the Dice to
    expect and how unlike the training scans the case is (`prediction.trust`). Rows of an earlier
    prediction of other cases stay.

    kinds: of "probabilities" and "uncertainty". form: "auto" (the scan's own format), "dicom-seg",
    then of the segmentation_type "binary" or "labelmap", or "rtstruct", which has no other kinds.
    model, version: what DICOM says of the model. shared: other processes write there too.
    """

    folder: Path
    cases: Sequence[Case]
    kinds: tuple[str, ...] = ()
    form: str = "auto"
    segmentation_type: str = "binary"
    model: str = ""
    version: str = ""
    shared: bool = False

    def _alone(self) -> AbstractContextManager[None]:
        """For as long as CLASSES is changed."""
        return waited_for(self.folder) if self.shared else nullcontext()

    def target(self, case: Case) -> Path:
        """The case's label map; its other maps have the same name in folders of their kinds."""
        ending = _ending(case) if self.form == "auto" else ".dcm"
        return self.folder / f"{case.name}{ending}"

    def check(self) -> None:
        """Before the work: raises UserError where it could not be written, or would do harm."""
        if self.form not in FORMS:
            raise unknown("format", self.form, FORMS)
        targets = [self.target(case) for case in self.cases]
        _check_no_scan(targets, self.cases)
        if self.form != "auto":
            kinds = ("", *self.kinds)
            self._check_dicom([t.parent / kind / t.name for t in targets for kind in kinds])
        _check_folder(self.folder, targets)
        read_rows(self.folder)
        for kind in self.kinds:
            inside(self.folder, kind)

    def missing(self) -> list[Case]:
        """The cases of which a map is not there, or no row of CLASSES."""
        known = {row[0] for row in read_rows(self.folder)}
        kinds = ("", *self.kinds)

        def is_there(case: Case) -> bool:
            target = self.target(case)
            maps = (target.parent / kind / target.name for kind in kinds)
            return case.name in known and all(map(Path.exists, maps))

        return [case for case in self.cases if not is_there(case)]

    def check_description(self, labels: dict[str, int]) -> None:
        """Raises UserError where the folder describes label maps of other classes."""
        described = self.folder / DESCRIPTION
        try:
            foreign = described.exists() and read_text(described, MAX_BYTES) != _description(labels)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{described}: cannot be read: {disk_reason(error)}; choose another --output"
            ) from error
        if foreign:
            raise UserError(
                f"{described} describes other data than these label maps would be; choose another "
                "--output"
            )

    def writers(self, case: Case, labels: dict[str, int]) -> dict[str, Writer]:
        """What writes the "label" of a case, its probabilities and its uncertainty."""
        if self.form == "auto":
            return dict.fromkeys(
                ("label", "probabilities", "uncertainty"),
                lambda volume, path, _: formats.write(volume, path),
            )
        series = one_series(case.images[0], case.series_uid)
        return dicom_writers(
            series, labels, self.form, self.segmentation_type, Origin(self.model, self.version)
        )

    def _check_dicom(self, targets: Sequence[Path]) -> None:
        for case in self.cases:
            if not formats.is_dicom(case.images[0]):
                raise UserError(
                    f"--format {self.form} needs the DICOM series that it belongs to, but "
                    f"{case.images[0]} is not DICOM; leave --format out"
                )
        if self.form == "rtstruct":
            if self.kinds:
                raise UserError(
                    f"--format rtstruct has outlines alone, no {self.kinds[0]}; leave out "
                    f"--save-{self.kinds[0]}, or take --format dicom-seg"
                )
            what_for, classes = "RT Structure Set", [RT_STRUCTURE_SET]
        else:
            from dkuxnet.data.dicom.segmentation import SEG_CLASSES, check_type

            check_type(self.segmentation_type)
            what_for, classes = "DICOM SEG", [*SEG_CLASSES]
        for target in targets:
            check_replaceable(target, classes, what_for)

    def make_folder(self, labels: dict[str, int]) -> None:
        """The folders, and the description, from which `dkuxnet evaluate` reads the labels.

        In CLASSES the rows of other cases stay.
        """
        try:
            for folder in (self.folder, *(self.folder / kind for kind in self.kinds)):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write there: {disk_reason(error)}") from error
        write_text(self.folder / DESCRIPTION, _description(labels))
        predicted = {case.name for case in self.cases}
        with self._alone():
            if rows := read_rows(self.folder):
                kept = [row for row in rows if row[0] not in predicted]
                write_text(self.folder / CLASSES, lines([COLUMNS, *kept]))

    def write(
        self, case: Case, result: Segmentation, writers: dict[str, Writer], labels: dict[str, int]
    ) -> Path:
        """Write the maps of a case and its rows of CLASSES; returns the label map's path."""
        target = self.target(case)
        writers["label"](result.label, target, result.notes)
        for kind in self.kinds:
            path = target.parent / kind / target.name
            writers[kind](getattr(result, kind), path, result.notes)
        table, rows = self.folder / CLASSES, _rows(case.name, result, labels)
        with self._alone():
            append(table, lines(rows if table.exists() else [COLUMNS, *rows]).encode())
        return target


def dicom_writers(
    series: Series, labels: dict[str, int], form: str, segmentation_type: str, origin: Origin
) -> dict[str, Writer]:
    """What writes the maps of a series as DICOM of a form, see `Outputs`.

    Raises UserError where the series cannot have such objects.
    """
    if form == "rtstruct":
        from dkuxnet.data.dicom.contours import check_series, write_contours

        check_series(series)
        return {
            "label": lambda volume, path, notes: write_contours(
                volume, labels, series, path, replace(origin, notes=tuple(notes))
            )
        }
    from dkuxnet.data.dicom.segmentation import writers

    return writers(series, labels, segmentation_type, origin)


def _rows(name: str, result: Segmentation, labels: dict[str, int]) -> list[list[str]]:
    """Those of a case in CLASSES; what is not known is empty."""
    rows, voxel_ml = [], math.prod(result.label.spacing_mm) / 1000
    unlike = "" if (far := result.trust.unlike) is None else f"{far:.2f}"
    for each, value in result.confidence.items():
        voxels = int(np.count_nonzero(result.label.array == labels[each]))
        known = not math.isnan(value)
        sure = [str(value), "yes" if value < UNSURE_BELOW else "no"] if known else ["", ""]
        found = [str(labels[each]), str(voxels), f"{voxels * voxel_ml:.3f}"]
        dice = result.trust.dice.get(each)
        hoped = [f"{v:.3f}" for v in (dice.dice, dice.low, dice.high)] if dice else ["", "", ""]
        rows.append([name, each, *found, *sure, *hoped, unlike, "; ".join(result.trust.flags)])
    return rows


def _ending(case: Case) -> str:
    """The format of the scan, in one file; NIfTI where it is not written or no viewer opens it."""
    if formats.is_dicom(case.images[0]):
        return ".nii.gz"
    ending = formats.suffix(case.images[0])
    ending = {".h5": ".nii.gz", ".mhd": ".mha"}.get(ending, ending)
    return ".nii.gz" if ending in formats.READ_ONLY else ending


def _description(labels: dict[str, int]) -> str:
    return json.dumps({"labels": labels}, indent=1)


def _check_no_scan(targets: Sequence[Path], cases: Sequence[Case]) -> None:
    scans = {image.resolve() for case in cases for image in case.images}
    for target in targets:
        if target.resolve() in scans:
            raise UserError(
                f"{target} is a scan, and its label map would replace it; choose another --output"
            )


def _check_folder(output: Path, targets: Sequence[Path]) -> None:
    """Can the folder be there, and is what it holds already a prediction?

    Labels drawn by hand often have the names of their scans, and nobody draws them twice.
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
