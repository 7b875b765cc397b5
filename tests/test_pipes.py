"""A named pipe in the place of a file: a command refuses it at once, and does not wait for ever."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.training.experiment import run_training
from tiny import UXNET

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes"),
    pytest.mark.usefixtures("at_once"),
]
TINY = UXNET | {"train.steps": 2, "data.test_cases": 1}


def replace(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("pipes") / "run"
    run_training(prepared, run, load_settings(overrides=TINY))
    return run


@pytest.mark.parametrize(
    "name",
    [
        "dataset.json",
        "cases/phantom_000.image.b2nd",
        "cases/phantom_000.label.b2nd",
        "cases/phantom_002.truth.b2nd",
        "cases/phantom_002.json",
    ],
)
@pytest.mark.parametrize("checksums", [True, False])
def test_a_training_reads_regular_files(prepared, tmp_path, name, checksums):
    copy = shutil.copytree(prepared, tmp_path / "prepared")
    if not checksums:  # as in older sets
        meta = json.loads((copy / "dataset.json").read_text())
        for case in meta["cases"]:
            del case["sha256"]
        (copy / "dataset.json").write_text(json.dumps(meta))
    replace(copy / name)
    with pytest.raises(UserError, match="no regular file"):
        run_training(copy, tmp_path / "run", load_settings(overrides=TINY))


@pytest.mark.parametrize(
    "name",
    [
        "settings.json",
        "manifest.json",
        "metrics.jsonl",
        "checkpoints/*.safetensors",
        ".lock",
        "tensorboard",
        "evaluation",
        "best.safetensors",
        "final.safetensors",
        "evaluation/summary.json",
    ],
)
def test_a_training_goes_on_with_regular_files(finished, prepared, tmp_path, name):
    """Or replaces what is none by its own."""
    run = shutil.copytree(finished, tmp_path / "run")
    for path in list(run.glob(name)) or [run / name]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        os.mkfifo(path)
    if name in ("best.safetensors", "final.safetensors", "evaluation/summary.json"):
        run_training(prepared, run, load_settings(), resume=True)
        assert name.startswith("best") or (run / name).is_file()
    elif name == "tensorboard":  # nothing is left to log
        run_training(prepared, run, load_settings(), resume=True)
    else:
        with pytest.raises(UserError, match=r"regular file|not a run folder|Not a directory"):
            run_training(prepared, run, load_settings(), resume=True)


@pytest.mark.parametrize("name", ["settings.json", "manifest.json", "final.safetensors"])
def test_a_prediction_reads_a_run_of_regular_files(finished, scans, tmp_path, name):
    run = shutil.copytree(finished, tmp_path / "run")
    replace(run / name)
    scan = scans / "imagesTr" / "phantom_000_0000.nii.gz"
    with pytest.raises(UserError, match=r"regular file|not a run folder"):
        predict_scans(run, [scan], tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    "name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.h5", "a.dcm", "a.zip", "a"]
)
def test_a_prediction_reads_regular_scans(finished, tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError):
        predict_scans(finished, [tmp_path / name], tmp_path / "out", device="cpu")


def test_a_prediction_reads_regular_slices(finished, tmp_path):
    (tmp_path / "series").mkdir()
    os.mkfifo(tmp_path / "series" / "1.dcm")
    with pytest.raises(UserError):
        predict_scans(finished, [tmp_path / "series"], tmp_path / "out", device="cpu")


@pytest.mark.parametrize("name", ["dataset.json", "phantom_000.nii.gz"])
def test_a_prediction_finds_a_pipe_among_its_outputs(finished, scans, tmp_path, name):
    out = tmp_path / "out"
    scan = scans / "imagesTr" / "phantom_000_0000.nii.gz"
    predict_scans(finished, [scan], out, device="cpu")
    [path] = [path for path in out.iterdir() if path.name[:6] == name[:6]]
    replace(path)
    if name == "dataset.json":
        with pytest.raises(UserError, match=r"dataset\.json: cannot be read"):
            predict_scans(finished, [scan], out, device="cpu")
    else:  # replaced
        predict_scans(finished, [scan], out, device="cpu")
        assert path.is_file()


@pytest.mark.parametrize("name", ["dataset.json", "imagesTr/phantom_000_0000.nii.gz"])
def test_scans_are_prepared_from_regular_files(scans, tmp_path, name):
    copy = shutil.copytree(scans, tmp_path / "scans")
    replace(copy / name)
    with pytest.raises(UserError):
        prepare_scans(copy, tmp_path / "prepared", processes=1)


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl", "evaluation/summary.json"])
def test_a_report_reads_regular_files(finished, tmp_path, name):
    from dkuxnet.report.page import write_report

    run = shutil.copytree(finished, tmp_path / "run")
    replace(run / name)
    with pytest.raises(UserError, match=Path(name).name):
        write_report(run)


@pytest.mark.parametrize("which", ["predictions", "labels"])
def test_label_maps_to_score_are_regular_files(finished, scans, tmp_path, which):
    from dkuxnet.evaluation.evaluate import evaluate_folders

    predictions = shutil.copytree(finished / "evaluation" / "predictions", tmp_path / "a")
    labels = shutil.copytree(scans / "labelsTr", tmp_path / "b")
    [name] = [path.name for path in predictions.glob("*.nii.gz")]
    replace((predictions if which == "predictions" else labels) / name)
    with pytest.raises(UserError):
        evaluate_folders(predictions, labels)
