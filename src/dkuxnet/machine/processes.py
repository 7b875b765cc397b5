"""Work in other processes: a map, and jobs side by side where one that dies harms no other."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

# (tell, *arguments) -> outcome; importable by name, since a new process calls it
Work = Callable[..., Any]


def side_by_side(
    work: Work,
    jobs: dict[str, Sequence[Any]],
    processes: int,
    died: Callable[[int | None], Any],
    tell: Callable[..., None],
) -> Iterator[tuple[str, Any]]:
    """Call `work(tell, *arguments)` for every job, `processes` at once.

    Yields (job, outcome) as they end. tell: called here with (job, *what the job told). died: exit
    code -> outcome of a job whose process ended without a word. Where the caller stops (an
    exception, Ctrl-C), every process gets one SIGTERM and is waited for; a second Ctrl-C kills.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of torch's threads
    waiting = list(jobs.items())
    running: dict[Any, SpawnProcess] = {}  # by the pipe to each
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                name, arguments = waiting.pop(0)
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_child, args=(theirs, work, arguments), name=name, daemon=True
                )
                running[ours] = process
                process.start()
                theirs.close()  # so that the end of the process is the end of the pipe
            ready: list[Any] = wait(list(running))
            for pipe in ready:
                process = running[pipe]
                try:
                    ended, message = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    ended, message = True, died(process.exitcode)
                if ended:
                    process.join()
                    pipe.close()
                    del running[pipe]
                    yield process.name, message
                else:
                    tell(process.name, *message)
    finally:
        _stop(running)


def _stop(running: dict[Any, SpawnProcess]) -> None:
    for pipe, process in running.items():
        pipe.close()  # a process that tells something meanwhile must not wait for us to listen
        if process.pid is not None:
            process.terminate()
    try:
        for process in running.values():
            process.join()
    except KeyboardInterrupt:
        for process in running.values():
            process.kill()
        raise


def _child(pipe: Any, work: Work, arguments: Sequence[Any]) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the parent alone, which tells each process once
    threading.Thread(target=_stop_with_parent, daemon=True).start()

    def tell(*message: Any) -> None:
        with suppress(OSError):  # the parent has stopped listening; the signal to stop follows
            pipe.send((False, message))

    try:
        with stopping_on_sigterm():
            outcome = work(tell, *arguments)
    except KeyboardInterrupt:
        return
    with suppress(OSError):
        pipe.send((True, outcome))


@contextmanager
def workers(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Gives a `map` by processes that last for the block; with one, plain `map`.

    Each loads its libraries once. Ctrl-C ends them, whatever they do.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, initializer=end_with_parent) if processes > 1 else None
    try:
        yield pool.map if pool else map
    except KeyboardInterrupt:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Have this process ended with the one that started it, or by that one, but not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_stop_with_parent, daemon=True).start()


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt, so that what was begun is tidied up.

    Outside the main thread nothing changes.
    """

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
