"""A benchmark on tiny synthetic scans, end to end: what is finished stays, what was stopped goes
on, what fails is told.
"""

import csv
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dkuxnet.benchmark import figures, trainings
from dkuxnet.benchmark.benchmark import Watch, run_benchmark
from dkuxnet.benchmark.trainings import tell_death, usable_cores
from dkuxnet.cli import commands as cli
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.data import phantom
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.supervised import Supervised
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training import experiment
from dkuxnet.training.loop import Interrupted

TINY = """
prepared = "{prepared}"
output = "out"
labelled = [2]
seeds = [0]
networks = ["dk-uxnet-tiny"]
[settings]
data.test_cases = 2
train = {{ steps = 4, reference_cases = 0, patch = [16, 16, 16], labelled_batch = 1, \
unlabelled_batch = 1, log_every = 1, device = "cpu" }}
network = {{ widths = [8, 8, 8, 8], query_channels = 16 }}
infer.overlap = 0.0
[methods.supervised]
[methods.paper]
method = "dual-mutual"
form = "mse"
"""
RUNS = [
    "supervised_dk-uxnet-tiny_nall_seed0",
    "supervised_dk-uxnet-tiny_n2_seed0",
    "paper_dk-uxnet-tiny_n2_seed0",
]
MINE = """
import os, signal, torch
from dkuxnet.models.methods.supervised import Supervised

class Mine(Supervised):
    "A method of somebody's own, registered from outside."

class Diverges(Supervised):
    def losses(self, batch, step):
        return {"seg": super().losses(batch, step)["seg"] * float("nan")}

class Faulty(Supervised):
    def losses(self, batch, step):
        raise IndexError("no such layer")

class Late(Supervised):
    "Fails after it has been saved."
    def losses(self, batch, step):
        if step == 3:
            raise self.fault
        return super().losses(batch, step)

class LateFaulty(Late):
    fault = IndexError("no such layer")

class LateFull(Late):
    fault = MemoryError()

class LateDiverges(Supervised):
    def losses(self, batch, step):
        return {"seg": super().losses(batch, step)["seg"] * (float("nan") if step == 3 else 1)}

class Dies(Supervised):
    def losses(self, batch, step):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Six cases of which the first five have a label: with two for testing, a pool of three
    labelled and one without.
    """
    folder = tmp_path_factory.mktemp("benchmark")
    phantom.write_dataset(folder / "scans", cases=6, labelled=5, size=20, seed=4)
    prepare_scans(folder / "scans", folder / "prepared", processes=1)
    return folder / "prepared"


@pytest.fixture(scope="module", autouse=True)
def threads():
    """As many threads as each of two processes gets, so that results can be compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, usable_cores() // 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory) -> Path:
    """The folder of a grid that was run to its end; read only."""
    folder = tmp_path_factory.mktemp("finished")
    run_benchmark(write(folder, prepared))
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.fixture
def own_methods(tmp_path, monkeypatch):
    (tmp_path / "own_methods.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Mine", "Diverges", "Faulty", "Dies"):
        monkeypatch.setitem(METHODS, name.lower(), f"own_methods:{name}")


def write(folder: Path, prepared: Path, *changes: tuple[str, str]) -> Path:
    text = TINY.format(prepared=prepared)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "grid.toml").write_text(text, "utf-8")
    return folder / "grid.toml"


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time."""
    return {
        str(p): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def runs_in(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "out" / "runs").iterdir())


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "runs" / run / "final.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_every_run_is_made_and_the_tables_hold_its_figures(finished):
    assert runs_in(finished) == sorted(RUNS)
    content = json.loads((finished / "out" / "benchmark.json").read_text("utf-8"))
    [table] = content["tables"]
    assert (content["done"], content["wanted"], content["steps"], content["facts"]["pool"]) == (
        3,
        3,
        4,
        4,
    )
    for row, run in zip([table["bound"], *table["rows"]], RUNS, strict=True):
        folder = finished / "out" / "runs" / run
        summary = json.loads((folder / "evaluation" / "summary.json").read_text("utf-8"))[
            "statistics"
        ]["foreground mean"]
        for metric, key in (("dice", "Dice"), ("hd95_mm", "HD95_mm"), ("asd_voxels", "ASD_voxels")):
            assert row["metrics"][metric][0] == pytest.approx(summary[key]["mean"])
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        assert len(row["cases"]) == 2 == len(manifest["split"]["test"])
        assert len(manifest["split"]["labelled"]) == (3 if row is table["bound"] else 2)
    settings = json.loads(
        (finished / "out" / "runs" / RUNS[2] / "settings.json").read_text("utf-8")
    )
    assert (
        settings["method"]["name"],
        settings["method"]["form"],
        settings["data"]["labelled"],
    ) == ("dual-mutual", "mse", 2)
    for name in ("benchmark.md", "benchmark.html", "figure.svg"):
        assert (finished / "out" / name).stat().st_size > 1000
    assert not (finished / "out" / "failed").exists()


def test_cases_csv_holds_every_class_and_case_of_every_finished_run(finished):
    with (finished / "out" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("arm", "network", "labelled", "seed", "case", "class")
    figures = ("dice", "asd_mm", "n_ref", "pred_ml")
    found = {tuple(row[key] for key in keys): row for row in rows}
    expected = 0
    for run in RUNS:
        arm, network, labelled, seed = run.split("_")
        names = (arm, network, labelled.removeprefix("n"), seed.removeprefix("seed"))
        path = finished / "out" / "runs" / run / "evaluation" / "cases.csv"
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                here = found[*names, row["case"], row["class"]]
                assert [float(here[f] or "nan") for f in figures] == pytest.approx(
                    [float(row[f] or "nan") for f in figures], nan_ok=True
                )
                expected += 1
    assert len(rows) == expected == 12


def test_finished_runs_are_not_made_again_and_a_grid_may_grow_and_shrink(copied, prepared):
    before, calls = state(copied / "out" / "runs"), []
    watch = Watch(ended=lambda run, error, comparison: calls.append(run.name))
    comparison = run_benchmark(copied / "grid.toml", watch=watch)
    assert comparison.done == 3 and not calls and state(copied / "out" / "runs") == before

    grown = write(
        copied, prepared, ('"mse"', '"mse"\n[methods.kl]\nmethod = "dual-mutual"\nform = "kl"')
    )
    comparison = run_benchmark(grown, watch=watch)
    assert calls == ["kl_dk-uxnet-tiny_n2_seed0"] and comparison.done == comparison.wanted == 4
    after = state(copied / "out" / "runs")
    assert {path: after[path] for path in before} == before

    shrunk = write(
        copied, prepared, ('[methods.paper]\nmethod = "dual-mutual"\nform = "mse"\n', "")
    )
    comparison = run_benchmark(shrunk, watch=watch)
    assert comparison.wanted == 2 and [row.arm for row in comparison.tables[0].rows] == [
        "supervised"
    ]
    assert "paper" not in (copied / "out" / "benchmark.md").read_text("utf-8")
    assert state(copied / "out" / "runs") == after and len(calls) == 1


def test_a_stopped_benchmark_goes_on_where_it_was(finished, prepared, tmp_path):
    """Stopped at step 2 of the second run: the first is kept, the second continued, and all equal
    the run in one go.
    """
    file = write(tmp_path / "stopped", prepared)

    def stop(run, what, done, total, figures):
        if run == RUNS[1] and (what, done) == ("train", 2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(
        Interrupted, match="stopped; finished runs and the states of unfinished ones are in"
    ):
        run_benchmark(file, watch=Watch(progress=stop))
    folder = file.parent
    assert runs_in(folder) == sorted(RUNS[:2])
    assert RunFolder(folder / "out" / "runs" / RUNS[1]).has_checkpoint
    assert "1 of 3 runs finished" in (folder / "out" / "benchmark.md").read_text("utf-8")
    first, steps = state(folder / "out" / "runs" / RUNS[0]), []

    def note(run, what, done, total, figures):
        if what == "train":
            steps.append((run, done))

    assert run_benchmark(file, watch=Watch(progress=note)).done == 3
    assert steps == [(RUNS[1], 3), (RUNS[1], 4), *((RUNS[2], n) for n in (1, 2, 3, 4))]
    assert state(folder / "out" / "runs" / RUNS[0]) == first
    assert all(same(weights(folder, run), weights(finished, run)) for run in RUNS)


def test_the_figures_of_a_run_are_read_once(copied, monkeypatch):
    shutil.rmtree(copied / "out" / "runs" / RUNS[2])
    read, original = [], figures.read_run

    def noting(folder, remedy):
        read.append(folder.name)
        return original(folder, remedy)

    monkeypatch.setattr(figures, "read_run", noting)
    assert run_benchmark(copied / "grid.toml").done == 3 and read == RUNS


def test_a_run_that_was_killed_before_it_saved_is_made_anew(copied, finished):
    run = copied / "out" / "runs" / RUNS[1]
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    for path in (*(run / "checkpoints").iterdir(), run / "final.safetensors"):
        path.unlink()
    (run / "manifest.json").write_text(
        json.dumps({key: value for key, value in manifest.items() if key != "test"})
    )
    assert run_benchmark(copied / "grid.toml").done == 3
    assert same(weights(copied, RUNS[1]), weights(finished, RUNS[1]))


@pytest.mark.slow
def test_two_processes_give_the_same_and_a_death_harms_no_other(
    finished, prepared, tmp_path, own_methods
):
    paper = '[methods.paper]\nmethod = "dual-mutual"\nform = "mse"\n'
    file = write(tmp_path / "two", prepared, (paper, "[methods.dies]\n"))
    comparison = run_benchmark(file, processes=2)
    assert comparison.done == 2
    assert comparison.failed == {
        "dies_dk-uxnet-tiny_n2_seed0": tell_death(-9)
    } and "SIGKILL" in tell_death(-9)
    assert all(same(weights(file.parent, run), weights(finished, run)) for run in RUNS[:2])
    for run in RUNS[:2]:
        manifest = json.loads(
            (file.parent / "out" / "runs" / run / "manifest.json").read_text("utf-8")
        )
        assert manifest["machine"]["cpu_threads"] == max(1, usable_cores() // 2)


@pytest.mark.slow
def test_sigterm_stops_every_process_after_it_saved(prepared, tmp_path):
    file = write(tmp_path / "long", prepared, ("steps = 4", "steps = 100000"))
    command = [
        str(Path(sys.executable).with_name("dkuxnet")),
        "benchmark",
        str(file),
        "--processes",
        "2",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        begun = [
            process.stdout.readline() for _ in range(2)
        ]  # a line where each of the first two has trained a step
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        pids = children.read_text().split() if children.exists() else []
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert sorted(line.split(":")[0] for line in begun) == sorted(RUNS[:2])
    assert f"Go on with the same command: dkuxnet benchmark {file} --processes 2" in err
    folders = sorted((file.parent / "out" / "runs").iterdir())
    assert [f.name for f in folders] == sorted(RUNS[:2]) and all(
        RunFolder(f).has_checkpoint for f in folders
    )
    left = [path.read_text() for pid in pids if (path := Path(f"/proc/{pid}/cmdline")).exists()]
    assert not any(
        "spawn_main" in line for line in left
    )  # beside these there is a helper that ends by itself


@pytest.mark.slow
def test_a_failed_arm_is_told_and_the_others_are_done(
    prepared, tmp_path, own_methods, monkeypatch, capsys
):
    """Two kinds of failure, and a method of one's own that is in the table like any other."""
    arms = (
        "[methods.supervised]",
        "[methods.diverges]\n[methods.faulty]\n[methods.mine]\nw_qd = 0.2",
    )
    file = write(tmp_path / "failing", prepared, arms)
    monkeypatch.setattr(sys, "argv", ["dkuxnet", "benchmark", str(file)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 1
    name = "{}_dk-uxnet-tiny_n2_seed0".format
    assert f"error: {name('diverges')} failed: not finite at step 0: " in err
    assert (
        f"error: {name('faulty')} failed: IndexError: no such layer (see {tmp_path}" in err
        and len(err.splitlines()) == 2
    )
    assert out.count("no such layer") == 1  # when it happened; the last words are those on stderr
    report = tmp_path / "failing" / "out" / "failed" / f"{name('faulty')}.txt"
    assert "in losses" in report.read_text("utf-8")
    assert runs_in(tmp_path / "failing") == sorted([*RUNS, name("mine")])
    text = (tmp_path / "failing" / "out" / "benchmark.md").read_text("utf-8")
    failed = "0 of 1 (1 failed) | failed |"
    for line in (f"| diverges | {failed}", f"| faulty | {failed}", "| mine | 1 of 1 | 0."):
        assert line in text and line in out
    content = json.loads((tmp_path / "failing" / "out" / "benchmark.json").read_text("utf-8"))
    methods = [row["method"] for row in content["tables"][0]["rows"]]
    assert methods == ["supervised", "diverges", "faulty", "mine", "dual-mutual"]

    monkeypatch.setitem(METHODS, "faulty", "own_methods:Mine")  # mended
    monkeypatch.setitem(METHODS, "diverges", "own_methods:Mine")
    assert run_benchmark(file).failed == {} and not report.exists()


@pytest.mark.parametrize("fault, first", [("LateFaulty", 1), ("LateDiverges", 1), ("LateFull", 3)])
def test_a_mended_method_has_no_step_of_the_faulty_one_but_what_stopped_from_outside_goes_on(
    prepared, tmp_path, own_methods, monkeypatch, fault, first
):
    file = write(
        tmp_path / "late",
        prepared,
        ("log_every = 1", "log_every = 1, save_every = 2"),
        ('[methods.paper]\nmethod = "dual-mutual"\nform = "mse"\n', "[methods.mine]\n"),
    )
    monkeypatch.setitem(METHODS, "mine", f"own_methods:{fault}")
    assert list(run_benchmark(file).failed) == ["mine_dk-uxnet-tiny_n2_seed0"]
    folder = RunFolder(file.parent / "out" / "runs" / "mine_dk-uxnet-tiny_n2_seed0")
    assert folder.has_checkpoint == (first == 3)

    monkeypatch.setitem(METHODS, "mine", "own_methods:Mine")  # mended
    if first == 3:  # memory that runs out before the first step costs no steps either
        with monkeypatch.context() as patched:
            patched.setattr(experiment, "to_device", lambda *_: torch.empty(2**60))
            [line] = run_benchmark(file).failed.values()
        assert line.startswith("out of memory: take a smaller network") and folder.has_checkpoint
    steps = []
    watch = Watch(
        progress=lambda run, what, done, total, figures: (
            steps.append(done) if what == "train" else None
        )
    )
    assert run_benchmark(file, watch=watch).failed == {} and steps == list(range(first, 5))


# --- refused before anything is made ---


OTHER = {
    "recipe": (
        ("steps = 4", "steps = 5"),
        r"out holds runs of another grid: train.steps is 4 there, 5 here \(supervised_",
    ),
    "arm": (
        ('"mse"', '"kl"'),
        r'method.form is "mse" there, "kl" here \(paper_.*; choose another output',
    ),
    "option": (('form = "mse"', 'form = "mse"\nw_qd = 0.3'), "method.w_qd is 0.1 there, 0.3 here"),
    "test list": (("test_cases = 2", "test_cases = 1"), "data.test_cases is 2 there, 1 here"),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_grid_is_refused_with_files_untouched(copied, prepared, name):
    change, message = OTHER[name]
    shutil.rmtree(
        copied / "out" / "runs" / RUNS[0]
    )  # would be made first: what differs comes later
    file, before = write(copied, prepared, change), state(copied / "out")
    with pytest.raises(UserError, match=message):
        run_benchmark(file)
    assert state(copied / "out") == before and runs_in(copied) == sorted(RUNS[1:])


def edit_settings(run: Path, edit) -> None:
    content = json.loads((run / "settings.json").read_text("utf-8"))
    edit(content)
    (run / "settings.json").write_text(json.dumps(content))


def test_a_run_from_before_an_option_existed_is_the_one_with_its_default(copied, prepared):
    for run in RUNS:
        edit_settings(copied / "out" / "runs" / run, lambda content: content["method"].pop("w_qd"))
    assert run_benchmark(copied / "grid.toml").done == 3
    with pytest.raises(UserError, match=r"method\.w_qd is 0\.1 there, 0\.3 here"):
        run_benchmark(write(copied, prepared, ('form = "mse"', 'form = "mse"\nw_qd = 0.3')))


def test_a_run_from_before_an_option_that_changed_its_method_is_another_grid(copied, prepared):
    """`paper` has no averages, so its outlines do not move either way; the run is what its
    settings say all the same.
    """
    edit_settings(
        copied / "out" / "runs" / RUNS[2], lambda content: content["method"].pop("outline")
    )
    with pytest.raises(UserError, match=r"another grid: method\.outline is 0\.0 there, 0\.25 here"):
        run_benchmark(copied / "grid.toml")


def test_a_run_with_an_option_that_is_no_more_is_another_grid(copied):
    edit_settings(
        copied / "out" / "runs" / RUNS[2], lambda content: content["method"].update(gone=1)
    )
    with pytest.raises(
        UserError, match=r"another grid: method\.gone is 1 there, not set here \(paper_"
    ):
        run_benchmark(copied / "grid.toml")


def test_how_a_run_is_made_is_no_other_grid(copied, prepared):
    before = state(copied / "out" / "runs")
    file = write(
        copied,
        prepared,
        ("data.test_cases = 2", "data = { test_cases = 2, workers = 0, cache_gib = 1.0 }"),
        ('log_every = 1, device = "cpu"', 'log_every = 3, save_every = 3, device = "auto"'),
    )
    assert run_benchmark(file).done == 3 and state(copied / "out" / "runs") == before


def test_a_default_that_has_changed_since_is_another_grid(copied, monkeypatch):
    @dataclass(frozen=True)
    class Changed(Supervised.Options):
        w_qd: float = 0.2

    monkeypatch.setattr(Supervised, "Options", Changed)
    with pytest.raises(UserError, match=r"method\.w_qd is 0\.1 there, 0\.2 here"):
        run_benchmark(copied / "grid.toml")


def test_other_data_and_other_lists_are_refused(copied, prepared, tmp_path):
    other = shutil.copytree(prepared, tmp_path / "other")
    meta = json.loads((other / "dataset.json").read_text("utf-8"))
    meta["plan"]["spacing_mm"] = [9.0, 9.0, 9.0]
    (other / "dataset.json").write_text(json.dumps(meta))
    before = state(copied / "out")
    with pytest.raises(UserError, match=r"plan is .* there, .* here"):
        run_benchmark(copied / "grid.toml", prepared=other)
    names = [case["name"] for case in meta["cases"]]
    (copied / "split.json").write_text(
        json.dumps({"train": names[:3], "test": names[3:5]})
    )  # the case without label left out
    file = write(
        copied, prepared, ("data.test_cases = 2", 'data.test_cases = 2\ndata.split = "split.json"')
    )
    with pytest.raises(UserError, match=r"the unlabelled list is .* there, .* here"):
        run_benchmark(file)
    (copied / "split.json").write_text(
        json.dumps({"train": [*names[:3], names[5]], "test": names[3:5]})
    )
    assert run_benchmark(file).done == 3  # the same lists, from a file
    assert {path: at for path, at in state(copied / "out").items() if "/runs/" in path} == {
        path: at for path, at in before.items() if "/runs/" in path
    }


def test_a_folder_that_is_no_run_is_not_replaced(copied):
    run = copied / "out" / "runs" / RUNS[1]
    (run / "settings.json").unlink()
    before = state(copied / "out")
    with pytest.raises(UserError, match="is there and is no run"):
        run_benchmark(copied / "grid.toml")
    assert state(copied / "out") == before


@pytest.mark.parametrize("content", ["7", "[]", '{"split": null, "test": {}}'])
def test_a_damaged_manifest_is_one_line_too(copied, content):
    (copied / "out" / "runs" / RUNS[1] / "manifest.json").write_text(content)
    with pytest.raises(
        UserError, match=rf"{RUNS[1]}/manifest\.json: .*; it is damaged, or not of a run"
    ):
        run_benchmark(copied / "grid.toml")


def test_damaged_figures_are_told_before_a_training(copied):
    shutil.rmtree(copied / "out" / "runs" / RUNS[0])
    (copied / "out" / "runs" / RUNS[2] / "evaluation" / "cases.csv").write_text("case\n")
    with pytest.raises(UserError, match=r"cases.csv: damaged"):
        run_benchmark(copied / "grid.toml")
    assert runs_in(copied) == sorted(RUNS[1:])


def test_a_second_benchmark_in_the_same_folder_is_refused(copied):
    fcntl = pytest.importorskip("fcntl")
    with (copied / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another benchmark is at work in it"):
            run_benchmark(copied / "grid.toml")


MISTAKES = {
    "labels": (
        ("labelled = [2]", "labelled = [2, 4]"),
        "labelled holds 4, but the training pool has 3 labelled cases of 4",
    ),
    "no unlabelled batch": (
        ("unlabelled_batch = 1", "unlabelled_batch = 0"),
        "unlabelled_batch=0 paper would see no",
    ),
    "no test": (
        ("data.test_cases = 2", "data.test_cases = 0"),
        "the test list is empty, .* set data.test_cases in",
    ),
    "all test": (
        ("data.test_cases = 2", "data.test_cases = 5"),
        "data.test_cases=5 leaves none of 5 labelled cases",
    ),
    "overlap": (("data.test_cases = 2", 'data.split = "split.json"'), "is in more than one list"),
    "no split": (
        ("data.test_cases = 2", 'data.split = "none.json"'),
        "none.json: cannot read the split",
    ),
    "misfit": (('["dk-uxnet-tiny"]', '["unet"]'), "unknown setting in network.unet: 'widths'"),
    "queries": (('["dk-uxnet-tiny"]', '["uxnet-tiny"]'), "uxnet-tiny"),
    "no data": (('/prepared"', '/none"'), "is not a prepared data set; run dkuxnet prepare"),
    "device": (('"cpu"', '"gpu"'), "gpu: not available here"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_the_data_is_refused_before_anything_is_made(prepared, tmp_path, name):
    change, message = MISTAKES[name]
    first = json.loads((prepared / "dataset.json").read_text("utf-8"))["cases"][0]["name"]
    (tmp_path / "split.json").write_text(json.dumps({"train": [first], "test": [first]}))
    with pytest.raises(UserError, match=message):
        run_benchmark(write(tmp_path, prepared, change))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.toml", "split.json"]


def test_more_labels_than_leave_an_unlabelled_case_are_refused(prepared, tmp_path):
    names = [
        case["name"] for case in json.loads((prepared / "dataset.json").read_text("utf-8"))["cases"]
    ]
    (tmp_path / "split.json").write_text(
        json.dumps({"train": names[:2], "validation": [names[2]], "test": [names[4]]})
    )
    own = ("data.test_cases = 2", 'data.split = "split.json"')
    with pytest.raises(
        UserError,
        match="labelled holds 2, which leaves no case of the pool unlabelled for paper; ask",
    ):
        run_benchmark(write(tmp_path, prepared, own))
    with pytest.raises(
        UserError, match="labelled holds 3, but the training pool has 2 labelled cases of 2"
    ):
        run_benchmark(
            write(tmp_path, prepared, own, ("labelled = [2]", "labelled = [3]"))
        )  # the third validates


def test_runs_on_other_arrays_of_the_same_names_are_refused(copied, prepared, tmp_path):
    other = shutil.copytree(prepared, tmp_path / "other")
    content = json.loads((other / "dataset.json").read_text("utf-8"))
    content["cases"][0]["sha256"]["label.b2nd"] = "0" * 64
    (other / "dataset.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError, match="holds runs of another grid: arrays_sha256 is"):
        run_benchmark(write(copied, other))


def test_a_method_that_does_not_fit_a_network_is_refused_before_the_first_training(
    prepared, tmp_path
):
    """Mutual learning over queries with a network that has none."""
    plain = ("network = { widths = [8, 8, 8, 8], query_channels = 16 }\n", "")
    file = write(tmp_path, prepared, ('["dk-uxnet-tiny"]', '["uxnet-tiny"]'), plain)
    with pytest.raises(
        UserError, match="'dual-mutual' with network 'uxnet-tiny': this network has no queries"
    ):
        run_benchmark(file)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_one_line(prepared, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write there: .*; choose another output"):
        run_benchmark(write(tmp_path, prepared), output=tmp_path / "file" / "deep")


def test_cores_and_deaths(monkeypatch):
    assert 1 <= usable_cores() <= os.cpu_count()
    assert tell_death(3) == "its process ended with exit code 3"
    monkeypatch.delattr(signal, "SIGKILL")  # as on Windows
    assert tell_death(3) == "its process ended with exit code 3"


@pytest.mark.parametrize(
    "processes, missing, threads", [(1, 3, 0), (2, 3, 4), (4, 2, 4), (4, 1, 8), (9, 9, 1)]
)
def test_the_cores_are_shared_by_the_trainings_that_there_are(
    monkeypatch, processes, missing, threads
):
    given = []
    monkeypatch.setattr(trainings, "usable_cores", lambda: 8)
    monkeypatch.setattr(trainings, "train_one", lambda tell, *job: given.append(job[4]) or "")
    monkeypatch.setattr(
        trainings,
        "side_by_side",
        lambda do, jobs, *_: [(key, do(None, *job)) for key, job in jobs.items()],
    )
    runs = [SimpleNamespace(name=str(n), settings=None) for n in range(missing)]
    assert (
        len(
            list(
                trainings.make(
                    runs, SimpleNamespace(prepared=None, output=None), processes, lambda *_: None
                )
            )
        )
        == missing
    )
    assert given == [threads] * missing


def test_no_two_settings_of_the_large_benchmark_share_a_run():
    """A finished run is returned as it is: it must be the one that was asked for."""
    large = runpy.run_path(str(Path(__file__).parents[1] / "measurements" / "la_full.py"))
    base = {"method.name": "supervised", "data.labelled": 8, "train.seed": 0}
    others = (
        {"train.steps": 20},
        {"network.name": "dk-uxnet-tiny"},
        {"train.seed": 1},
        {"data.labelled": 4},
        {"method.name": "dual-mutual"},
    )
    names = [
        large["run_name"](load_settings("la-full", overrides=base | other), toy=False)
        for other in ({}, *others)
    ]
    names.append(large["run_name"](load_settings("la-full", overrides=base), toy=True))
    assert len(set(names)) == len(names) == 7 and not any("None" in name for name in names)
