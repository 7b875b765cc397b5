"""The blocks of the documentation run, and keep the promises of their tables."""

import json
import math
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from dkuxnet.core.config import load_settings
from dkuxnet.core.types import Batch, Output, Views, Volume
from dkuxnet.data import formats, phantom
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.models.methods import METHODS
from dkuxnet.models.networks import NETWORKS
from dkuxnet.training.experiment import run_training

ROOT = Path(__file__).parents[1]


def blocks(file: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.S)


@pytest.fixture
def modules(monkeypatch) -> list[types.ModuleType]:
    """The files of docs/extend.md, importable as doc_0, doc_1, doc_2."""
    made = []
    for i, code in enumerate(blocks("docs/extend.md")):
        module = types.ModuleType(f"doc_{i}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, f"docs/extend.md block {i}", "exec"), module.__dict__)
        made.append(module)
    return made


def test_the_method_and_the_network_of_the_page_train_together(modules, monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "entropy", "doc_0:Entropy")
    monkeypatch.setitem(NETWORKS, "pointwise", "doc_1:pointwise")
    prepare_scans(
        phantom.write_dataset(tmp_path / "scans", cases=4, labelled=2, size=20),
        tmp_path / "prepared",
        processes=1,
    )
    settings = load_settings(
        overrides={
            "method.name": "entropy",
            "method.weight": 0.5,
            "network.name": "pointwise",
            "network.width": 8,
            "train.steps": 3,
            "train.log_every": 1,
            "train.device": "cpu",
            "train.patch": [16, 16, 16],
        }
    )
    run_training(tmp_path / "prepared", tmp_path / "run", settings)
    logged = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(row["entropy"] > 0 for row in logged if "loss" in row)


def test_the_method_of_the_page_makes_a_network_decide(modules):
    """Half of its weight at the end of the ramp is the entropy of an undecided network, log 2 a
    voxel.
    """

    class Undecided(torch.nn.Module):
        def forward(self, image):
            return Output(logits=torch.zeros(len(image), 2, *image.shape[2:]))

    method = modules[0].Entropy([Undecided()], modules[0].Entropy.Options(weight=0.5), None)
    image = torch.zeros(1, 1, 4, 4, 4)
    batch = Batch(
        Views(image, image, torch.zeros(1, 4, 4, 4, dtype=torch.int64)), Views(image, image)
    )
    assert float(method.losses(batch, 400)["entropy"]) == pytest.approx(0.5 * math.log(2), abs=1e-4)


def test_the_format_of_the_page_round_trips(modules, monkeypatch, tmp_path):
    monkeypatch.setitem(formats.FORMATS, ".npz", "doc_2:NPZ")
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    formats.write(
        Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine), tmp_path / "a.npz"
    )
    volume = formats.read(tmp_path / "a.npz")
    assert (
        volume.array.dtype == np.int16
        and volume.array[1, 2, 3] == 23
        and np.array_equal(volume.affine, affine)
    )


def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    """The lines of the README, on synthetic scans under the names that they use, with a few steps."""
    monkeypatch.chdir(tmp_path)
    phantom.write_dataset(tmp_path / "scans", cases=4, labelled=3, size=20)
    phantom.write_dataset(tmp_path / "new_scans", cases=1, labelled=0, size=20, seed=9)
    code = blocks("README.md")[0]
    few = 'overrides={"train.steps": 2, "train.device": "cpu", "train.patch": [16, 16, 16], '
    code, count = re.subn(r"overrides=\{", few, code)
    assert count == 1
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert list((tmp_path / "predictions").glob("*.nii.gz"))


def test_links_between_the_pages_lead_somewhere():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_method_network_and_layout_is_documented_or_listed():
    paper = (ROOT / "docs" / "paper.md").read_text()
    for path in re.findall(r"`((?:networks|methods|data)/\w+\.py|losses\.py)`", paper):
        assert (ROOT / "src" / "dkuxnet" / path).is_file(), path
    for file, names in re.findall(
        r"\| `((?:networks/|methods/|data/)?\w+\.py)` \| (.+?) \|", paper
    ):
        source = (ROOT / "src" / "dkuxnet" / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(
                rf"(def|class) {name.split('.')[-1]}\b|self\.{name.split('.')[-1]} =", source
            ), (file, name)
