"""Run something in a process with little memory, as the tests of strangers' files do."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

GIBIBYTE = 2**30
PROGRAM = """
import os, resource, sys, warnings
from pathlib import Path
import numpy, torch, blosc2, h5py, nibabel, SimpleITK, pydicom, safetensors.torch, dkuxnet.training.experiment, dkuxnet.prediction.segment
import pydicom.pixels.decoders, dkuxnet.data.dicom.read
from dkuxnet.core.errors import UserError
sys.path.insert(0, {tests!r})
import test_hostile
from opened import Watch
def pages(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + {limit}, here + {limit}))
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
readings = test_hostile.readings(Path({folder!r}))
watch = Watch(test_hostile.secrets(Path({folder!r})))
for name, read in readings.items():
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before = pages("VmRSS")
    try:
        read()
        told = "NOTHING", ""
    except UserError as error:
        told = "USER-ERROR", error
    except BaseException as error:
        told = type(error).__name__, error
    print(name, told[0], (pages("VmHWM") - before) >> 10, ",".join(watch.names()), told[1], sep="\t")
"""


class Outcome(NamedTuple):
    """What came of a reading: a kind, the most memory it took, the secrets it opened."""

    kind: str
    mebibytes: int
    opened: str
    message: str


def outcomes(folder: Path, limit: int = 3 * GIBIBYTE) -> dict[str, Outcome]:
    """What comes of each of `test_hostile.readings` in a process that may take `limit` bytes."""
    program = PROGRAM.format(limit=limit, tests=str(Path(__file__).parent), folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: Outcome(kind, int(mebibytes), opened, " ".join(message))
        for name, kind, mebibytes, opened, *message in lines
    }
