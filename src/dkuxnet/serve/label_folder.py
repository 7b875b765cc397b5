"""The folder of `--label-folder`: its scans in the order to label them, and the labels saved there.

It has the plain layout that `dkuxnet prepare` reads. Beside labels/NAME.nii.gz stands
labels-made/NAME.json, which says who drew the label, when, and on what.
"""

import functools
import hashlib
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dkuxnet.core.errors import UserError, data_warnings
from dkuxnet.core.schemas import LabelMade, read_document
from dkuxnet.core.types import Case, Source, Volume
from dkuxnet.data import formats
from dkuxnet.data.layouts import detect, find_source
from dkuxnet.machine.files import checksum, inside, write_json
from dkuxnet.runs.suggestions import read_suggestions
from dkuxnet.serve.limits import Refused
from dkuxnet.serve.model import Model
from dkuxnet.serve.names import without_folders
from dkuxnet.serve.reading import Reader
from dkuxnet.serve.tasks import Task

MADE = "labels-made"  # a folder in which `prepare` finds no label
HEADERS = (".mhd", ".hdr")  # whose voxels stand in a file of the same name


class Question(Refused):
    """A label would be replaced: its version is what `replace` must be to do so."""

    def __init__(self, fact: str, version: str):
        super().__init__(409, f"{fact} Replace it by this drawing?")
        self.fact, self.version = fact, version


@dataclass(frozen=True)
class Drawing:
    """A label to save.

    file: label map. values: label value of the training data for each value in it, from 0 on; None
    where they are those already. loaded: checksum of the scan on which it was drawn, or how that
    begins. replace: version of the label that it may replace. sitting: it may replace what was
    saved in the same one. start: "model", "label" or "empty".
    """

    file: Path
    values: list[int] | None
    loaded: str
    replace: str = ""
    sitting: str = ""
    who: str = ""
    start: Literal["model", "label", "empty"] = "model"
    program: str = "page"


class LabelFolder:
    """The scans of a folder, and their labels.

    reader: for this folder alone. private: for files on their way.
    """

    def __init__(self, folder: Path, run: Path, model: Model, reader: Reader, private: Path):
        self.folder, self.run, self.model = folder, run, model
        self.reader, self.private = reader, private
        self._one_at_a_time = threading.Lock()

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> value in the label maps, background first."""
        return self.model.segmenter.labels

    def check(self) -> None:
        """Raise UserError where labels for this model cannot be saved in the folder."""
        where, labels = f"--label-folder {self.folder}", self.labels
        if not self.folder.is_dir():
            raise UserError(f"{where}: expected a folder of scans, but there is none")
        if (layout := detect(self.folder)) != "folder":
            raise UserError(
                f"{where}: expected scans in the folder itself or in its folder 'images', but this "
                f"is the layout {layout}; copy or link the scans to label into a folder"
            )
        source, channels = self.source(), self.model.segmenter.channels
        if source.labels not in (None, labels):
            raise UserError(
                f"{where}: its dataset.json has the labels {source.labels}, the model {labels}; "
                "they must agree"
            )
        if len(source.channels) != len(channels):
            raise UserError(
                f"{where}: its scans have {len(source.channels)} channel(s), the model takes "
                f"{len(channels)} ({', '.join(channels)}); name them in dataset.json "
                '("channel_names")'
            )
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise UserError(f"{where}: cannot write there; choose a folder that can be written to")

    def source(self) -> Source:
        """What is in the folder now. Raises UserError where `prepare` would refuse it."""
        with data_warnings():  # `prepare` tells them
            return find_source(self.folder, "folder")

    def listed(self) -> list[dict[str, Any]]:
        """Every scan with the state of its label; those to label next come first, in order."""
        cases = self.source().cases
        reasons = {each.name: each.reason for each in read_suggestions(self.run).scans}
        order = {name: place for place, name in enumerate(reasons)}
        states = [
            {"name": case.name, "reason": reasons.get(case.name, ""), **self.state(case)}
            for case in cases
        ]
        return sorted(
            states,
            key=lambda each: (each["labelled"], order.get(each["name"], len(order)), each["name"]),
        )

    def state(self, case: Case) -> dict[str, Any]:
        """What is known of the label of a scan."""
        version = self.version(case)
        made = self._made(case.name, version) if version else None
        return {
            "labelled": bool(version),
            "version": version,
            "who": made.who if made else "",
            "when": made.when if made else "",
            "start": made.start if made else "",
            "program": made.program if made else "",
        }

    def next(self) -> Case | None:
        """The scan without a label that comes first."""
        waiting = (each["name"] for each in self.listed() if not each["labelled"])
        return self.case(name) if (name := next(waiting, "")) else None

    def case(self, name: str) -> Case:
        """The scan of this name. Raises Refused where there is none."""
        for case in self.source().cases:
            if case.name == name:
                return case
        raise Refused(
            404,
            "There is no such scan in the label folder (any more), and this server keeps no images "
            "besides.",
        )

    def version(self, case: Case) -> str:
        """The checksum of the label of a scan, empty where it has none."""
        return "" if case.label is None else _checksum(case.label)

    def scan(self, case: Case, into: Path) -> Volume:
        """The first channel (X, Y, Z) of a scan. into: private, for what is read."""
        task = Task(case.name, case.name, ".nii.gz", ".nii.gz", False, into, case)
        with self._one_at_a_time:
            read = self.reader(task).volume
        return Volume(read.array[0], read.affine, nifti=read.nifti)

    def save(self, name: str, drawing: Drawing) -> dict[str, Any]:
        """Write the label of a scan and who made it; returns its new state.

        Raises Refused where the scan has changed since it was loaded, where the drawing does not
        fit, and, as a Question, where there is a label that the drawing may not replace. Raises
        UserError where a file cannot be read or written. What was there before then stays.
        """
        with self._one_at_a_time:
            case = self.case(name)
            target = self._target(case)
            check_loaded(case, drawing.loaded)
            self._check_replaced(case, drawing)
            label = self._read(case, drawing)
            check_loaded(case, drawing.loaded)  # reading took a while
            self._check_replaced(self.case(name), drawing)
            for folder in (target.parent, inside(self.folder, MADE)):
                folder.mkdir(exist_ok=True)
            self._describe()
            formats.write(label, target)
            made = LabelMade(
                scan_sha256=scan_checksum(case),
                label_sha256=_checksum(target),
                who=drawing.who,
                when=datetime.now(UTC).isoformat(timespec="seconds"),
                run=self.model.name,
                start=drawing.start,
                program=drawing.program,
                sitting=drawing.sitting,
            )
            write_json(self._made_path(name), made.to_json())
            return self.state(self.case(name))

    def _target(self, case: Case) -> Path:
        """The file of the label to write. Raises Refused where another file would stand beside."""
        labels = inside(self.folder, "labels")
        if case.label is None or case.label in case.images:  # an h5 that holds its label
            return labels / f"{case.name}.nii.gz"
        replaced = formats.longest_suffix(case.label.name, formats.READABLE) in formats.FORMATS
        if case.label.parent == labels and replaced:
            return case.label
        raise Refused(
            409,
            f"The label of {case.name} is {case.label.name}, a kind of file that is not replaced "
            "here. Take it out of the folder first.",
        )

    def _read(self, case: Case, drawing: Drawing) -> Volume:
        """The label map on the scan's grid. Raises Refused where it does not fit."""
        try:
            read = self.reader.label(
                case, drawing.file, self.labels, drawing.values, drawing.file.parent
            ).volume
        except UserError as error:
            said = without_folders(str(error))
            raise Refused(400, f"{said}. Nothing was saved.") from error
        small = np.min_scalar_type(max(self.labels.values()))
        return Volume(read.array[0].astype(small), read.affine, nifti=read.nifti)

    def _check_replaced(self, case: Case, drawing: Drawing) -> None:
        """Raise Question where there is a label other than that which may be replaced."""
        version = self.version(case)
        if not version or version == drawing.replace:
            return
        made = self._made(case.name, version)
        if made and made.sitting and made.sitting == drawing.sitting:
            return
        by = "that was not drawn here"
        if made:
            when = made.when[:16].replace("T", " ")
            by = f"that {made.who or 'somebody'} saved on {when} UTC"
        raise Question(f"{case.name} has a label {by}.", version)

    def _describe(self) -> None:
        """Name the classes for `prepare`, where no dataset.json does."""
        path = inside(self.folder, "dataset.json")
        if not path.exists():
            channels = {str(i): name for i, name in enumerate(self.model.segmenter.channels)}
            write_json(path, {"channel_names": channels, "labels": self.labels})

    def _made_path(self, name: str) -> Path:
        return inside(self.folder, MADE, f"{name}.json")

    def _made(self, name: str, version: str) -> LabelMade | None:
        """Who made this version of a label; None where that is not known."""
        try:
            made = read_document(self._made_path(name), LabelMade, "delete it")
        except UserError:
            return None
        return made if made.label_sha256 == version else None


def check_loaded(case: Case, loaded: str) -> None:
    """Raise Refused where the scan is not the one whose checksum begins with `loaded`."""
    if not scan_checksum(case).startswith(loaded):
        raise Refused(
            409,
            f"The scan {case.name} has changed since it was loaded, so that this drawing may not "
            "fit it. Nothing was saved; load the scan again.",
        )


def scan_checksum(case: Case) -> str:
    """One SHA-256 over all files of a scan, in hexadecimal digits; that of the file of one."""
    files = [file for image in case.images for file in _files_of(image)]
    if len(files) == 1:
        return checksum(files[0])
    told = "\n".join(f"{file.name} {checksum(file)}" for file in files)
    return hashlib.sha256(told.encode()).hexdigest()


def _files_of(image: Path) -> list[Path]:
    if image.is_dir():
        return sorted(path for path in image.rglob("*") if path.is_file())
    if image.suffix.lower() in HEADERS:
        return sorted(path for path in image.parent.iterdir() if path.stem == image.stem)
    return [image]


def _checksum(path: Path) -> str:
    if path.is_dir():
        return scan_checksum(Case("", (path,)))
    about = path.stat()
    return _checksum_of(path, about.st_mtime_ns, about.st_size, about.st_ino)


@functools.lru_cache(maxsize=10_000)
def _checksum_of(path: Path, *about: int) -> str:
    """Once for all versions of a file that its folder can tell apart: lists are asked for often."""
    return checksum(path)
