"""Several processes for one training, started by this command or by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from dkuxnet.machine.distributed import any_rank
from dkuxnet.runs.folder import RunFolder


def relaunch(devices: int) -> int:
    """Run this very command in `devices` processes of torchrun on this machine.

    Returns its exit code.
    """
    arguments = list(sys.argv[1:])
    place = next(i for i, argument in enumerate(arguments) if argument.startswith("--devices"))
    del arguments[place : place + (1 if "=" in arguments[place] else 2)]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={devices}",
    ]
    return subprocess.run([*torchrun, "-m", "dkuxnet", *arguments]).returncode


def is_first() -> bool:
    """Whether this process reports: it is the only one, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def goes_on(run: Path) -> bool:
    """Whether torchrun has started the joined processes again after one ended, and a run is there.

    One that had saved nothing goes on from its first step.
    """
    counted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    # each machine's torchrun counts for itself
    return any_rank(counted, torch.device("cpu")) and RunFolder(run).is_run
