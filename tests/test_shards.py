"""Preparing and predicting in shares, stopping and going on: the same files as from one process."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dkuxnet.cli.commands import app
from dkuxnet.core.classes_table import read_rows
from dkuxnet.core.errors import UserError
from dkuxnet.data import parts, phantom
from dkuxnet.data.parts import Parts
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.prediction.predict import predict_scans
from test_predict import fake_run


def content(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return phantom.write_dataset(tmp_path_factory.mktemp("shards") / "scans", 7, 3, size=16)


@pytest.fixture(scope="module")
def whole(source) -> dict[str, str]:
    prepare_scans(source, source.parent / "whole", processes=1)
    return content(source.parent / "whole")


def share(source: Path, target: Path, shard: tuple[int, int]) -> None:
    prepare_scans(source, target, processes=1, shard=shard)


def test_shards_that_run_together_make_the_set_of_one_process(source, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "POLL_S", 0.02)
    together = multiprocessing.get_context("fork")
    shards = [
        together.Process(target=share, args=(source, tmp_path / "set", (number, 3)))
        for number in (1, 2, 3)
    ]
    for each in shards:
        each.start()
    for each in shards:
        each.join(120)
    assert [each.exitcode for each in shards] == [0, 0, 0]
    assert content(tmp_path / "set") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_shards_one_after_another_do_what_they_can_and_the_last_joins(
    source, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(parts, "PATIENCE_S", 0.0)
    monkeypatch.setattr(parts, "POLL_S", 0.0)
    target, read = tmp_path / "set", []
    for module, name in (("storing", "check_case"), ("storing", "store_case")):
        job = getattr(__import__(f"dkuxnet.data.{module}", fromlist=[name]), name)
        monkeypatch.setattr(
            f"dkuxnet.data.{module}.{name}", lambda *given, job=job: read.append(1) or job(*given)
        )
    with pytest.raises(UserError, match=r"shard 1 of 2 .*3 cases of the shards 2 are missing"):
        share(source, target, (1, 2))
    with pytest.raises(UserError, match=r"\(store\), but 4 cases of the shards 1 are missing"):
        share(source, target, (2, 2))
    assert not target.exists()
    share(source, target, (1, 2))
    assert content(target) == whole and len(read) == 2 * 7  # each case once, in each pass
    with pytest.raises(UserError, match="exists already; the shards may have finished it"):
        share(source, target, (2, 2))


def test_what_does_not_fit_together_is_one_line(source, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PATIENCE_S", 0.0)
    target = tmp_path / "set"
    with pytest.raises(UserError, match="are missing"):
        share(source, target, (1, 2))
    with pytest.raises(UserError, match="was begun with another spacing; give all shards the same"):
        prepare_scans(source, target, 3.0, processes=1, shard=(2, 2))
    with pytest.raises(UserError, match="another shards"):
        share(source, target, (2, 3))
    for wrong in ("0/2", "3/2", "a/b", "2"):
        done = CliRunner().invoke(app, ["prepare", "a", "b", "--shard", wrong])
        assert done.exit_code == 2 and "expected I/N" in done.output


def stopped(source: Path, target: Path) -> None:
    """Prepares, and is killed when it has stored two cases."""
    from dkuxnet.data import prepare, storing

    store, done = storing.store_noting, []

    def until_two(*given):
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)
        return store(*given)

    prepare.store_noting = until_two
    prepare_scans(source, target, processes=1)


def test_a_preparation_that_was_killed_goes_on(source, whole, tmp_path, monkeypatch):
    target = tmp_path / "set"
    killed = multiprocessing.get_context("fork").Process(target=stopped, args=(source, target))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL and not target.exists()
    told: list[tuple[str, int]] = []
    changed = source / "imagesTr" / "phantom_000_0000.nii.gz"
    os.utime(changed, (time.time(), time.time()))  # another scan, for all that is known
    prepare_scans(source, target, processes=1, progress=lambda what, i, n: told.append((what, n)))
    assert content(target) == whole
    assert dict(told) == {"check": 1, "store": 6}  # the changed one again, and the five that lacked
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_preparation_of_something_else_begins_anew(source, whole, tmp_path):
    left = tmp_path / "set.parts"
    left.mkdir()
    (left / "asked.json").write_text(json.dumps({"source": "another"}))
    (left / "cases").mkdir()
    (left / "cases" / "stranger.json").write_text("{}")
    prepare_scans(source, tmp_path / "set", processes=1)
    assert content(tmp_path / "set") == whole


# --- prediction ---


def test_shards_predict_into_one_folder_and_what_is_there_is_skipped(source, tmp_path, monkeypatch):
    run, scans, out = fake_run(monkeypatch), source / "imagesTr", tmp_path / "out"
    whole = predict_scans(run, [scans], tmp_path / "whole")
    first = predict_scans(run, [scans], out, shard=(1, 2))
    second = predict_scans(run, [scans], out, shard=(2, 2))
    assert sorted(each.name for each in first + second) == [each.name for each in whole]
    assert sorted(read_rows(out)) == sorted(read_rows(tmp_path / "whole"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    first[0].unlink()
    (again,) = predict_scans(run, [scans], out, skip_existing=True)
    assert again == first[0] and sorted(read_rows(out)) == sorted(read_rows(tmp_path / "whole"))
    del before[again]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert predict_scans(run, [scans], out, skip_existing=True) == []


def test_the_scans_may_stand_in_a_list_on_stdin(source, tmp_path, monkeypatch):
    fake_run(monkeypatch)
    scans = sorted((source / "imagesTr").iterdir())[:2]
    given = "".join(f"{path}\n" for path in scans)
    command = ["predict", "run", "-", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command, input=given)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2")
    shutil.rmtree(tmp_path / "out")
    done = CliRunner().invoke(app, command, input=given)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


def test_a_journal_of_many_cases_is_read_and_its_half_line_is_not(tmp_path):
    own = Parts(tmp_path / "set", (1, 1))
    path = own.folder / "shard-1-of-1" / "check.jsonl"
    path.parent.mkdir(parents=True)
    lines = [json.dumps([f"case_{n}", [n], "x" * 200_000]) for n in range(100)]  # 20 MB
    path.write_text("\n".join(lines) + '\n["case_100", [100], "x')
    assert [*own._read("check", 1)] == [f"case_{n}" for n in range(100)]
    with path.open("a") as file:
        file.write('"]\n')
    assert len(own._read("check", 1)) == 101  # the rest of it, and no line a second time
    path.write_text("no list\n")
    with pytest.raises(UserError, match=r"it is damaged .*; delete .*set\.parts"):
        Parts(tmp_path / "set", (1, 1))._read("check", 1)


def test_a_line_that_was_half_written_when_it_was_killed_is_written_anew(
    source, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(parts, "PATIENCE_S", 0.0)
    with pytest.raises(UserError, match="are missing"):
        share(source, tmp_path / "set", (1, 2))
    for number in (1, 2):
        journal = tmp_path / "set.parts" / f"shard-{number}-of-2" / "check.jsonl"
        journal.parent.mkdir(exist_ok=True)
        with journal.open("a") as file:
            file.write('["phantom_00')
    for number in (2, 1):
        with suppress(UserError):
            share(source, tmp_path / "set", (number, 2))
    assert content(tmp_path / "set") == whole
