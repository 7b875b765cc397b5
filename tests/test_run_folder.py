"""A run folder: whole files or none, damage noticed."""

import json
import os
import stat

import pytest
import torch

import described
from dkuxnet.core.config import Settings, validate
from dkuxnet.core.errors import UserError
from dkuxnet.machine.files import atomically, write_json
from dkuxnet.runs import folder as folder_of_run
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


def test_a_run_that_cannot_be_described_leaves_nothing(tmp_path, monkeypatch):
    """As where the disk fills up between its two files."""
    write = folder_of_run.write_json

    def full(path, content):
        if path.name == "settings.json":
            raise UserError("No space left on device")
        write(path, content)

    monkeypatch.setattr(folder_of_run, "write_json", full)
    (tmp_path / "there").mkdir()
    for run in (tmp_path / "new" / "run", tmp_path / "there" / "run"):
        with pytest.raises(UserError, match="No space left"):
            RunFolder.create(run, SETTINGS, described.manifest())
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize("name", ["notes.txt", "final.safetensors", "checkpoints/x.pt"])
def test_what_a_run_that_saved_nothing_did_not_write_stays(run, name):
    (run.folder / name).parent.mkdir(exist_ok=True)
    (run.folder / name).write_text("kept")
    run.discard_unless_saved()
    assert (run.folder / name).read_text() == "kept"


@pytest.mark.skipif(os.name != "posix", reason="umask")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_weights_states_and_figures_have_the_rights_that_the_umask_leaves(run, mask, mode):
    before = os.umask(mask)
    try:
        run.save_weights("final", {"w": torch.ones(3)})
        run.save_checkpoint({"step": 1})
        run.log(0, {"loss": 1.0})
    finally:
        os.umask(before)
    new = ("final.safetensors", "checkpoints/*", "tensorboard/*", "metrics.jsonl")
    for path in (path for pattern in new for path in run.folder.glob(pattern)):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


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
