"""Scans waiting for the model: one is worked on at a time, in the order of arrival, by one thread."""

import logging
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import UserError
from dkuxnet.serve.limits import Limits
from dkuxnet.serve.names import FILE, without_paths

log = logging.getLogger("dkuxnet.serve")
UNFINISHED = ("receiving", "waiting", "working")


class Cancelled(Exception):
    """Nobody wants the job any more."""


@dataclass
class Job:
    """One scan. name: as its sender calls it. folder: its own; `scan` is the file in it.

    state: receiving -> waiting -> working -> done or failed. stage: what is being done to it now,
    with windows `done` of `total` where the network works. ending: the label map's format.
    as_indices: its values are 1, 2, ... in the order of the classes instead of the training data's.
    """

    id: str
    name: str
    suffix: str
    ending: str
    as_indices: bool
    folder: Path
    state: str = "receiving"
    stage: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    finished: threading.Event = field(default_factory=threading.Event)
    unwanted: threading.Event = field(default_factory=threading.Event)

    @property
    def scan(self) -> Path:
        return self.folder / f"{FILE}{self.suffix}"

    @property
    def label(self) -> Path:
        return self.folder / f"label{self.ending}"

    def report(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Called as the work goes on. Raises Cancelled where it should not."""
        if self.unwanted.is_set():
            raise Cancelled
        self.stage, self.done, self.total = stage, done, total


class Jobs:
    """work: what is done with a scan; it returns the result or raises UserError or Cancelled."""

    def __init__(self, folder: Path, limits: Limits, work: Callable[[Job], dict[str, Any]]):
        self.folder, self.limits, self.work = folder, limits, work
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # by id, in the order of arrival
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="segment", daemon=True)
        self._thread.start()

    @contextmanager
    def receiving(
        self, name: str, suffix: str, ending: str, as_indices: bool = False
    ) -> Iterator[Job]:
        """A job whose scan is received in the block.

        It goes to the end of the queue where that succeeds, and leaves nothing where it does not.
        Raises Refused where there is no place.
        """
        job = self.open(name, suffix, ending, as_indices)
        try:
            yield job
        except BaseException:  # a sender who is gone raises what is no Exception
            self.remove(job)
            raise
        self.submit(job)

    def open(self, name: str, suffix: str, ending: str, as_indices: bool = False) -> Job:
        """A place for a scan that is about to be received. Raises Refused where there is none."""
        with self._changed:
            if sum(job.state in UNFINISHED for job in self._jobs.values()) >= self.limits.waiting:
                raise self.limits.full()
            token = secrets.token_urlsafe(16)
            job = self._jobs[token] = Job(
                token, name, suffix, ending, as_indices, self.folder / token
            )
            job.folder.mkdir(mode=0o700)
            return job

    def submit(self, job: Job) -> None:
        """The scan is there: it goes to the end of the queue."""
        with self._changed:
            job.state = "waiting"
            self._jobs.move_to_end(job.id)
            self._changed.notify_all()

    def get(self, token: str) -> Job | None:
        with self._changed:
            return self._jobs.get(token)

    def ahead(self, job: Job) -> int:
        """How many scans come before this one."""
        with self._changed:
            before = 0
            for other in self._jobs.values():
                if other is job:
                    break
                before += other.state in ("waiting", "working")
            return before

    def remove(self, job: Job) -> None:
        """Forget a job and its files.

        One that is being worked on stops at its next window, and its files go then.
        """
        with self._changed:
            self._jobs.pop(job.id, None)
            job.unwanted.set()
            working = job.state == "working"
        if not working:
            shutil.rmtree(job.folder, ignore_errors=True)
            job.finished.set()

    def stop(self, seconds: float = 30) -> None:
        """End the thread; the scan that it works on is given up at its next window."""
        with self._changed:
            self._stopping = True
            for job in self._jobs.values():
                job.unwanted.set()
            self._changed.notify_all()
        self._thread.join(seconds)

    def _run(self) -> None:
        while job := self._next():
            try:
                job.result = self.work(job)
                self._finish(job, "done")
            except Cancelled:
                self._finish(job, "failed", "Cancelled.")
            except UserError as error:
                self._finish(job, "failed", without_paths(str(error), job.scan, job.name))
            except Exception as error:
                log.exception("a scan failed")
                self._finish(
                    job,
                    "failed",
                    f"The program failed on this scan ({type(error).__name__}); "
                    "the terminal in which it runs says more.",
                )

    def _next(self) -> Job | None:
        """The job that has waited longest, as soon as there is one; None at the end."""
        with self._changed:
            while not self._stopping:
                for job in self._jobs.values():
                    if job.state == "waiting":
                        job.state = "working"
                        return job
                self._changed.wait()
        return None

    def _finish(self, job: Job, state: str, error: str = "") -> None:
        job.scan.unlink(missing_ok=True)  # the results are enough
        with self._changed:
            job.error, job.state = error, state
            wanted = job.id in self._jobs
            finished = [other for other in self._jobs.values() if other.state not in UNFINISHED]
        if not wanted:
            shutil.rmtree(job.folder, ignore_errors=True)
        for old in finished[: -self.limits.kept]:
            self.remove(old)
        job.finished.set()
