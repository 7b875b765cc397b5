"""What many tests share: small synthetic scans and their prepared folder, made once. Read only: copy what you change."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")  # torch reads it when a test imports it


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the nnU-Net layout: five scans of about 20 voxels an edge, the first three with a label file."""
    from dkuxnet import phantom

    return phantom.write_dataset(tmp_path_factory.mktemp("phantom") / "scans", cases=5, labelled=3, seed=3, size=20)


@pytest.fixture(scope="session")
def prepared(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scans`, prepared."""
    from dkuxnet.prepare import prepare_scans

    folder = tmp_path_factory.mktemp("phantom") / "prepared"
    prepare_scans(scans, folder, processes=1)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, see `browser.chromium`."""
    from browser import chromium

    with chromium() as started:
        yield started
