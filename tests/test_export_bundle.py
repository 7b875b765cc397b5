"""A bundle that MONAI's own commands accept, whose label maps are those of `dkuxnet predict`,
voxel for voxel.
"""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dicom_series import Scan, noise
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.export.bundle_parts import LoadScand, find_scans
from dkuxnet.export.monai_bundle import bundle_metadata, inference_config, write_bundle
from dkuxnet.export.patch_model import Export
from dkuxnet.export.targets import export_run
from dkuxnet.models.networks.cpu import predicting
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.prediction.predictor import load_predictor

NEEDED = {
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
}
NEEDED_OF_DATA = {
    "type",
    "format",
    "num_channels",
    "spatial_shape",
    "dtype",
    "value_range",
    "is_patch_data",
    "channel_def",
}


@pytest.fixture(scope="module")
def folder(dual_run, scans, tmp_path_factory) -> Path:
    """A bundle, an oblique anisotropic scan, and what three of MONAI's commands made of them."""
    folder = tmp_path_factory.mktemp("bundle")
    export_run(dual_run, "monai-bundle", folder / "bundle")
    phantom = formats.read(scans / "imagesTr" / "phantom_001_0000.nii.gz")
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (10, -15, 25), degrees=True).as_matrix() @ np.diag(
        [-1.9, -2.4, 3.7]
    )
    affine[:3, 3] = (40, -60, 512.5)
    (folder / "scans").mkdir()
    formats.write(
        Volume(phantom.array[:, ::-1].transpose(2, 0, 1), affine),
        folder / "scans" / "oblique.v2.nii.gz",
    )
    configs = ["--config_file", "configs/inference.json"]
    meta = ["--meta_file", "configs/metadata.json"]
    commands = [
        ["verify_net_in_out", "network_def", *configs, *meta, "--device", "cpu", "--n", "2"],
        [
            "ckpt_export",
            "network_def",
            *configs,
            *meta,
            "--ckpt_file",
            "models/model.pt",
            "--filepath",
            "models/model.ts",
        ],
        [
            "run",
            *configs,
            "--dataset_dir",
            "../scans",
            "--output_dir",
            "../monai",
            "--device",
            "cpu",
        ],
    ]
    this_tree = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "monai.bundle", *command],
            cwd=folder / "bundle",
            env=this_tree,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for command in commands
    ]
    for process in running:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    return folder


def test_monai_s_run_gives_the_label_map_of_predict(folder, dual_run, tmp_path):
    (target,) = predict_scans(dual_run, [folder / "scans"], tmp_path, device="cpu")
    assert (
        [path.name for path in (folder / "monai").iterdir()]
        == [target.name]
        == ["oblique.v2.nii.gz"]
    )
    here, there = (
        formats.read(target, kind="label"),
        formats.read(folder / "monai" / target.name, kind="label"),
    )
    assert (
        np.sort(np.bincount(here.array.ravel()))[-2] > 50
    )  # voxels of another class than most have
    assert here.shape == formats.read(folder / "scans" / target.name).shape
    assert np.array_equal(here.array, there.array) and here.array.dtype == there.array.dtype
    assert np.array_equal(here.affine, there.affine)


def test_monai_s_exported_checkpoint_computes_the_same(folder, dual_run, monkeypatch):
    graph = torch.jit.load(str(folder / "bundle" / "models" / "model.ts"))
    predictor, _, _ = load_predictor(dual_run, device="cpu")
    image = torch.randn(3, 1, 32, 48, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            graph(image).softmax(dim=1), predictor(image).logits.softmax(dim=1), rtol=0, atol=1e-4
        )
        monkeypatch.setattr(
            predicting, "applies", lambda x: False
        )  # by the operations that it holds, to the last bit
        assert torch.equal(graph(image), predictor(image).logits)


def test_a_zip_of_two_patients_is_two_scans(tmp_path):
    """Both lie in one file, so that the path alone does not say which is meant."""
    patients = {name: Scan(noise(seed=seed)) for seed, name in enumerate(("anna", "ben"))}
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for name, patient in patients.items():
            for file in patient.write(tmp_path / name).iterdir():
                archive.write(file, f"{name}/{file.name}")
    load = LoadScand("image", 1)
    found = {data["name"]: load(data)["image"] for data in find_scans(str(tmp_path / "two.zip"))}
    assert set(found) == set(patients)
    for name, image in found.items():
        assert np.array_equal(image[0].numpy(), patients[name].voxels.T)


def test_the_network_is_built_from_the_bundle_alone(folder, dual_run):
    from monai.bundle import ConfigParser

    network = ConfigParser(
        json.loads((folder / "bundle/configs/inference.json").read_text())
    ).get_parsed_content("network_def")
    network.load_state_dict(
        torch.load(folder / "bundle" / "models" / "model.pt", weights_only=True)
    )
    predictor, _, _ = load_predictor(dual_run, device="cpu")
    image = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(image), predictor(image).logits)


def test_the_bundle_holds_what_the_specification_asks_for(folder, dual_run):
    bundle = folder / "bundle"
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert set(meta) >= NEEDED
    data = meta["network_data_format"]
    assert (
        set(data["inputs"]["image"]) >= NEEDED_OF_DATA | {"modality"}
        and set(data["outputs"]["pred"]) >= NEEDED_OF_DATA
    )
    assert data["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "organ",
        "2": "tumour",
    }
    assert meta["dkuxnet"]["labels"] == {"background": 0, "organ": 1, "tumour": 2}
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert set(config) >= {
        "bundle_root",
        "device",
        "dataset_dir",
        "dataset",
        "evaluator",
        "network_def",
        "inferer",
    }
    assert config["inferer"]["overlap"] == 0.3
    assert str(dual_run) not in json.dumps(config) and "prepared" not in json.dumps(config)
    assert "Permission is hereby granted" in (bundle / "LICENSE").read_text()
    assert "0 background, 1 organ, 2 tumour" in (bundle / "docs" / "README.md").read_text()
    assert {path.name for path in bundle.iterdir()} == {"LICENSE", "configs", "models", "docs"}


def test_names_of_a_data_set_are_never_code(dual_run, tmp_path):
    """MONAI evaluates strings that begin with $, and follows @ and %."""
    predictor, settings, manifest = load_predictor(dual_run, device="cpu")
    bad = "$__import__('pathlib').Path('x').touch()"
    shape = manifest.to_json()["network_shape"]
    groups = [group | {"name": bad} for group in shape["groups"]]
    manifest = Manifest.model_validate(
        manifest.to_json()
        | {
            "labels": {"background": 0, bad: 1, "%tumour": 2},
            "channels": [f"@{bad}"],
            "network_shape": shape | {"groups": groups},
        }
    )
    export = Export(dual_run, predictor, settings, manifest, tmp_path / "bundle")
    assert "pathlib" not in json.dumps(inference_config(export))
    for text in texts(bundle_metadata(export)):
        assert not text.startswith(("$", "@", "%"))


def texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts(part)]
    return (
        [text for part in value for text in texts(part)]
        if isinstance(value, list)
        else [str(value)]
    )


def test_the_terms_of_the_weights_are_the_user_s(dual_run, tmp_path):
    (tmp_path / "terms.txt").write_text("Ask the hospital.")
    export_run(dual_run, "monai-bundle", tmp_path / "bundle", licence=tmp_path / "terms.txt")
    assert (
        (tmp_path / "bundle" / "LICENSE").read_text().startswith("WEIGHTS\n\nAsk the hospital.\n")
    )
    with pytest.raises(UserError, match=r"--license .*none\.txt"):
        export_run(dual_run, "monai-bundle", tmp_path / "other", licence=tmp_path / "none.txt")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * (2**20 + 1))
    for name, why in (("pipe", "no regular file"), ("large", "larger than 1 MiB")):
        with pytest.raises(UserError, match=f"--license .*{name}.*{why}"):
            export_run(dual_run, "monai-bundle", tmp_path / "other", licence=tmp_path / name)
        (tmp_path / name).unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "terms.txt"]


def test_the_command_that_is_printed_works_or_says_what_to_install(dual_run, tmp_path, monkeypatch):
    predictor, settings, manifest = load_predictor(dual_run, device="cpu")
    said = write_bundle(Export(dual_run, predictor, settings, manifest, tmp_path / "all"))
    assert said.endswith("--output_dir OUTPUT")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "dkuxnet.export.monai_bundle.find_spec", lambda name: None if name == "fire" else find(name)
    )
    said = write_bundle(Export(dual_run, predictor, settings, manifest, tmp_path / "less"))
    assert "OUTPUT; it needs fire: pip install '.[export]' in a clone" in said


def test_nothing_is_left_of_a_bundle_that_failed(dual_run, tmp_path, monkeypatch):
    predictor, settings, manifest = load_predictor(dual_run, device="cpu")
    export = Export(dual_run, predictor, settings, manifest, tmp_path / "bundle")
    monkeypatch.setattr(torch, "save", lambda content, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_bundle(export)
    assert not list(tmp_path.iterdir())
