"""The queue of scans: one thread works on one scan at a time, in the order of arrival."""

import logging
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import NO_ROOM, UserError
from dkuxnet.core.types import Case
from dkuxnet.serve.limits import Limits, no_room
from dkuxnet.serve.names import FILE, without_paths

log = logging.getLogger("dkuxnet.serve")
UNFINISHED = ("receiving", "waiting", "working")


class Cancelled(Exception):
    """Nobody wants the task any more."""


@dataclass
class Task:
    """One scan to segment.

    name: as its sender calls it. folder: its own; `scan` is the file in it. ending: suffix of the
    label map. as_indices: label values are 1, 2, ... in the order of the classes instead of those
    of the training data. case: a scan of the label folder, which stays where it is. state:
    receiving -> waiting -> working -> done or failed. stage: what is being done now; `done` of
    `total` windows are finished while the network runs.
    """

    id: str
    name: str
    suffix: str
    ending: str
    as_indices: bool
    folder: Path
    case: Case | None = None
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
    def images(self) -> tuple[Path, ...]:
        """The files of a scan of the label folder; none of a scan that was sent."""
        return self.case.images if self.case else ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return self.images or (self.scan,)

    @property
    def to_label(self) -> bool:
        """Whether the page is to draw on it, and so needs every voxel."""
        return self.case is not None and not self.as_indices

    @property
    def label(self) -> Path:
        return self.folder / f"label{self.ending}"

    def report(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done now. Raises Cancelled where the task is not wanted any more."""
        if self.unwanted.is_set():
            raise Cancelled
        self.stage, self.done, self.total = stage, done, total


class TaskQueue:
    """Tasks in the order of arrival, and the thread that works on them.

    work: what is done with a scan; it returns the result or raises UserError or Cancelled.
    """

    def __init__(self, folder: Path, limits: Limits, work: Callable[[Task], dict[str, Any]]):
        self.folder, self.limits, self.work = folder, limits, work
        self._tasks: OrderedDict[str, Task] = OrderedDict()  # by id, in the order of arrival
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="segment", daemon=True)
        self._thread.start()

    @contextmanager
    def receiving(
        self,
        name: str,
        suffix: str,
        ending: str,
        as_indices: bool = False,
        case: Case | None = None,
    ) -> Iterator[Task]:
        """A task whose scan is received in the block.

        It then goes to the end of the queue; where receiving fails, nothing of it is left. Raises
        Refused where the queue is full.
        """
        task = self.open(name, suffix, ending, as_indices, case)
        try:
            yield task
        except BaseException:  # a sender who is gone raises CancelledError, not an Exception
            self.remove(task)
            raise
        self.submit(task)

    def open(
        self,
        name: str,
        suffix: str,
        ending: str,
        as_indices: bool = False,
        case: Case | None = None,
    ) -> Task:
        """A task for a scan about to be received. Raises Refused where the queue is full."""
        with self._changed:
            if (
                sum(task.state in UNFINISHED for task in self._tasks.values())
                >= self.limits.waiting
            ):
                raise self.limits.full()
            token = secrets.token_urlsafe(16)
            task = self._tasks[token] = Task(
                token, name, suffix, ending, as_indices, self.folder / token, case
            )
            task.folder.mkdir(mode=0o700)
            return task

    def submit(self, task: Task) -> None:
        """Put a task whose scan was received at the end of the queue."""
        with self._changed:
            task.state = "waiting"
            self._tasks.move_to_end(task.id)
            self._changed.notify_all()

    def get(self, token: str) -> Task | None:
        """The task of this id; None where there is none any more."""
        with self._changed:
            return self._tasks.get(token)

    def ahead(self, task: Task) -> int:
        """How many scans come before this one."""
        with self._changed:
            before = takewhile(lambda other: other is not task, self._tasks.values())
            return sum(other.state in ("waiting", "working") for other in before)

    def remove(self, task: Task) -> None:
        """Forget a task and delete its files, one that is being worked on at its next window."""
        with self._changed:
            self._tasks.pop(task.id, None)
            task.unwanted.set()
            working = task.state == "working"
        if not working:
            shutil.rmtree(task.folder, ignore_errors=True)
            task.finished.set()

    def stop(self, seconds: float = 30) -> None:
        """End the thread; work on a scan stops at its next window."""
        with self._changed:
            self._stopping = True
            for task in self._tasks.values():
                task.unwanted.set()
            self._changed.notify_all()
        self._thread.join(seconds)

    def _run(self) -> None:
        while task := self._next():
            try:
                task.result = self.work(task)
                self._finish(task, "done")
            except Exception as error:
                self._finish(task, "failed", self._explained(task, error))

    def _explained(self, task: Task, error: Exception) -> str:
        """One line for whoever sent the scan; what is our own fault is logged."""
        if isinstance(error, Cancelled):
            return "Cancelled."
        if isinstance(error, UserError):
            return without_paths(str(error), task.files[0], task.name)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return str(no_room())
        log.error("a scan failed", exc_info=error)
        return (
            f"The program failed on this scan ({type(error).__name__}); "
            "see the terminal in which it runs."
        )

    def _next(self) -> Task | None:
        """The task that has waited longest, once there is one; None when the queue is stopped."""
        with self._changed:
            while not self._stopping:
                for task in self._tasks.values():
                    if task.state == "waiting":
                        task.state = "working"
                        return task
                self._changed.wait()
        return None

    def _finish(self, task: Task, state: str, error: str = "") -> None:
        task.scan.unlink(missing_ok=True)  # the results are enough
        with self._changed:
            task.error, task.state = error, state
            wanted = task.id in self._tasks
            finished = [other for other in self._tasks.values() if other.state not in UNFINISHED]
        if not wanted:
            shutil.rmtree(task.folder, ignore_errors=True)
        for old in finished[: -self.limits.kept]:
            self.remove(old)
        task.finished.set()
