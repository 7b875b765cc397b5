"""Is there memory for it? Asked before it is taken: a system that has none left may end the program, or another."""

from pathlib import Path

from dkuxnet.errors import UserError

SMALL = 2**26  # is always there, and asking takes time


def check_memory(needed: int, what: str = "this scan") -> None:
    """Raises UserError where `needed` bytes for `what` are more than the machine has free."""
    if needed < SMALL:
        return
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return  # a system that does not say
    if needed > free:
        raise UserError(f"{what} needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free; "
                        "close other programs, or prepare and train at a coarser spacing")
