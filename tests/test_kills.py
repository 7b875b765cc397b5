"""Trainings that are killed at random moments: the short form of measurements/kills.py."""

import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_training_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "measurements")
    import kills

    result = kills.kill_and_compare(tmp_path, kills=2, seed=1, methods=("dual-mutual",), steps=6)
    assert result["different"] == [] and result["kills"] >= 2
