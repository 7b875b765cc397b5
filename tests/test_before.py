"""A prepared set, a run and a checkpoint of version 0.1.0 are read as on the day they were made."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.prediction.predictor import load_predictor
from dkuxnet.report.page import write_report
from dkuxnet.training.experiment import run_training

BEFORE = Path(__file__).parent / "data" / "before"


@pytest.fixture
def before(tmp_path) -> Path:
    return shutil.copytree(BEFORE, tmp_path / "before")


def test_a_prepared_set_gives_its_arrays_and_what_it_says_of_itself():
    data = PreparedSet(BEFORE / "prepared")
    assert data.names_with_label == ["phantom_000", "phantom_001"]
    assert data.meta.plan.patch == (16, 16, 16) and data.meta.layout == "nnunet"
    for name in data.names:
        assert data.array(name, "image").shape == (1, *data.shape(name))
        assert data.info(name).oriented
    assert np.unique(data.array("phantom_000", "truth")).tolist() == [0, 1, 2]


def test_a_run_predicts_and_has_a_page(before):
    predictor, settings, manifest = load_predictor(before / "run", device="cpu")
    assert settings.method.name == manifest.method == "mean-teacher"
    logits = predictor(torch.zeros(1, 1, 16, 16, 16)).logits
    assert logits.shape == (1, 3, 16, 16, 16) and logits.isfinite().all()
    assert manifest.test["organ"]["dice"].mean == pytest.approx(0.17388, abs=1e-5)
    assert "phantom_001" in write_report(before / "run").read_text("utf-8")


def test_a_checkpoint_goes_on_to_the_same_weights(before):
    weights = before / "run" / "final.safetensors"
    then = load_file(weights)
    weights.unlink()
    run_training(before / "prepared", before / "run", None, resume=True)
    now = load_file(weights)
    assert then.keys() == now.keys()
    # another processor adds up in another order, and views of voxels that are no cubes are blurred
    # and deformed by their edges now
    for name, tensor in then.items():
        torch.testing.assert_close(now[name], tensor, rtol=1e-3, atol=1e-4)
