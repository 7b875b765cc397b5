"""A training does not grow: files and threads after many steps are those after a few.

The long form is measurements/soak.py.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "measurements"))
from soak import judge, soak


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="what a process holds is read from /proc"
)
def test_open_files_and_threads_stay_as_many(tmp_path):
    rows = soak(tmp_path, steps=30, method="mean-teacher", every=5)
    held = [(row["files"], row["threads"], row["python_threads"]) for row in rows]
    assert len(held) == 6 and len(set(held[2:])) == 1, held


@pytest.mark.parametrize("growth, files, flat", [(0.0, 7, True), (0.02, 7, False), (0.0, 9, False)])
def test_the_verdict_of_the_long_form(growth, files, flat):
    """MiB a step on 450 MiB with a scatter of 2 MiB; files at the end, of 7."""
    noise = np.random.default_rng(0).normal(0, 2, 20)
    rows = [
        {
            "step": 100 * i,
            "rss_mib": 450 + growth * 100 * i + noise[i],
            "files": files if i == 19 else 7,
            "threads": 5,
        }
        for i in range(20)
    ]
    assert judge(rows)["flat"] is flat
