"""Graphs that leave the house compute what torch computes; what does not is refused, and leaves
nothing behind.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import described
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.core.types import NetworkShape, Output, Volume
from dkuxnet.data import formats
from dkuxnet.data.network_grid import to_network_grid
from dkuxnet.export.monai_bundle import write_bundle
from dkuxnet.export.onnx import write_onnx
from dkuxnet.export.patch_model import Export, PatchModel, check_equal
from dkuxnet.export.targets import TARGETS, export_run
from dkuxnet.export.torch_graphs import exported, write_torch_export, write_torchscript
from dkuxnet.models.build import build_method
from dkuxnet.models.methods.base import Ensemble
from dkuxnet.models.networks import NETWORKS
from dkuxnet.models.networks.cpu import predicting
from dkuxnet.models.networks.grouping import default_groups
from dkuxnet.prediction.predictor import load_predictor
from dkuxnet.training.experiment import run_training
from small_disk import FULL, small_disk

SHAPE = NetworkShape(1, 3, default_groups(("background", "organ", "tumour"), 8))
PATCH = (32, 16, 16)
SMALL = {"depths": (1, 0, 0, 0), "layer_scale": 1.0}
MANIFEST = described.manifest(
    network="a network",
    method="a method",
    patch=list(PATCH),
    labels={"background": 0, "organ": 1, "tumour": 2},
    network_shape=described.MANIFEST["network_shape"] | {"classes": 3},
    plan=described.PLAN | {"spacing_mm": [1, 1, 2]},
)


def export_to(predictor: nn.Module, output: Path, any_size: bool = False) -> Export:
    return Export(Path("run"), predictor, load_settings(), MANIFEST, output, any_size)


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    options = (
        SMALL | ({"layers_per_scale": 1} if name.startswith("dk") else {}) if "ux" in name else {}
    )
    return lookup(NETWORKS, name, "network")(SHAPE, options)


def in_onnxruntime(path: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path))


@torch.no_grad()
def probabilities(predictor: nn.Module, image: torch.Tensor) -> torch.Tensor:
    prob = predictor(image).logits.softmax(dim=1)
    assert prob.std() > 0.003  # else any two graphs would be equal
    return prob


# --- a run, in every format ---


@pytest.fixture(scope="module")
def images(scans) -> list[torch.Tensor]:
    """Noise, and patches of a scan as the network sees it; one and three at a time."""
    scan = formats.read(scans / "imagesTr" / "phantom_000_0000.nii.gz")
    plan = described.plan(spacing_mm=[1.2, 1.2, 1.2])
    grid = to_network_grid(Volume(scan.array[None].astype(np.float32), scan.affine), plan).array
    starts = [(0, 0, 0), (4, 9, 2), (1, 20, 17)]
    real = [grid[:, x : x + PATCH[0], y : y + PATCH[1], z : z + PATCH[2]] for x, y, z in starts]
    noise = torch.randn(3, 1, *PATCH, generator=torch.Generator().manual_seed(5))
    return [noise, noise[:1], torch.from_numpy(np.stack(real)), torch.from_numpy(real[1][None])]


def test_torchscript_of_a_run_equals_torch_at_any_size(dual_run, images, tmp_path, monkeypatch):
    export_run(dual_run, "torchscript", tmp_path / "model.ts")
    extra = {"dkuxnet.json": ""}
    graph = torch.jit.load(str(tmp_path / "model.ts"), _extra_files=extra)
    predictor, _, manifest = load_predictor(dual_run, device="cpu")
    for image in [*images, torch.randn(2, 1, 48, 32, 16)]:
        torch.testing.assert_close(graph(image), probabilities(predictor, image), rtol=0, atol=1e-4)
        with (
            monkeypatch.context() as patch
        ):  # by the operations that the graph holds, to the last bit
            patch.setattr(predicting, "applies", lambda x: False)
            assert torch.equal(graph(image), probabilities(predictor, image))
    assert json.loads(extra["dkuxnet.json"])["labels"] == manifest.labels


# --- every network ---


def test_every_network_has_an_onnx_form(dual_run, images, tmp_path, monkeypatch):
    """One graph is the mean of them all, with the settings and the manifest of a run, so that one
    export proves them all. (The plain UX-Net is the backbone of the first.)
    """
    _, settings, manifest = load_predictor(dual_run, device="cpu")
    predictor = Ensemble(
        [build(name) for name in ("dk-uxnet-tiny", "vnet", "unet", "segresnet")]
    ).eval()
    said = write_onnx(Export(dual_run, predictor, settings, manifest, tmp_path / "model.onnx"))
    assert "opset 18" in said and "32 x 16 x 16" in said
    session = in_onnxruntime(tmp_path / "model.onnx")
    for image in images:
        (prob,) = session.run(None, {"image": image.numpy()})
        assert np.abs(prob - probabilities(predictor, image).numpy()).max() < 1e-5
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["labels"]) == manifest.labels and json.loads(told["patch"]) == list(
        PATCH
    )
    assert json.loads(told["spacing_mm"]) == list(manifest.plan.spacing_mm)
    assert json.loads(told["normalisation"]) == [
        how.to_json() for how in manifest.plan.normalisation
    ]
    assert told["orientation"] == "RAS+" and told["dkuxnet_version"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(
        compile(re.search(r"```python\n(.*?)```", page, re.S)[1], "docs/export.md", "exec"),
        names := {},
    )
    assert names["label"].shape == (1, *PATCH) and set(np.unique(names["label"])) <= {0, 1, 2}


def test_x_y_and_z_stay_free_where_asked(tmp_path):
    network = build("unet").eval()
    write_onnx(export_to(network, tmp_path / "free.onnx", any_size=True))
    session = in_onnxruntime(tmp_path / "free.onnx")
    for shape in ((1, 1, 16, 16, 16), (3, 1, 48, 16, 80)):
        image = torch.randn(shape)
        (prob,) = session.run(None, {"image": image.numpy()})
        assert np.abs(prob - probabilities(network, image).numpy()).max() < 1e-5


def test_torch_export_equals_torch(tmp_path):
    network = build("unet").eval()
    write_torch_export(export_to(network, tmp_path / "model.pt2"))
    extra = {"dkuxnet.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    for batch in (1, 3):
        image = torch.randn(batch, 1, *PATCH)
        assert (program(image) - probabilities(network, image)).abs().max() < 1e-6
    assert json.loads(extra["dkuxnet.json"])["patch"] == list(PATCH)


@pytest.mark.parametrize("method", ["mc-net-plus", "dtc"])
def test_predictors_that_are_more_than_a_network_are_traced(method, monkeypatch):
    settings = load_settings(
        overrides={
            "method.name": method,
            "network.name": "uxnet-tiny",
            "network.layer_scale": 1.0,
            "network.depths": [1, 0, 0, 0],
        }
    )
    predictor = build_method(settings, SHAPE, "").predictor().eval()
    graph = PatchModel(predictor, SHAPE, PATCH, probabilities=True).traced()
    image = torch.randn(3, 1, 48, 32, 16)
    assert (graph(image) - probabilities(predictor, image)).abs().max() < 1e-5
    monkeypatch.setattr(predicting, "applies", lambda x: False)
    assert (graph(image) - probabilities(predictor, image)).abs().max() < 1e-6


class DownAndUp(nn.Module):
    """The least that needs edges which are multiples of its stride."""

    def __init__(self, stride: tuple[int, int, int]):
        super().__init__()
        self.down, self.up = (
            nn.Conv3d(1, 2, stride, stride),
            nn.ConvTranspose3d(2, 3, stride, stride),
        )

    def forward(self, image: torch.Tensor) -> Output:
        return Output(logits=self.up(self.down(image)))


def test_graphs_of_any_size_know_the_strides_of_thick_slices():
    shape = replace(SHAPE, strides=((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 1, 1)))
    model = PatchModel(DownAndUp(shape.divisor), shape, (32, 16, 4), probabilities=True).eval()
    assert model.divisor == (16, 8, 2)
    program = exported(model, True, "down and up").module()
    for size in (model.patch, (48, 24, 10)):
        image = model.noise(3, size)
        assert (program(image) - model(image)).abs().max() < 1e-5


# --- what is refused ---


class OneTooMany(nn.Module):
    """Adds to a class where the batch is not 2: a trace, made with 2, does not see it."""

    def forward(self, image: torch.Tensor) -> Output:
        logits = torch.cat([image, -image, 0 * image], dim=1)
        return Output(
            logits if len(image) == 2 else logits + torch.tensor([0.1, 0, 0]).view(1, 3, 1, 1, 1)
        )


class LooksAtTheVoxels(nn.Module):
    def forward(self, image: torch.Tensor) -> Output:
        return Output(torch.cat([image, image] if image.mean() > 0 else [image, -image], dim=1))


@pytest.mark.parametrize("write", [write_torchscript, write_torch_export, write_onnx])
def test_a_graph_that_answers_otherwise_is_not_written(write, tmp_path):
    with pytest.raises(UserError, match=r"otherwise than torch|cannot export"):
        write(export_to(OneTooMany(), tmp_path / "graph"))
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_captured_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot export the network 'a network': \w+"):
        write_onnx(export_to(LooksAtTheVoxels(), tmp_path / "graph.onnx"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [float("nan"), 0.01])
def test_a_copy_must_be_equal(wrong):
    model = export_to(build("unet"), Path("x")).model(probabilities=True)
    assert check_equal(model, model, "copy", [PATCH]) == 0
    with pytest.raises(UserError, match="otherwise than torch"):
        check_equal(model, lambda image: model(image) + wrong, "copy", [PATCH])
    with pytest.raises(UserError, match="does not take 1 patches"):
        check_equal(model, lambda image: model(image[:, :, :9]), "copy", [PATCH])


@pytest.mark.parametrize(
    "target, option, said",
    [
        (
            "onnx",
            {"licence": Path("terms.txt")},
            "--license is for --to monai-bundle: a file of onnx has no place for it",
        ),
        (
            "torchscript",
            {"any_size": True},
            "--any-size is for --to onnx and torch-export, not for torchscript",
        ),
        (
            "monai-bundle",
            {"any_size": True},
            "--any-size is for --to onnx and torch-export, not for monai-bundle",
        ),
    ],
)
def test_an_option_that_a_target_does_not_have_is_refused(dual_run, tmp_path, target, option, said):
    with pytest.raises(UserError, match=said):
        export_run(dual_run, target, tmp_path / "a", **option)


def test_refusals(dual_run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown target 'onx'; did you mean 'onnx'"):
        export_run(dual_run, "onx", tmp_path / "a")
    with pytest.raises(UserError, match="is not a run folder"):
        export_run(tmp_path, "onnx", tmp_path / "a")
    with pytest.raises(UserError, match="is no folder"):
        export_run(dual_run, "onnx", tmp_path / "b" / "a")
    (tmp_path / "there").write_text("mine")
    for target in ("onnx", "monai-bundle"):
        with pytest.raises(UserError, match="exists already"):
            export_run(dual_run, target, tmp_path / "there")
    export = export_to(build("unet"), tmp_path / "a")
    for write, module in ((write_onnx, "onnxruntime"), (write_bundle, "monai")):
        monkeypatch.setattr(
            "dkuxnet.core.extras.find_spec",
            lambda name, gone=module: name if name != gone else None,
        )
        with pytest.raises(UserError, match=rf"needs {module}: pip install '\.\[export\]'"):
            write(export)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("settings.json", "manifest.json"):
        (unfinished / name).write_bytes((dual_run / name).read_bytes())
    with pytest.raises(UserError, match=r"final.safetensors is missing"):
        export_run(unfinished, "onnx", tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "unfinished"]
    assert (tmp_path / "there").read_text() == "mine"


# --- a full disk, and exporters that die ---


def abort(export: Export) -> str:
    """An exporter that writes half a file and dies, as C++ does."""
    export.output.write_bytes(b"half")
    os.abort()


@pytest.fixture(scope="module")
def plain_run(prepared, tmp_path_factory) -> Path:
    """A run whose export is quick."""
    run = tmp_path_factory.mktemp("plain") / "run"
    settings = {"network.name": "unet", "method.name": "supervised", "train.steps": 1}
    run_training(
        prepared,
        run,
        load_settings(overrides=settings | {"train.patch": [16, 16, 16], "train.device": "cpu"}),
    )
    return run


@pytest.mark.parametrize(
    "to, kind", [*((to, "mounted") for to in TARGETS), ("torchscript", "limited")]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(plain_run, tmp_path, monkeypatch, to, kind):
    free = (plain_run / "final.safetensors").stat().st_size // 2
    with small_disk(tmp_path / "small", kind, 16) as disk:
        output = disk.folder / "model"
        if disk.mounted:
            with (
                disk.full(free),
                pytest.raises(UserError, match=r"takes about \d+ MB and \d+ MB are free"),
            ):
                export_run(plain_run, to, output)
        monkeypatch.setattr("dkuxnet.export.targets._check_room", lambda run, output: None)
        with disk.full(free), pytest.raises(UserError, match=FULL) as error:
            export_run(plain_run, to, output)
        assert str(output) in str(error.value) and "Traceback" not in str(error.value)
        assert disk.files() == [] and not list(disk.folder.glob(".*"))


def test_an_exporter_that_aborts_is_one_line_and_leaves_nothing(dual_run, tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "torchscript", "test_export:abort")
    with pytest.raises(UserError, match=r"cannot export to torchscript: .* crashes \(SIGABRT\)"):
        export_run(dual_run, "torchscript", tmp_path / "model.ts")
    assert not list(tmp_path.iterdir())
