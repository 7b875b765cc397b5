"""A disk that fills up: one clear line, exit code 1, nothing half-written under its name; with
room again, all goes on.
"""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import described
from described import FINGERPRINT, MANIFEST
from dkuxnet.cli import launch
from dkuxnet.cli.commands import main
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.prepared_set import VERSION, PreparedSet, write_array
from dkuxnet.evaluation.evaluate import Evaluation, Score
from dkuxnet.machine.files import write_json
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.experiment import run_training
from small_disk import FULL, KINDS, small_disk
from tiny import UXNET

TINY = UXNET | {
    "train.steps": 6,
    "train.save_every": 2,
    "train.validate_every": 6,
    "data.validation_cases": 1,
    "data.test_cases": 1,
}
NOISE = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
BLOCK = 4096  # bytes that the disk takes or refuses at once


@pytest.fixture(params=KINDS)
def disk(request, tmp_path):
    with small_disk(tmp_path / "disk", request.param) as made:
        yield made


@pytest.fixture
def best_disk(tmp_path):
    with small_disk(tmp_path / "disk", "best") as made:
        yield made


@pytest.fixture
def dkuxnet(monkeypatch, capsys):
    """The command: its exit code, and the lines on stderr that are no warning."""

    def run(*args: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["dkuxnet", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, [
            line
            for line in capsys.readouterr().err.splitlines()
            if not line.startswith("warning: ")
        ]

    return run


def told(outcome: tuple[int, list[str]], where: str) -> bool:
    code, lines = outcome
    return (
        code == 1
        and len(lines) == 1
        and lines[0].startswith("error: ")
        and where in lines[0]
        and bool(re.search(FULL, lines[0]) or "rights and space" in lines[0])
    )


# --- every file that the program writes, on a disk that takes any part of it ---


def array(path: Path) -> None:
    write_array(path.with_name("cases") / "a.image.b2nd", NOISE[None])


def read_array(path: Path) -> np.ndarray:
    plan = {
        "spacing_mm": [1, 1, 1],
        "normalisation": [{"kind": "z-score"}],
        "patch": [16, 16, 16],
        "network": "none",
    }
    path.with_name("dataset.json").write_text(
        json.dumps(
            {
                "version": VERSION,
                "channels": ["MRI"],
                "labels": {"background": 0, "organ": 1},
                "plan": plan,
                "fingerprint": FINGERPRINT,
                "cases": [{"name": "a", "labelled": False, "shape": NOISE.shape}],
            }
        )
    )
    return PreparedSet(path.parent).array("a", "image")[0]


STATE = {"step": 4, "w": torch.from_numpy(NOISE)}
WRITERS = {  # write into a folder, and read what it has there
    **{
        ending: (
            lambda folder, ending=ending: formats.write(
                Volume(NOISE, np.eye(4)), folder / f"a{ending}"
            ),
            lambda folder, ending=ending: formats.read(folder / f"a{ending}").array,
        )
        for ending in formats.FORMATS
    },
    "array": (lambda folder: array(folder / "x"), lambda folder: read_array(folder / "x")),
    "weights": (
        lambda folder: RunFolder(folder).save_weights("final", {"w": STATE["w"]}),
        lambda folder: load_file(folder / "final.safetensors")["w"].numpy(),
    ),
    "checkpoint": (
        lambda folder: RunFolder(folder).save_checkpoint(STATE),
        lambda folder: RunFolder(folder).load_checkpoint()["w"].numpy(),
    ),
    "json": (
        lambda folder: write_json(folder / "a.json", NOISE[0].tolist()),
        lambda folder: np.array(json.loads((folder / "a.json").read_text()), np.float32),
    ),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_file_is_there_whole_or_not_at_all(disk, what):
    write, read = WRITERS[what]
    expected = NOISE[0] if what == "json" else NOISE
    (disk.folder / "cases").mkdir()
    before, outcomes = disk.files(), set()
    for leave in range(0, 12 * BLOCK, BLOCK):
        folder = disk.folder
        try:
            with disk.full(leave):
                write(folder)
        except UserError as error:
            outcomes.add("refused")
            assert re.search(FULL, str(error)) or "rights and space" in str(error)
            left = [name for name in disk.files() if name not in before and name != "checkpoints"]
            assert not left or left == [
                "cases/a.image.b2nd"
            ]  # `prepare` throws its whole folder away
        else:
            outcomes.add("written")
            np.testing.assert_array_equal(read(folder), expected)
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file():
                path.unlink()
    assert outcomes == {"refused", "written"}


def test_the_file_of_before_stays_where_the_new_one_does_not_fit(disk):
    run = RunFolder(disk.folder)
    for step in (2, 4):
        run.save_checkpoint({"step": step, "w": torch.full((50,), float(step))})
    run.save_weights("best", {"w": torch.ones(3)})
    write_json(disk.folder / "manifest.json", MANIFEST)
    before = disk.files()
    with disk.full(BLOCK):
        for write in (
            lambda: run.save_checkpoint(STATE | {"step": 6}),
            lambda: run.save_weights("best", {"w": STATE["w"]}),
            lambda: run.update_manifest(cases=[f"case {value}" for value in NOISE.ravel()]),
        ):
            with pytest.raises(UserError, match=FULL):
                write()
    assert (
        disk.files() == before
        and run.manifest == described.manifest()
        and run.load_checkpoint()["step"] == 4
    )
    assert load_file(disk.folder / "best.safetensors")["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("short", ["metrics.jsonl", "events"])
def test_a_logged_step_is_there_whole_or_not_at_all(disk, capfd, short):
    """Of what does not fit nothing stays, and TensorBoard's file tells it: no thread with a
    traceback.
    """
    run = RunFolder(disk.folder)
    run.log(0, {"loss": 1.0})
    log, events = disk.folder / "metrics.jsonl", next((disk.folder / "tensorboard").iterdir())
    full, other = (log, events) if short == "metrics.jsonl" else (events, log)
    full.write_bytes(
        full.read_bytes().ljust(BLOCK - 20)
    )  # the next record begins in a block that is there and ends in none
    other.write_bytes(b"")
    with (
        disk.full(0 if disk.mounted and full == log else BLOCK),
        pytest.raises(UserError, match=FULL) as told,
    ):
        run.log(1, {"loss": 2.0})
    assert (
        short in str(told.value)
        and full.stat().st_size == BLOCK - 20
        and capfd.readouterr().err == ""
    )


def test_scores_are_there_whole_or_not_at_all(disk):
    names = [f"case {i}" for i in range(200)]
    result = Evaluation(
        [Score(name, "organ", 1, *[0.5] * 6, *[1] * 6) for name in names],
        {name: (Path("p"), Path("l")) for name in names},
    )
    for write, name in ((result.write_json, "summary.json"), (result.write_csv, "cases.csv")):
        with disk.full(BLOCK), pytest.raises(UserError, match=FULL):
            write(disk.folder / name)
        assert disk.files() == []


# --- the commands ---


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("leave", [0, 3 * BLOCK])
def test_prepare(disk, scans, dkuxnet, leave, processes):
    order = ("prepare", scans, disk.folder / "new" / "prepared", "--processes", processes)
    with disk.full(leave):
        assert told(dkuxnet(*order), "new/")
        assert disk.files() == []
    assert dkuxnet(*order)[0] == 0
    data = PreparedSet(disk.folder / "new" / "prepared")
    assert all(data.array(name, "image").any() for name in data.names)


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory) -> dict[str, torch.Tensor]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    run_training(prepared, run, load_settings(overrides=TINY))
    return load_file(run / "final.safetensors")


@pytest.fixture
def when(monkeypatch):
    """Have something done when a training has got so far: (what it does, steps or cases done)."""

    def at(moment: tuple[str, int], act) -> None:
        @contextmanager
        def progress():
            yield lambda what, done, total, figures: act() if (what, done) == moment else None

        monkeypatch.setattr(launch, "train_progress", progress)

    return at


@pytest.mark.parametrize(
    "moment, leave, where",
    [
        (("train", 1), 0, "run"),  # before anything is saved
        (("train", 3), 0, "run"),
        (("train", 3), 3 * BLOCK, "checkpoints"),
        (("train", 6), 8 * BLOCK, "best.safetensors"),
        (("evaluate", 1), 0, "summary.json"),
    ],
    ids=str,
)
def test_train_and_resume(best_disk, prepared, dkuxnet, when, undisturbed, moment, leave, where):
    disk, run = best_disk, best_disk.folder / "run"
    when(moment, lambda: disk.fill(leave))
    settings = [
        part for key, value in TINY.items() for part in ("--set", f"{key}={json.dumps(value)}")
    ]
    outcome = dkuxnet("train", prepared, run, *settings)
    unsaved = moment[0] == "train" and moment[1] == 1
    assert told(outcome, where), outcome
    assert [
        name for name in disk.files() if "/.part-" in f"/{name}"
    ] == [] and run.exists() != unsaved
    disk.make_room()
    when(("train", 0), lambda: None)
    if unsaved:
        assert dkuxnet("train", prepared, run, *settings)[0] == 0
    else:
        assert RunFolder(run).load_checkpoint()["step"] == (
            2 if moment[1] == 3 else 4 if moment[0] == "train" else 6
        )
        assert dkuxnet("train", prepared, run, "--resume")[0] == 0
    weights = load_file(run / "final.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in undisturbed.items())
    assert [row["step"] for row in RunFolder(run).metrics() if "loss" in row] == list(range(6))


@pytest.mark.slow
def test_predict_and_evaluate(best_disk, dual_run, scans, dkuxnet):
    disk, output = best_disk, best_disk.folder / "out"
    inputs = [scans / "imagesTr" / f"phantom_00{i}_0000.nii.gz" for i in range(2)]
    order = (
        "predict",
        dual_run,
        *inputs,
        "--output",
        output,
        "--device",
        "cpu",
        "--save-probabilities",
    )
    for leave in (0, BLOCK, 8 * BLOCK):
        with disk.full(leave):
            assert told(dkuxnet(*order), "out")
        for name in disk.files():
            if name.endswith(".nii.gz"):
                formats.read(disk.folder / name)
            assert not Path(name).name.startswith(".")
    assert dkuxnet(*order)[0] == 0 and len(list(output.glob("*.nii.gz"))) == 2
    with disk.full():
        assert told(
            dkuxnet(
                "evaluate", output, scans / "labelsTr", "--output", disk.folder / "scores.json"
            ),
            "scores.json",
        )
    assert not (disk.folder / "scores.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_is_one_line_too():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dkuxnet", "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and re.search(FULL, done.stderr), (
        done.stderr
    )
