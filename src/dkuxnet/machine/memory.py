"""How much memory there is left: of the machine, of the container, of what this process may have,
of a GPU.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dkuxnet.core.errors import UserError

if TYPE_CHECKING:
    import torch

GIB = 2**30
SMALL = 2**26  # is always there, and asking takes time
MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -4, -3, -1  # of glibc's malloc.h
LARGE = 2**23  # a block of memory that is better given back than kept, once it is free
RESERVED = (
    2**28
)  # addresses that libraries and threads take once a training begins, beside what its tensors take
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
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return min(
        (
            free
            for free in (_of_machine(), _of_process(), *map(_of_group, GROUPS))
            if free is not None
        ),
        default=None,
    )


def check_memory(needed: int, what: str = "this scan") -> None:
    """Raises UserError where `needed` bytes for `what` are more than there are free: asked before
    they are taken, since a system that has none left may end the program, or another.
    """
    free = None if needed < SMALL else free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs {needed / GIB:.1f} GiB of memory and {free / GIB:.1f} GiB are free; "
            "close other programs, or prepare and train at a coarser spacing"
        )


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """What is freed in this block is kept for what is asked for next, and given back at the end.

    glibc gives every tensor of more than 32 MiB back to the system at once, which fills the next
    one with zeros, page by page: a third of the time of a window of 112 x 112 x 80. Without glibc
    nothing happens.
    """
    mallopt, trim = _malloc_controls()
    if mallopt is None or trim is None:
        yield
        return
    mallopt(MMAP_MAX, 0)  # no block comes from the system alone, so that none has to go back alone
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(MMAP_MAX, 65536)  # as glibc begins
        give_back_large_blocks()
        trim(0)


def give_back_large_blocks() -> None:
    """From now on blocks of 8 MiB or more go back to the system as soon as they are free, and 64
    MiB of smaller ones are kept.

    By itself glibc raises the first limit to 32 MiB when it sees large blocks freed, and keeps what
    is below as holes between others: three training steps of dk-uxnet at 64 cubed then take 3.5
    GiB, and 3.2 so. The second keeps the blocks of a small network from coming as new pages in
    every step, 3 to 4 % of its time. Without glibc nothing happens.
    """
    mallopt, _ = _malloc_controls()
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)
        mallopt(TRIM_THRESHOLD, 2**26)


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

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device: "torch.device") -> float | None:
    """The most memory held: on a GPU by tensors since `forget_peak_memory`, else by this process
    so far, with whatever it did before. None where no one says.
    """
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 2**30 if platform.system() == "Darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)
