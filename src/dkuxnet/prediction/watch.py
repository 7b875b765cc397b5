"""Answers the new series of an archive: each gets its segmentation, once, whatever breaks off.

What was answered is in FOLDER/answered.json. A finished segmentation lies in FOLDER/unsent until
the archive has taken it: its name says which series it answers, so that the series counts as
answered from there on. Sending it twice does no harm, since its SOP instance UID stays.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from fnmatch import fnmatchcase
from pathlib import Path

from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import UserError, disk_reason, one_line
from dkuxnet.core.lookup import unknown
from dkuxnet.core.schemas import Answered, AnsweredSeries, read_document
from dkuxnet.core.types import Case
from dkuxnet.data.dicom.series import one_series
from dkuxnet.data.dicom.study import Origin
from dkuxnet.data.dicom.web import Archive, ArchiveError, ListedSeries, read_credentials
from dkuxnet.machine.files import inside, write_json
from dkuxnet.machine.lock import locked
from dkuxnet.machine.processes import stopping_on_sigterm
from dkuxnet.prediction.archive import looked_at, modalities_of
from dkuxnet.prediction.outputs import FORMS, dicom_writers
from dkuxnet.prediction.predict import is_of_disk, is_of_memory, segment_case
from dkuxnet.prediction.segment import Segmenter

STATE, UNSENT, WORK = "answered.json", "unsent", "work"
WAITING = re.compile(r"(?P<uid>[0-9.]+)_(?P<images>\d+)\.dcm", re.ASCII)  # in UNSENT
OTHER_STATE = "choose another --state"
NO_SCAN = "localizers, or images made of others"
FIRST_WAIT_S, LONGEST_WAIT_S = 15.0, 1800.0  # before something that failed is tried again
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """Which series are answered.

    days: of studies of the last so many days, today included; 0 for any. description: a pattern
    with * for anything, in any case.
    """

    modalities: frozenset[str]
    days: int = 2
    description: str = "*"

    @property
    def since(self) -> date | None:
        """The first day of the studies; None for any."""
        return date.today() - timedelta(self.days - 1) if self.days else None

    def __str__(self) -> str:
        described = "" if self.description == "*" else f" described {self.description}"
        dated = f", of studies since {self.since}" if self.since else ""
        return f"series of {', '.join(sorted(self.modalities))}{described}{dated}"

    def __contains__(self, series: ListedSeries) -> bool:
        described = fnmatchcase(series.description.lower(), self.description.lower())
        return series.modality in self.modalities and described


def watch_archive(
    run: StrPath,
    url: str,
    state: StrPath | None = None,
    credentials: Path | None = None,
    days: int = 2,
    description: str = "*",
    interval_s: float = 30.0,
    once: bool = False,
    weights: str | None = None,
    device: str = "auto",
    *,
    form: str = "dicom-seg",
    started: Tell = lambda line: None,
    tell: Tell = lambda line: None,
    tell_fault: Tell = lambda line: None,
) -> int:
    """Segment the new series of the archive at `url` with the model of `run`.

    Until a KeyboardInterrupt, which SIGTERM is too: what was begun is then begun again next time.

    state: folder of what was answered; RUN/watch without it. days, description: see `Wanted`. A
    series is answered when it has as many images as `interval_s` before, and anew when it has got
    more. once: end after two looks. form: "dicom-seg" or "rtstruct", what is stored. credentials:
    see `data.dicom.web.read_credentials`. started:
    called with what is looked for; tell, tell_fault: with a line for each series that was answered,
    and for each fault.

    Returns how many faults there were. Raises ArchiveError where the first look fails, UserError
    where the run takes scans of several channels, or another process watches with this state.
    """
    if form not in FORMS[1:]:
        raise unknown("format", form, FORMS[1:])
    archive = Archive(url, read_credentials(credentials))
    segmenter = Segmenter(Path(run), weights, device)
    if len(segmenter.channels) != 1:
        raise UserError(
            f"{run} takes scans of {len(segmenter.channels)} channels, and a series has one"
        )
    folder = Path(run) / "watch" if state is None else Path(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {disk_reason(error)}") from error
    with locked(folder, "watch"), stopping_on_sigterm():
        wanted = Wanted(frozenset(modalities_of(segmenter.channels)), days, description)
        watcher = Watcher(archive, segmenter, folder, wanted, tell, tell_fault, form)
        watcher.look()
        started(f"watching {archive.url} for {wanted}")
        while watcher.arriving or not once:
            time.sleep(interval_s)
            watcher.look_again()
            if once:
                break
        return watcher.faults


class Watcher:
    """Looks into the archive, and remembers in `folder` what it has answered.

    arriving: series that are new, and how many images they have. faults: how many were told.
    """

    def __init__(
        self,
        archive: Archive,
        segmenter: Segmenter,
        folder: Path,
        wanted: Wanted,
        tell: Tell,
        tell_fault: Tell,
        form: str = "dicom-seg",
    ):
        """Raises UserError where the folder is damaged, or of another archive."""
        self.archive, self.segmenter, self.wanted, self.form = archive, segmenter, wanted, form
        self.arriving: dict[str, int] = {}
        self.faults = 0
        self._tell, self._tell_fault = tell, tell_fault
        self._folder, self._state = folder, inside(folder, STATE)
        self._answered = Answered(archive=archive.url)
        if self._state.exists():
            self._answered = read_document(self._state, Answered, OTHER_STATE)
        if self._answered.archive != archive.url:
            raise UserError(f"{self._state} is of {self._answered.archive}; {OTHER_STATE}")
        self._failures: dict[str, int] = {}  # in a row: of a series, of a file, of looking ("")
        self._due: dict[str, float] = {}  # when what failed is tried again

    def look(self) -> None:
        """Answer the new series that are complete. Raises ArchiveError where nothing is reached."""
        self._send()
        new = list(self._new())
        complete = [each for each in new if self.arriving.get(each.uid) == each.images]
        self.arriving = {each.uid: each.images for each in new}
        for series in complete:
            self._answer(series)
            self._send()

    def look_again(self) -> None:
        """As `look`, but where nothing is reached that is told, and the next look comes later."""
        if not self._is_due(""):
            return
        try:
            self.look()
        except ArchiveError as error:
            self._put_off("", str(error))
        else:
            if self._failures.pop("", 0):
                self._tell(f"{self.archive.url} answers again")

    def _new(self) -> Iterator[ListedSeries]:
        for series in self.archive.series(since=self.wanted.since):
            before = self._answered.series.get(series.uid)
            grown = before is None or series.images not in (0, before.images)
            if grown and series in self.wanted:
                yield series if series.images else looked_at(self.archive, series)[0]

    def _answer(self, series: ListedSeries) -> None:
        """A fault of the series is told and remembered; after any other it is tried again."""
        if not self._is_due(series.uid):
            return
        name = f"series {series.uid} of study {series.study_uid}"
        try:
            series, is_scan = looked_at(self.archive, series)
            if is_scan:
                self._segment(series)
            else:
                self._remember(series.uid, series.images, NO_SCAN)
                self._tell(f"{name}: left alone: {NO_SCAN}")
        except ArchiveError as error:
            if error.everywhere:
                raise
            self._put_off(series.uid, str(error))
        except OSError as error:
            self._put_off(series.uid, f"{name}: {disk_reason(error)}")
        except Exception as error:  # the next series may be well
            line = str(error) if isinstance(error, UserError) else repr(error)
            line = line.replace(f"{self._folder / WORK / series.uid}: ", "")
            if is_of_disk(error) or is_of_memory(error):
                self._put_off(series.uid, f"{name}: {line}")
            else:
                self._remember(series.uid, series.images, line)
                self._fault(f"{name}: {line}")

    def _segment(self, series: ListedSeries) -> None:
        """Fetch and segment a series. The segmentation then waits to be sent."""
        work, unsent = inside(self._folder, WORK), inside(self._folder, UNSENT)
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir(mode=0o700)
        unsent.mkdir(mode=0o700, exist_ok=True)
        try:
            scan, made = work / series.uid, work / "made.dcm"
            self.archive.fetch(series, scan)
            model = self.segmenter
            origin = Origin(model.name, model.version)
            listed = one_series(scan, series.uid)
            writer = dicom_writers(listed, model.labels, self.form, "binary", origin)["label"]
            case = Case(series.uid, (scan,), series_uid=series.uid)
            result = segment_case(case, model, (), lambda sentence: None)
            writer(result.label, made, result.notes)
            for older in unsent.glob(f"{series.uid}_*.dcm"):  # of fewer images
                older.unlink()
            os.replace(made, unsent / f"{series.uid}_{series.images}.dcm")
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _send(self) -> None:
        """Store what waits. What the archive does not take goes on waiting."""
        for path in sorted(inside(self._folder, UNSENT).glob("*.dcm")):
            found = WAITING.fullmatch(path.name)
            if not found:
                continue
            self._remember(found["uid"], int(found["images"]))
            if self._is_due(path.name):
                try:
                    self.archive.store(path)
                except ArchiveError as error:
                    if error.everywhere:
                        raise
                    self._put_off(path.name, f"{error}; it waits in {path}")
                else:
                    path.unlink()
                    self._tell(f"series {found['uid']}: {found['images']} images, answered")

    def _remember(self, uid: str, images: int, why_not: str = "") -> None:
        done = AnsweredSeries(images=images, why_not=one_line(why_not))
        if self._answered.series.get(uid) != done:
            self._answered.series[uid] = done
            write_json(self._state, self._answered.model_dump(mode="json"))

    def _fault(self, line: str) -> None:
        self.faults += 1
        self._tell_fault(line)

    def _put_off(self, what: str, line: str) -> None:
        """Tell a fault that may pass, and wait longer each time that it did not."""
        failures = self._failures[what] = self._failures.get(what, 0) + 1
        self._due[what] = time.monotonic() + min(FIRST_WAIT_S * 2**failures, LONGEST_WAIT_S)
        self._fault(line)

    def _is_due(self, what: str) -> bool:
        return time.monotonic() >= self._due.get(what, 0)
