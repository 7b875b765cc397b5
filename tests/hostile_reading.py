"""What stands in for the reader of `dkuxnet serve` in some tests: it does what the file says."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from dkuxnet.serve.reading import read_file


def read(path: str, *rest):
    """`read_file`, but for files that begin with a word of harm."""
    word = Path(path).read_bytes()[:16].split(b" ")[0]
    if word == b"MEMORY":
        taken = []
        while True:
            taken.append(np.zeros(2**24))
    if word == b"ENDLESS":
        hold_the_interpreter()
    if word == b"SLEEP":
        time.sleep(1000)
    if word == b"CRASH":
        ctypes.string_at(0)
    if word == b"CHATTY":
        os.write(3, b"x" * 2**24)
    if word == b"LIES":
        answer = read_file(path, *rest)
        return answer | {"shape": [1, 10**6, 10**6, 10**6]}
    if word == b"BUG":
        raise KeyError("secret")
    if word == b"FORKS":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        hold_the_interpreter()
    if word.startswith(b"\x89HDF"):
        with h5py.File(path) as file:
            if "follow" in file.attrs:  # as a reader did that looked for `image`
                file["image"]
    if word == b"QUITS":
        os._exit(0)
    return read_file(path, *rest)


def hold_the_interpreter() -> None:
    """Wait in C without letting another thread of this process run, as libraries do."""
    ctypes.PyDLL(None).sleep(1000)
