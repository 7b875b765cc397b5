"""Run something in a process with little memory, as the tests of strangers' files do."""

import subprocess
import sys
from pathlib import Path

GIBIBYTE = 2**30
PROGRAM = """
import resource, sys, warnings
from pathlib import Path
import numpy, torch, blosc2, h5py, nibabel, SimpleITK, pydicom, safetensors.torch, dkuxnet.training.experiment, dkuxnet.prediction.segment
from dkuxnet.core.errors import UserError
here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + {limit}, here + {limit}))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
sys.path.insert(0, {tests!r})
import test_hostile
for name, read in test_hostile.readings(Path({folder!r})).items():
    try:
        read()
    except UserError as error:
        print(name, "USER-ERROR", error, sep="\\t")
    except BaseException as error:
        print(name, type(error).__name__, error, sep="\\t")
    else:
        print(name, "NOTHING", sep="\\t")
"""


def outcomes(folder: Path, limit: int = 3 * GIBIBYTE) -> dict[str, tuple[str, str]]:
    """What comes of each of `test_hostile.readings` in a process that may take `limit` bytes: name
    -> (kind, message).
    """
    program = PROGRAM.format(limit=limit, tests=str(Path(__file__).parent), folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (kind, " ".join(rest)) for name, kind, *rest in lines}
