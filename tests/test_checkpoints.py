"""Checkpoints: whole or known not to be, the last two kept, nothing in them executed."""

import pickle
import zipfile

import pytest
import torch

from dkuxnet import checkpoints
from dkuxnet.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20, 30):
        checkpoints.save(tmp_path / "checkpoints", {"step": step, "w": torch.full((50,), float(step))})
    return tmp_path / "checkpoints"


def steps(folder) -> list[int]:
    return [int(path.name.split("-")[0]) for path in checkpoints.listed(folder)]


def test_the_last_two_are_kept_and_the_newest_comes_back(folder):
    assert steps(folder) == [30, 20] and len(list(folder.iterdir())) == 2
    state = checkpoints.load(folder)
    assert state["step"] == 30 and torch.equal(state["w"], torch.full((50,), 30.0))


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_broken_newest_falls_back_to_the_one_before_and_says_so(folder, damage):
    newest, before = checkpoints.listed(folder)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # in the tensor's own bytes: torch alone would load it
    newest.write_bytes({"cut": bytes(content[:100]), "bit": bytes(content), "empty": b"", "other": before.read_bytes()}[damage])
    with pytest.warns(UserWarning, match=f"{newest.name}: damaged.*the checkpoint before it"):
        assert checkpoints.load(folder)["step"] == 20
    before.write_bytes(b"x")
    with pytest.raises(UserError, match=f"{before.name}: damaged"), pytest.warns(UserWarning):
        checkpoints.load(folder)


def test_what_a_kill_left_behind_is_not_taken_for_a_checkpoint(folder):
    newest = checkpoints.listed(folder)[0]
    (folder / "new.part").write_bytes(newest.read_bytes()[:1000])
    assert checkpoints.load(folder)["step"] == 30
    checkpoints.save(folder, {"step": 40})
    assert steps(folder) == [40, 30] and not (folder / "new.part").exists()


def named(folder, content: bytes):
    """`content` under the name that its checksum asks for, as the newest: only the content can give it away."""
    path = folder / "part"
    path.write_bytes(content)
    return path.rename(folder / f"{99:08d}-{checkpoints.checksum(path)}.pt")


def test_a_checkpoint_that_would_run_code_is_refused(folder):
    class Harm:
        def __reduce__(self):
            return (folder.joinpath("harm").write_text, ("done",))
    buffer = folder / "hostile"
    torch.save({"version": checkpoints.VERSION, "step": 99, "x": Harm()}, buffer)
    for content in (buffer.read_bytes(), pickle.dumps({"version": 1, "x": Harm()})):
        path = named(folder, content)
        with pytest.raises(UserError, match="damaged or not a checkpoint"):
            checkpoints.read(path)
    assert not (folder / "harm").exists()


def test_a_checkpoint_that_would_unpack_without_end_is_refused_before_it_does(folder):
    newest = checkpoints.listed(folder)[0]
    bomb = folder / "bomb"
    with zipfile.ZipFile(newest) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    path = named(folder, bomb.read_bytes())
    with pytest.raises(UserError, match="compressed"):
        checkpoints.read(path)


def test_another_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "VERSION", 0)
    path = checkpoints.save(folder, {"step": 50})
    monkeypatch.undo()
    with pytest.raises(UserError, match="version 1"):
        checkpoints.read(path)
