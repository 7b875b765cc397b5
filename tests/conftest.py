"""What many tests share: small synthetic scans and their prepared folder, made once.

Read only: copy what you change.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # torch reads it when a test imports it; `make test` has a worker for every core
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # on busy cores two threads that spin for each other take minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: the last one would keep one worker alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the nnU-Net layout: five scans of about 20 voxels an edge, the first three with
    a label file.
    """
    from dkuxnet.data import phantom

    return phantom.write_dataset(
        tmp_path_factory.mktemp("phantom") / "scans", cases=5, labelled=3, seed=3, size=20
    )


@pytest.fixture(scope="session")
def prepared(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scans`, prepared."""
    from dkuxnet.data.prepare import prepare_scans

    folder = tmp_path_factory.mktemp("phantom") / "prepared"
    prepare_scans(scans, folder, processes=1)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, see `browser.chromium`."""
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def dual_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of dual-mutual, small in every way: its predictor is the mean of two networks
    with queries.
    """
    from dkuxnet.core.config import load_settings
    from dkuxnet.training.experiment import run_training

    run = tmp_path_factory.mktemp("dual") / "run"
    run_training(
        prepared,
        run,
        load_settings(
            overrides={
                "method.name": "dual-mutual",
                "method.decay": 0.5,
                "network.name": "dk-uxnet-tiny",
                "network.depths": [1, 0, 0, 0],
                "network.layers_per_scale": 1,
                "network.layer_scale": 1.0,
                "train.steps": 2,
                "train.lr": 1e-4,
                "train.warm_up_steps": 50,
                "train.seed": 1,
                "train.patch": [32, 16, 16],
                "train.device": "cpu",
                "data.test_cases": 0,
                "infer.overlap": 0.3,
            }
        ),
    )
    return run


@pytest.fixture
def at_once() -> Iterator[None]:
    """The test fails where it waits, as for a named pipe that nobody writes to."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("it waits")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
