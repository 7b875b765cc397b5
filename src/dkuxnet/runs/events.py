"""Curves for TensorBoard, in its own record format.

In place of torch's SummaryWriter, whose thread prints a traceback where the disk is full and
reports it at some later call.
"""

import io
import itertools
import time
from collections.abc import Mapping
from pathlib import Path


class EventFile:
    """The event file of one process: a new one in `folder`, which hides what older ones say of
    `first_step` and after.
    """

    def __init__(self, folder: Path, first_step: int):
        # TensorBoard reads the files in the order of their names: counted, so that a clock that is
        # set back changes nothing
        names = (folder / f"events.out.tfevents.{n:06d}" for n in itertools.count())
        self.path = next(path for path in names if not path.exists())
        self._first_step = first_step
        self._begun = False

    def records(self, step: int, values: Mapping[str, float]) -> bytes:
        """The bytes that the file must get for the values of a step; the first time with what
        begins a file.
        """
        # slow to import, so only where a step is logged
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = (
            []
            if self._begun
            else [
                Event(file_version="brain.Event:2"),
                Event(step=self._first_step, session_log=SessionLog(status=SessionLog.START)),
            ]
        )
        self._begun = True
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        content = io.BytesIO()
        for event in [*events, Event(step=step, summary=Summary(value=shown))]:
            event.wall_time = time.time()
            RecordWriter(content).write(event.SerializeToString())
        return content.getvalue()
