"""Memory: how much is left to this process or on a GPU, and how freed memory is given back."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dkuxnet.core.errors import UserError

if TYPE_CHECKING:
    import torch

GIB = 2**30
GPUS = ("cuda", "xpu")  # whose memory torch counts
SMALL = 2**26  # is always there, and asking takes time
MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -4, -3, -1  # of glibc's malloc.h
# Addresses that libraries and threads take once a training begins, beside those of its tensors.
RESERVED = 2**28
# limit, use and details of a container, version 2 and 1 of Linux's control groups
GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_bytes(device: "torch.device | None" = None) -> int | None:
    """What can still be had, on the CPU or a GPU; None on a system that does not say."""
    if device is not None and device.type in GPUS:
        import torch

        gpu = torch.get_device_module(device)
        cached = gpu.memory_reserved(device) - gpu.memory_allocated(device)
        free: int = gpu.mem_get_info(device)[0] + cached
        return free
    found = (_of_machine(), _of_process(), *map(_of_group, GROUPS))
    return min((free for free in found if free is not None), default=None)


def check_memory(needed: int, what: str = "this scan") -> None:
    """Raises UserError where `needed` bytes for `what` are more than are free.

    Asked before they are taken: a system that has none left may end the program, or another.
    """
    free = None if needed < SMALL else free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs {needed / GIB:.1f} GiB of memory and {free / GIB:.1f} GiB are free; "
            "close other programs, or prepare and train at a coarser spacing"
        ) from MemoryError()


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """What is freed in this block is kept for what is asked for next, and given back at the end.

    glibc gives every tensor of more than 32 MiB back to the system at once, which fills the next
    one with zeros, page by page. Without glibc nothing happens.
    """
    with _malloc_limits(0, _limits.threshold, 2**31 - 1):  # no block comes from the system alone
        yield
    _, trim = _malloc_controls()
    if trim is not None:
        trim(0)


def giving_back_large_blocks() -> AbstractContextManager[None]:
    """In this block 8 MiB or more go back to the system as soon as they are free.

    By itself glibc raises that limit to 32 MiB when it sees large blocks freed, and keeps what is
    below as holes between others. 64 MiB of smaller ones are kept: so that a
    small network does not map new pages in every step. Without glibc nothing happens.
    """
    return _malloc_limits(65536, 2**23, 2**26)


class _Limits(NamedTuple):
    """glibc's: blocks that come from the system alone, from which size on, and what stays free."""

    blocks: int
    threshold: int
    kept: int


# Where glibc arrives by itself once large blocks were freed; it moves its limits no more once they
# were set, so that there is no way back to where it begins.
_limits = _Limits(65536, 2**25, 2**26)


@contextmanager
def _malloc_limits(*limits: int) -> Iterator[None]:
    """Set glibc's limits for the block; afterwards those from before count."""
    global _limits
    before, mallopt = _limits, _malloc_controls()[0]

    def take(wanted: _Limits) -> None:
        if mallopt is not None:
            for option, value in zip(
                (MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD), wanted, strict=True
            ):
                mallopt(option, value)

    _limits = _Limits(*limits)
    take(_limits)
    try:
        yield
    finally:
        _limits = before
        take(before)


@cache
def _malloc_controls() -> tuple[Callable[[int, int], int] | None, Callable[[int], int] | None]:
    """glibc's mallopt and malloc_trim."""
    if not sys.platform.startswith("linux"):
        return None, None
    library = ctypes.CDLL(None)
    return getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(
            int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")
        )
    except (OSError, StopIteration, ValueError):
        return None


def _of_process() -> int | None:
    """Under `ulimit -v`, which counts addresses."""
    try:
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else max(limit - used - RESERVED, 0)


def _of_group(
    files: tuple[str, str, str, str], folder: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What the container may still take; files that it read and nobody uses give way."""
    limit, used, details, reclaimable = files
    try:
        rows = dict(line.split() for line in (folder / details).read_text().splitlines())
        cached = int(rows.get(reclaimable, 0))
        return max(int((folder / limit).read_text()) - int((folder / used).read_text()) + cached, 0)
    except (OSError, ValueError):  # no such limit, or "max"
        return None


def forget_peak_memory(device: "torch.device") -> None:
    """Let the peak of a GPU begin anew; that of a process cannot."""
    import torch

    if device.type in GPUS:
        torch.get_device_module(device).reset_peak_memory_stats(device)


def peak_memory_gib(device: "torch.device") -> float | None:
    """The most memory held, in GiB; None where the system does not say.

    On a GPU by tensors since `forget_peak_memory`, else by this process since it began.
    """
    import torch

    if device.type in GPUS:
        peak: int = torch.get_device_module(device).max_memory_allocated(device)
        return round(peak / GIB, 2)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 2**30 if platform.system() == "Darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)
