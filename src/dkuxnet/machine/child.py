"""A process that works for this one under limits of memory and time, and may die of what it does.

For functions that may crash, hang or take all memory: readers of strangers' files, exporters that
abort. What the process answers is JSON, so that nothing in it can run code here.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dkuxnet.core.documents import parse_json
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup

START_SECONDS = 120.0  # for its imports
LOOK_SECONDS = 0.05  # between two looks at whether the answer is still wanted
ANSWER_BYTES = 2**20  # at most
GROWN_BYTES = 2**29  # addresses that are kept after an answer, from which a new process is better
NEW_SESSION = os.name == "posix"


class Ended(Exception):
    """The process was ended or died before it answered; the message goes on after "it ..."."""


class Stopped(Exception):
    """Nobody wanted the answer any more; the process was ended."""


class Failed(Exception):
    """The function raised something that is no UserError: its type, and where, in the message."""


class Child:
    """One process that calls functions one at a time; it is started anew where it has died.

    imports: "module:attribute" each, loaded before the first call. environment: added to that of
    this process. quiet: what it and its libraries print is thrown away.
    """

    def __init__(
        self,
        imports: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        quiet: bool = False,
    ):
        self._imports, self._quiet = list(imports), quiet
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._one_call = threading.Lock()

    def start(self) -> None:
        """Start the process, unless it runs; it gets ready while this one goes on."""
        if self._process is None or self._process.poll() is not None:
            self.end()
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as c; c.serve_calls()"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if self._quiet else None,
                env=os.environ | self._environment,
                start_new_session=NEW_SESSION,  # Ctrl-C reaches this process alone, which ends it
            )
            self._send({"imports": self._imports})

    def call(
        self,
        function: str,
        *arguments: Any,
        seconds: float | None = None,
        memory: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Any:
        """What `function` ("module:attribute") returns, called there; arguments and result: JSON.

        seconds: from when the process is ready. memory: bytes of addresses that it may take beside
        what it has. stop: asked meanwhile; where it says True, the process is ended at once.

        Raises UserError where the function does, Ended, Stopped or Failed.
        """
        with self._one_call:
            self.start()
            try:
                if not self._ready:
                    self._answer(START_SECONDS, stop)
                    self._ready = True
                call = {"call": function, "arguments": arguments}
                self._send(call | {"memory": memory, "seconds": seconds})
                answer = self._answer(seconds, stop)
            except BaseException:  # Ctrl-C too
                self.end()
                raise
            if answer.get("last"):
                self.end()
        if "error" in answer:
            raise UserError(str(answer["error"]))
        if answer.get("failed") == "MemoryError":
            raise Ended(f"takes more memory than it may{_gigabytes(memory)}")
        if "failed" in answer:
            raise Failed(f"{answer['failed']}\n{answer.get('trace', '')}")
        return answer.get("result")

    def end(self) -> None:
        """End the process, with all that it started, whatever it does."""
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return
        try:
            if NEW_SESSION:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        except ProcessLookupError:
            pass
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe:
                    pipe.close()
            except OSError:  # it holds a request that nobody read
                pass

    def _send(self, message: dict[str, Any]) -> None:
        if self._process and self._process.stdin:
            try:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                pass  # it is dead: the missing answer tells

    def _answer(self, seconds: float | None, stop: Callable[[], bool]) -> dict[str, Any]:
        """The next line that the process writes, as JSON."""
        process, box = self._process, queue.SimpleQueue[bytes]()
        if process is None or process.stdout is None:
            raise Ended("was ended")
        read = process.stdout.readline

        def listen() -> None:
            try:
                box.put(read(ANSWER_BYTES))
            except (OSError, ValueError):  # closed meanwhile
                box.put(b"")

        threading.Thread(target=listen, daemon=True).start()
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                line = box.get(timeout=LOOK_SECONDS)
                break
            except queue.Empty:
                if stop():
                    raise Stopped from None
                if until is not None and time.monotonic() > until:
                    raise Ended(f"takes longer than {seconds:g} s") from None
        if not line.endswith(b"\n"):
            raise Ended(_death(process))
        try:
            answer = parse_json(line.decode())
        except ValueError as error:
            raise Ended(f"answers what is not JSON ({error})") from None
        if not isinstance(answer, dict):
            raise Ended("answers what was not asked")
        return answer


def _death(process: "subprocess.Popen[bytes]") -> str:
    """How a process ended that closed its pipe; at most a moment is waited for it."""
    try:
        code = process.wait(1)
    except subprocess.TimeoutExpired:
        return "stopped to answer"
    if code < 0:
        hint = ", as a system does that has no memory left" if code == -signal.SIGKILL else ""
        return f"crashes ({signal.Signals(-code).name}{hint})"
    return f"ends with exit code {code}"


def _gigabytes(count: int | None) -> str:
    return "" if count is None else f" ({count / 2**30:.1f} GiB)"


# --- what runs in the child ---

_limits: dict[str, Any] = {"memory": False}  # of the call that runs


def serve_calls() -> None:
    """Call what stdin asks for and answer on stdout, until stdin ends."""
    code = 1
    try:
        _serve_calls()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:  # Python's own way out would wait for the thread that listens
        os._exit(code)


def _serve_calls() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    _drop_core_dumps()
    for name in json_of(requests.get())["imports"]:
        lookup({name: name}, name, "import")
    at_first, last = used_bytes(), False

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    say({"ready": True})
    while not last:
        request = json_of(requests.get())
        _begin(request["memory"], request["seconds"])
        answer = _called(request["call"], request["arguments"])
        _begin(None, None)
        last = used_bytes() > at_first + GROWN_BYTES
        say(answer | {"last": last})


def limit_memory(extra: int) -> None:
    """Let this process take `extra` bytes of addresses beside what it has now.

    Only where it works for a call with a limit of memory; the system has to know such limits.
    """
    if _limits["memory"]:
        _set_memory(extra)


def used_bytes() -> int:
    """Addresses that this process has taken; 0 on a system that does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def json_of(line: bytes) -> dict[str, Any]:
    """A request; it comes from the process that started this one."""
    request: dict[str, Any] = parse_json(line.decode())
    return request


def _listen(requests: "queue.SimpleQueue[bytes]") -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(1)  # the other process has ended, or wants no more


def _begin(memory: int | None, seconds: float | None) -> None:
    """Set the limits of a call, or lift them.

    The other process ends this one in time. Where that one was killed meanwhile, the alarm does,
    which needs nothing of what hangs here.
    """
    _limits["memory"] = memory is not None
    _set_memory(memory)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0 if seconds is None else seconds + 5)


def _set_memory(extra: int | None) -> None:
    try:
        import resource  # not on Windows
    except ImportError:
        return
    used, (_, most) = used_bytes(), resource.getrlimit(resource.RLIMIT_AS)
    wanted = most if extra is None or not used else used + extra
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def _drop_core_dumps() -> None:
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a patient's scan would lie in it


def _called(function: str, arguments: list[Any]) -> dict[str, Any]:
    try:
        return {"result": lookup({function: function}, function, "function")(*arguments)}
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:
        trace = traceback.format_exc(limit=-10)[-5000:]
        return {"failed": type(error).__name__, "trace": trace}
