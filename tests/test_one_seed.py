"""One seed, one result: bit for bit on a CPU, however the patches are read, and whatever was drawn
before.
"""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dkuxnet.core.config import load_settings
from dkuxnet.machine import devices
from dkuxnet.training import experiment
from dkuxnet.training.experiment import run_training
from tiny import DK_UXNET, dotted, prepared_phantoms

TINY = DK_UXNET | {
    "network.drop_rate": 0.2,
    "train.labelled_batch": 2,
    "train.unlabelled_batch": 2,
    "train.steps": 4,
    "train.average": 0.9,
    "train.reference_cases": 0,
    "train.seed": 5,
    "data.labelled": 2,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return prepared_phantoms(tmp_path_factory.mktemp("data"), cases=6, labelled=4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(prepared: Path, run: Path, **more) -> bytes:
    """The file of weights; whatever generator a program may have drawn from before stands
    somewhere else each time.
    """
    random.seed(os.urandom(8))
    np.random.seed(int.from_bytes(os.urandom(4), "big"))
    torch.seed()
    run_training(prepared, run, load_settings(overrides=TINY | dotted(more)))
    return (run / "final.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, read",
    [("dual-mutual", [(0, 4.0), (1, 0.0), (3, 4.0)]), ("unimatch", [(0, 4.0), (3, 0.0)])],
)
def test_two_runs_are_equal_bit_for_bit_however_the_patches_are_read(
    prepared, tmp_path, method, read
):
    """Cases kept in memory, or read from the disk in chunks; by the loop itself, one thread or
    three. UniMatch draws much.
    """
    found = {
        (workers, cache): train(
            prepared,
            tmp_path / f"{workers}_{cache}",
            method__name=method,
            data__workers=workers,
            data__cache_gib=cache,
        )
        for workers, cache in read
    }
    assert len(set(found.values())) == 1, {how: hash(content) for how, content in found.items()}
    assert (
        train(prepared, tmp_path / "other", method__name=method, train__seed=6)
        not in found.values()
    )


def test_threads_that_end_in_any_order_change_nothing(prepared, tmp_path):
    """torch's sums are shared by two threads: equal every time.

    (Another number of threads adds up in another order.)
    """
    torch.set_num_threads(2)
    assert len({train(prepared, tmp_path / str(i), train__steps=2) for i in range(2)}) == 1


def test_the_deterministic_switch_is_on_while_a_training_runs_and_changes_nothing_on_a_cpu(
    prepared, tmp_path, monkeypatch
):
    def state() -> tuple:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        )

    seen, whole = [], experiment.train_and_evaluate

    def noting(*arguments):
        seen.append((*state(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        whole(*arguments)

    monkeypatch.setattr(experiment, "train_and_evaluate", noting)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = state()
    weights = [
        train(prepared, tmp_path / str(switch), train__deterministic=switch)
        for switch in (False, True)
    ]
    assert weights[0] == weights[1] and state() == before
    assert seen == [(*before, None), (True, True, True, False, ":4096:8")]
    with pytest.raises(RuntimeError, match="stop"), devices.deterministic(True):
        raise RuntimeError("stop")
    assert state() == before


@pytest.mark.slow
def test_weights_are_finite_and_move(prepared, tmp_path):
    """What the comparisons above compare is a training."""
    train(prepared, tmp_path / "short", train__steps=1)
    train(prepared, tmp_path / "long", train__steps=4)
    one, four = (load_file(tmp_path / name / "final.safetensors") for name in ("short", "long"))
    assert all(torch.isfinite(value).all() for value in four.values())
    assert sum(not torch.equal(one[key], four[key]) for key in one) > len(one) / 2
