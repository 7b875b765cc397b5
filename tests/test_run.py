"""A run folder: whole files or none, damage noticed."""

import json

import pytest
import torch

import described
from dkuxnet.core.config import Settings, validate
from dkuxnet.core.errors import UserError
from dkuxnet.machine.files import atomically, write_json
from dkuxnet.runs.folder import RunFolder

SETTINGS = validate({"train": {"steps": 7}})


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", SETTINGS, described.manifest())


def test_create_open_and_update(run):
    again = RunFolder.open(run.folder)
    again.update_manifest(steps_done=3)
    assert again.settings == SETTINGS and again.manifest == described.manifest(steps_done=3)


def test_an_existing_folder_is_refused_and_left_alone(run):
    with pytest.raises(UserError, match="exists already"):
        RunFolder.create(run.folder, Settings(), described.manifest())
    assert run.settings == SETTINGS


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_a_file_in_the_way_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        RunFolder.create(tmp_path / "file" / "run", SETTINGS, described.manifest())


def test_metrics_rewind_to_the_step_of_the_checkpoint(run):
    for step in (1, 3, 5):
        run.log(step, {"loss": float(step)})
    run.rewind_metrics(4)
    run.log(4, {"loss": 0.0})
    assert [row["step"] for row in run.metrics()] == [1, 3, 4]


def test_a_last_line_that_a_kill_cut_off_is_ignored_and_damage_elsewhere_is_not(run):
    path = run.folder / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 3, "lo')
    assert run.metrics() == [{"step": 1, "loss": 2.0}]
    run.rewind_metrics(9)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'
    path.write_text('{"step"\n{"step": 3, "loss": 2.0}\n')
    with pytest.raises(UserError, match="line 1 is damaged"):
        run.metrics()


def test_a_run_that_saved_nothing_leaves_its_name_free(run):
    kept = RunFolder.create(run.folder.with_name("kept"), SETTINGS, described.manifest())
    kept.save_checkpoint({"step": 1})
    for folder in (run, kept):
        folder.discard_unless_saved()
    assert not run.folder.exists() and kept.folder.exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def fails(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        atomically(path, fails)
    assert json.loads(path.read_text()) == {"x": 1} and [p.name for p in tmp_path.iterdir()] == [
        "a.json"
    ]


def test_weights_and_checkpoints_come_back_and_damage_is_noticed(run):
    run.save_weights("final", {"w": torch.arange(3.0)})
    run.save_checkpoint({"step": 7})
    assert (
        torch.equal(run.load_weights("final")["w"], torch.arange(3.0))
        and run.load_checkpoint()["step"] == 7
    )
    [checkpoint] = (run.folder / "checkpoints").iterdir()
    weights = run.folder / "final.safetensors"
    for path, load in (
        (weights, lambda: run.load_weights("final")),
        (checkpoint, run.load_checkpoint),
    ):
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(UserError, match="damaged"):
            load()
        path.unlink()
        with pytest.raises(UserError, match=r"missing|no checkpoint"):
            load()
