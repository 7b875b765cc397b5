"""A stranger's folder whose links lead outside of it: no command writes through them, and none
removes what is not its own.
"""

import os
from pathlib import Path

import pytest

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.experiment import run_training
from tiny import UXNET

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links")
TINY = UXNET | {"train.steps": 2, "data.test_cases": 1}


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder that nothing may touch: the test fails where it is changed."""
    folder = tmp_path / "outside"
    (folder / "folder").mkdir(parents=True)
    (folder / "file").write_text("kept")
    (folder / "folder" / "deep").write_text("kept")
    before = state(folder)
    yield folder
    assert state(folder) == before


def state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@pytest.fixture
def run(prepared, tmp_path) -> Path:
    run_training(prepared, tmp_path / "run", load_settings(overrides=TINY))
    return tmp_path / "run"


def lead_away(path: Path, outside: Path) -> None:
    """A link in the place of `path`, to a folder where it is one."""
    folder = path.is_dir() or not path.suffix
    if path.exists() or path.is_symlink():
        path.rename(path.with_name(f"real{path.name}"))
    path.symlink_to(outside / ("folder" if folder else "file"))


@pytest.mark.parametrize(
    "name",
    [
        "evaluation",
        "evaluation/predictions",
        "evaluation/maps",
        "evaluation/summary.json",
        "tensorboard",
        "checkpoints",
        "metrics.jsonl",
        "manifest.json",
        "final.safetensors",
        ".lock",
    ],
)
def test_a_training_goes_on_in_its_own_folder_alone(run, prepared, outside, name):
    lead_away(run / name, outside)
    with pytest.raises(UserError, match="is a link"):
        run_training(prepared, run, load_settings(), resume=True)


@pytest.mark.parametrize("name", ["tensorboard", "checkpoints", "metrics.jsonl"])
def test_a_run_that_is_opened_otherwise_writes_through_no_link(run, outside, name):
    lead_away(run / name, outside)
    folder = RunFolder.open(run)
    with pytest.raises(UserError, match="is a link"):
        folder.log(9, {"loss": 1.0})
        folder.save_checkpoint({"step": 9})


@pytest.mark.parametrize(
    "name", ["settings.json", "checkpoints", "tensorboard", "best.safetensors"]
)
def test_what_is_discarded_lies_in_the_folder(tmp_path, outside, name):
    (tmp_path / "run").mkdir()
    lead_away(tmp_path / "run" / name, outside)
    RunFolder(tmp_path / "run").discard_unless_saved()


GRID = """
prepared = "{prepared}"
output = "out"
labelled = [2]
seeds = [0]
networks = ["uxnet-tiny"]
[methods.supervised]
[settings]
data.test_cases = 1
train = {{ steps = 1, patch = [16, 16, 16], labelled_batch = 1, device = "cpu" }}
network = {{ widths = [4, 4, 4, 4], depths = [1, 0, 0, 0] }}
"""
NAME = "supervised_uxnet-tiny_nall_seed0"


@pytest.mark.parametrize("where", ["runs", "failed", ".lock", f"runs/{NAME}"])
def test_a_benchmark_writes_into_its_own_folder_alone(prepared, tmp_path, outside, where):
    from dkuxnet.benchmark.benchmark import run_benchmark

    (tmp_path / "grid.toml").write_text(GRID.format(prepared=prepared))
    path = tmp_path / "out" / where
    path.parent.mkdir(parents=True)
    (tmp_path / "empty").mkdir()  # a folder that a training would take for a new one
    path.symlink_to(outside / "file" if where == ".lock" else tmp_path / "empty")
    with pytest.raises(UserError, match=f"{Path(where).name} is a link"):
        run_benchmark(tmp_path / "grid.toml")
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("kind", ["probabilities", "uncertainty", "dataset.json", "SCAN"])
def test_a_prediction_writes_into_its_own_folder_alone(dual_run, scans, tmp_path, outside, kind):
    from dkuxnet.prediction.predict import predict_scans

    scan = scans / "imagesTr" / "phantom_000_0000.nii.gz"
    predict = lambda: predict_scans(  # noqa: E731
        dual_run, [scan], tmp_path / "out", True, True, device="cpu"
    )
    [written] = predict()
    path = written if kind == "SCAN" else tmp_path / "out" / kind
    if kind in ("probabilities", "uncertainty"):
        lead_away(path, outside)
        with pytest.raises(UserError, match="is a link"):
            predict()
    elif kind == "SCAN":  # replaced, not followed
        path.unlink()
        path.symlink_to(outside / "file")
        predict()
        assert not path.is_symlink()
    else:
        path.unlink()
        path.symlink_to(outside / "file")
        with pytest.raises(UserError, match=r"dataset\.json describes other data"):
            predict()


@pytest.mark.parametrize("there", ["file", "nothing"])
def test_a_report_replaces_a_link_and_follows_none(run, outside, there):
    from dkuxnet.report.page import write_report

    for name in ("report.html", ".report.html.part", f".report.html.{os.getpid()}"):
        (run / name).symlink_to(outside / there)
    assert not write_report(run).is_symlink() and not (outside / "nothing").exists()


@pytest.mark.parametrize("there", ["file", "nothing"])
def test_scores_replace_a_link_and_follow_none(run, scans, tmp_path, outside, there):
    from dkuxnet.evaluation.evaluate import evaluate_folders

    result = evaluate_folders(run / "evaluation" / "predictions", scans)
    for name in ("a.json", ".a.json.part", f".a.json.{os.getpid()}"):
        (tmp_path / name).symlink_to(outside / there)
    result.write_json(tmp_path / "a.json")
    assert not (tmp_path / "a.json").is_symlink() and not (outside / "nothing").exists()


@pytest.mark.parametrize("target", ["onnx", "monai-bundle"])
def test_an_export_follows_no_link(run, tmp_path, outside, target):
    from dkuxnet.export.targets import export_run

    pytest.importorskip("onnx")
    (tmp_path / "model").symlink_to(outside / "nothing")
    try:
        export_run(run, target, tmp_path / "model")
    except UserError as error:
        assert "model" in str(error)
    assert not (outside / "nothing").exists()


def test_a_second_start_by_torchrun_removes_nothing_that_was_there(
    prepared, outside, tmp_path, monkeypatch
):
    """Its first start had refused the folder, since it was there already."""
    from dkuxnet.cli.launch import goes_on

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not goes_on(outside)
    with pytest.raises(UserError, match="exists already"):
        run_training(prepared, outside, load_settings(overrides=TINY))
