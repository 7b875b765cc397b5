"""A child process: what a function may take, and that whatever it does is one clear line."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dkuxnet.core.errors import UserError
from dkuxnet.machine import child as children
from dkuxnet.machine.child import Child, Ended, Failed, Stopped, limit_memory, used_bytes

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")
HERE = "test_child:"


def add(a, b):
    print("what a library prints is no answer")
    return a + b


def identity():
    return os.getpid()


def complain(text):
    raise UserError(text)


def fail():
    raise KeyError("x")


def take(count, more=None):
    if more:
        limit_memory(more)
    return len(bytearray(count))


def hang():
    ctypes.PyDLL(None).sleep(1000)  # no other thread of the process runs meanwhile


def sleep(seconds):
    time.sleep(seconds)


def crash(number):
    os.kill(os.getpid(), number)


def leave(code):
    os._exit(code)


def not_json():
    return {"answer": object()}


def nan():
    return float("nan")


def long():
    return "x" * 2**21


def leak():
    leak.kept = bytearray(2**30)


def answer_badly(text):
    for fd in range(3, 10):  # one of them is the pipe to the parent
        with contextlib.suppress(OSError):
            os.write(fd, text.encode())
    time.sleep(1000)


@pytest.fixture(scope="module")
def child():
    child = Child([HERE + "add"], quiet=True)
    yield child
    child.end()


def test_a_result_comes_back_and_the_process_stays(child):
    assert child.call(HERE + "add", 1, 2) == 3
    assert child.call(HERE + "add", ["a"], ["b"]) == ["a", "b"]
    first = child.call(HERE + "identity")
    assert first == child.call(HERE + "identity") != os.getpid()


def test_an_error_of_the_user_s_is_one_and_others_are_told_apart(child):
    with pytest.raises(UserError, match="the file is bad"):
        child.call(HERE + "complain", "the file is bad")
    with pytest.raises(Failed, match=r"^KeyError\n(.|\n)*in fail"):
        child.call(HERE + "fail")
    with pytest.raises(Failed, match="AttributeError"):
        child.call(HERE + "no_such_function")


def test_memory_is_what_the_call_may_take_and_no_more(child):
    assert child.call(HERE + "take", 2**27, memory=2**28) == 2**27
    with pytest.raises(Ended, match=r"takes more memory than it may \(0.2 GiB\)"):
        child.call(HERE + "take", 2**29, memory=2**28)
    assert child.call(HERE + "take", 2**29, 2**30, memory=2**28) == 2**29  # it asked for more
    assert child.call(HERE + "take", 2**30) == 2**30


def test_a_process_that_keeps_much_is_replaced(child):
    first = child.call(HERE + "identity")
    child.call(HERE + "leak")
    assert child.call(HERE + "identity") != first


@pytest.mark.parametrize("what", ["hang", "sleep"])
def test_time_is_up_whatever_the_process_hangs_in(child, what):
    pid, started = child.call(HERE + "identity"), time.monotonic()
    with pytest.raises(Ended, match=r"takes longer than 0.5 s"):
        child.call(HERE + what, *[1000] * (what == "sleep"), seconds=0.5)
    assert time.monotonic() - started < 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert child.call(HERE + "add", 1, 2) == 3


def test_what_nobody_wants_any_more_ends_at_once(child):
    child.call(HERE + "identity")
    unwanted, started = threading.Event(), time.monotonic()
    threading.Timer(0.3, unwanted.set).start()
    with pytest.raises(Stopped):
        child.call(HERE + "hang", stop=unwanted.is_set)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "what, argument, said",
    [
        ("crash", signal.SIGSEGV, r"crashes \(SIGSEGV\)"),
        ("crash", signal.SIGABRT, r"crashes \(SIGABRT\)"),
        ("crash", signal.SIGKILL, r"crashes \(SIGKILL, as a system does that has no memory"),
        ("leave", 0, "ends with exit code 0"),
        ("leave", 3, "ends with exit code 3"),
    ],
)
def test_a_death_is_one_line(child, what, argument, said):
    with pytest.raises(Ended, match=said):
        child.call(HERE + what, argument)
    assert child.call(HERE + "add", 1, 2) == 3


@pytest.mark.parametrize(
    "text", ["[1]\n", "{\n", '{"result": NaN}\n', 100 * "[" + "\n", "x" * 2**21]
)
def test_what_is_no_answer_is_not_taken_for_one(child, text):
    with pytest.raises(Ended):
        child.call(HERE + "answer_badly", text, seconds=10)
    assert child.call(HERE + "add", 1, 2) == 3


@pytest.mark.parametrize("what", ["not_json", "nan", "long"])
def test_a_result_that_json_does_not_hold_is_refused(child, what):
    with pytest.raises((Failed, Ended)):
        child.call(HERE + what)
    assert child.call(HERE + "add", 1, 2) == 3


def test_a_process_that_cannot_start_is_one_line():
    broken = Child(["test_child:no_such_name"], quiet=True)
    with pytest.raises(Ended, match="ends with exit code 1"):
        broken.call(HERE + "add", 1, 2)
    broken.end()


@pytest.mark.parametrize("what, seconds", [("sleep(1000)", None), ("hang()", 1)])
def test_it_dies_with_the_process_that_started_it(tmp_path, what, seconds):
    """That one is killed, so it can end nothing. Where no thread runs, only the alarm is left."""
    function, argument = what[:-1].split("(")
    code = (
        "from dkuxnet.machine.child import Child; c = Child()\n"
        f"print(c.call('test_child:identity'), flush=True)\n"
        f"c.call('test_child:{function}', *{[int(argument)] if argument else []}, "
        f"seconds={seconds})"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    ) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text()[:40]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_limits_are_of_a_child_alone():
    before = used_bytes()
    limit_memory(0)
    assert bytearray(2**28) and used_bytes() >= before
    assert not children._limits["memory"]
