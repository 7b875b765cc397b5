"""What glibc's malloc is told: to keep what is freed during a prediction, to give large blocks
back otherwise.
"""

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="it tells glibc's malloc what to do"
)

COUNTING = """
import ctypes, json, resource
from pathlib import Path
import torch
from dkuxnet.machine.memory import giving_back_large_blocks, keeping_freed_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]
state = ctypes.CDLL(None).mallinfo2
state.restype = Info
def from_the_system(numbers):
    "How many blocks of its own a tensor takes from the system: one, or none where it is a part of the heap."
    before = state().hblks
    block = torch.empty(numbers)
    return state().hblks - before
def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
torch.ones(7 * 2**20)  # once such a block is freed, glibc takes the next of up to its size from its heap
"""


def told(program: str) -> list[int]:
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", COUNTING + program], stdout=subprocess.PIPE, check=True
        ).stdout
    )


def test_freed_memory_is_kept_within_and_given_back_after():
    outside, inside, before, within, after, own_within, own_after = told("""
outside, before = new_pages(), held()
with keeping_freed_memory():
    inside, within = min(new_pages() for _ in range(5)), held()  # the heap grows once or twice before it is used again
    own_within = from_the_system(2**24)
after, own_after = held(), from_the_system(2**28)  # 1 GiB: no hole in the heap has that
print(json.dumps([outside, inside, before, within, after, own_within, own_after]))
""")
    assert inside < outside / 2 and within > before + 2**25 > after
    assert (own_within, own_after) == (0, 1)


def test_large_blocks_go_back_at_once_and_only_within():
    assert told("print(json.dumps([from_the_system(2**22)]))") == [0]
    within = "with giving_back_large_blocks(): pass\n"
    assert told(within + "print(json.dumps([from_the_system(2**22)]))") == [0]
    assert told("with giving_back_large_blocks(): print(json.dumps([from_the_system(2**22)]))") == [
        1
    ]
