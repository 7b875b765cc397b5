"""The files of the curves hold, byte for byte, what the package tensorboard would write."""

import io
import math

import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from dkuxnet.runs.events import EventFile

NOW = 1_700_000_000.25
VALUES = {
    "loss": 1.5,
    "zero": 0.0,
    "tiny": 1e-30,
    "Größe": -math.inf,
    "x" * 300: math.nan,
    "too large for a float": 1e300,
}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr("time.time", lambda: NOW)


def as_tensorboard_writes(*events: Event) -> bytes:
    content = io.BytesIO()
    for event in events:
        event.wall_time = NOW
        RecordWriter(content).write(event.SerializeToString())
    return content.getvalue()


@pytest.mark.parametrize("first, step", [(0, 0), (0, 7), (127, 128), (300, 2**40)])
def test_a_file_is_what_tensorboard_writes(tmp_path, first, step):
    file = EventFile(tmp_path, first)
    shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in VALUES.items()]
    assert file.records(step, VALUES) == as_tensorboard_writes(
        Event(file_version="brain.Event:2"),
        Event(step=first, session_log=SessionLog(status=SessionLog.START)),
        Event(step=step, summary=Summary(value=shown)),
    )
    assert file.records(step + 1, VALUES) == as_tensorboard_writes(
        Event(step=step + 1, summary=Summary(value=shown))
    )


def test_tensorboard_reads_it_and_a_resumed_run_replaces_what_it_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, value in ((0, 1.0), (2, 0.5)):
        file = EventFile(tmp_path, first)
        for step in range(first, 4):
            content = file.records(step, {"loss": value})
            with file.path.open("ab") as stream:
                stream.write(content)
    curves = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in curves.Scalars("loss")] == [
        (0, 1.0),
        (1, 1.0),
        (2, 0.5),
        (3, 0.5),
    ]
