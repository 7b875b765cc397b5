"""A run with a tiny network, and a real server process, for the tests of `dkuxnet serve`."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from dkuxnet.core.types import Volume
from dkuxnet.data import formats


def tiny_run(prepared: Path, folder: Path, steps: int = 1) -> Path:
    """A finished run that has learnt next to nothing."""
    from dkuxnet.core.config import load_settings
    from dkuxnet.training.experiment import run_training

    run_training(
        prepared,
        folder,
        load_settings(
            overrides={
                "network.name": "dk-uxnet-tiny",
                "method.name": "supervised",
                "train.steps": steps,
                "train.patch": [16, 16, 16],
                "train.device": "cpu",
                "train.labelled_batch": 1,
                "train.warm_up_steps": 50,  # so that the first step changes next to nothing
            }
        ),
    )
    return folder


def write_scan(path: Path, size: int = 24, seed: int = 5) -> Path:
    """A synthetic scan in the format of `path`."""
    from dkuxnet.data.phantom import make_case

    image, _ = make_case(np.random.default_rng(seed), size)
    formats.write(
        Volume(image.array.astype(np.float32), image.affine) if path.suffix == ".h5" else image,
        path,
    )
    return path


def write_oblique(path: Path, seed: int = 5) -> Path:
    """A scan whose axes are turned, mirrored and in another order than the patient's.

    It is dark, but for a bright box that reaches from the middle further to one side than to the
    other along every axis.
    """
    array = np.random.default_rng(seed).normal(300, 10, (30, 26, 22)).astype(np.int16)
    array[11:25, 4:16, 8:19] = 1200
    a, b = np.cos(0.5), np.sin(0.5)
    turned = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, a, -b], [0, b, a]]
    )
    affine = np.eye(4)
    affine[:3, :3] = (turned * [-1.3, 1.5, -1.8])[:, [1, 2, 0]]
    affine[:3, 3] = 20, -35, 50
    formats.write(Volume(array, affine), path)
    return path


@dataclass
class Server:
    """A server process. temp: the folder that it takes for temporary files."""

    url: str
    process: subprocess.Popen
    temp: Path

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def files(self) -> list[Path]:
        """Everything below the temporary folder but folders.

        The server removes folders meanwhile, which os.walk forgives.
        """
        return [Path(folder) / name for folder, _, names in os.walk(self.temp) for name in names]

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Exit status and what stood on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


# A process of these lines is ended by Linux with the thread that started it, which may be killed.
ENDS_WITH_US = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
"""


@contextmanager
def serving(run: Path, temp: Path, *options: str, before: str = "") -> Iterator[Server]:
    """before: lines of Python that the server's process runs first."""
    temp.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-c",
        f"{ENDS_WITH_US}{before}\nfrom dkuxnet.cli.commands import main; main()",
        "serve",
        str(run),
        "--port",
        "0",
        "--device",
        "cpu",
        *options,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ
        | {"TMPDIR": str(temp), "OMP_NUM_THREADS": "1"}
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        lines = iter(process.stdout.readline, "")  # which weights, then where
        found = next(filter(None, (re.search(r"http://\S+", line) for line in lines)), None)
        assert found, process.communicate(timeout=30)
        yield Server(found[0], process, temp)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def send(client: httpx.Client, scan: Path, name: str | None = None) -> dict:
    """Upload a scan as the page does."""
    with scan.open("rb") as file:
        answer = client.post("/jobs", params={"name": name or scan.name}, content=file)
    assert answer.status_code == 201, answer.text
    return answer.json()


def outcome(client: httpx.Client, token: str) -> dict:
    """The job when it is done or has failed."""
    until = time.monotonic() + 60
    while (job := client.get(f"/jobs/{token}").raise_for_status().json())["state"] not in (
        "done",
        "failed",
    ):
        assert time.monotonic() < until, job
        time.sleep(0.05)
    return job
