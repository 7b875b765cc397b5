"""examples/slurm.sh under SLURM itself, whose daemons are started here on ports of their own."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from test_processes import metrics, training, weights
from tiny import prepared_phantoms

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [
    name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING) or os.geteuid() != 0,
        reason="needs root, and SLURM: apt-get install slurm-wlm munge",
    ),
]
SCRIPT = Path(__file__).parents[1] / "examples" / "slurm.sh"
# one node, on which two jobs of two processes find room whatever this machine has
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def answer(*command: str, check: bool = True) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout.strip()


def until(happens, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    with ExitStack() as bound:
        sockets = [bound.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of this machine alone."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    conf, key = folder / "slurm.conf", folder / "munge.key"
    conf.write_text(CONF.format(host=host, folder=folder, ports=free_ports(2)))
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    own = [f"--{what}-file={folder}/munge.{what}" for what in ("key", "pid", "log", "seed")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *own],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "localhost"],
    ]
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        patch.setenv("SLURM_CONF", str(conf))
        # where jobs find the program of these tests
        here = Path(sys.executable).parent
        patch.setenv("PATH", f"{here}:{os.environ['PATH']}:/usr/sbin")
        for command in daemons:
            with (folder / f"{command[0]}.txt").open("wb") as log:
                daemon = subprocess.Popen(command, stdout=log, stderr=log)
            running.callback(daemon.wait, timeout=30)
            running.callback(daemon.terminate)
            until((folder / "munge.socket").exists)
        until(lambda: answer("sinfo", "-h", "-o", "%t", check=False) == "idle")
        yield


class Job:
    """The script, submitted for two processes on this machine."""

    def __init__(self, prepared: Path, run: Path):
        log = run.parent / "job-%j.txt"
        here = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]
        command = training(prepared, run)[3:]
        self.number = answer(
            "sbatch", "--parsable", *here, f"--output={log}", str(SCRIPT), *command
        )
        self.log = Path(str(log).replace("%j", self.number))

    def ended(self, seconds: float = 120) -> str:
        """Its state and exit code, once it has ended."""
        shown = ["squeue", "-h", "-t", "all", "-j", self.number, "-o", "%T"]
        until(lambda: answer(*shown) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), seconds)
        told = answer("scontrol", "-o", "show", "job", self.number)
        return " ".join(re.findall(r" (?:JobState|ExitCode)=(\S+)", told))


def test_a_job_that_was_stopped_goes_on_when_it_is_submitted_again(slurm, tmp_path):
    """With the signal of its time limit; the names have spaces; equal bit for bit."""
    prepared = prepared_phantoms(tmp_path, cases=6, labelled=5)
    whole, broken = tmp_path / "the whole", tmp_path / "a broken one"
    undisturbed, first = Job(prepared, whole), Job(prepared, broken)
    until((broken / "metrics.jsonl").exists)
    answer("scancel", "--signal=TERM", first.number)  # what --signal=TERM@120 does
    assert first.ended() == "FAILED 130:0", first.log.read_text()
    said = first.log.read_text()
    assert said.count("stopped at step ") == said.count("Go on with: ") == 1, said
    assert "Traceback" not in said
    assert not (broken / "final.safetensors").exists() and metrics(broken)
    again = Job(prepared, broken)
    for job in (undisturbed, again):
        assert job.ended() == "COMPLETED 0:0", job.log.read_text()
    one, other = weights(whole), weights(broken)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert metrics(whole) == metrics(broken) and len(metrics(whole)) == 40
