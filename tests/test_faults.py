"""What goes wrong around a training: damaged cases, killed workers, too little memory, clocks,
read-only folders, signals.
"""

import ast
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.machine import memory
from dkuxnet.machine.devices import telling_device_errors
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.runs import checkpoints
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training import advice, experiment
from dkuxnet.training.experiment import run_training
from dkuxnet.training.loop import Interrupted
from small_disk import mounted
from tiny import UXNET, dotted

ROOT = Path(__file__).parents[1]
TINY = UXNET | {"train.steps": 6, "train.save_every": 2, "data.test_cases": 0}


def settings(**more):
    return load_settings(overrides=TINY | dotted(more))


# --- a prepared case that is damaged ---


def spoil(path: Path) -> None:
    """Another byte where blosc2 notices nothing: among the packed voxels."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("ending", ["image.b2nd", "label.b2nd", "truth.b2nd", "json"])
@pytest.mark.parametrize("damage", ["byte", "missing"])
def test_a_damaged_case_ends_the_training_with_its_name(prepared, tmp_path, ending, damage):
    copy = shutil.copytree(prepared, tmp_path / "prepared")
    path = copy / "cases" / f"phantom_000.{ending}"
    spoil(path) if damage == "byte" else path.unlink()
    split = tmp_path / "split.json"
    split.write_text(
        json.dumps({"train": ["phantom_001", "phantom_002"], "test": ["phantom_000"]})
        if ending[0] in "tj"
        else json.dumps({"train": ["phantom_000", "phantom_001"]})
    )
    with pytest.raises(UserError) as told:
        run_training(copy, tmp_path / "run", settings(data__split=str(split), train__steps=3))
    assert str(told.value).startswith(
        f"case 'phantom_000': {path} is "
    ) and "prepare the data set again" in str(told.value)
    assert "\n" not in str(told.value)


def test_every_file_of_a_prepared_set_has_its_checksum_and_sets_without_them_are_still_read(
    prepared, tmp_path
):
    copy = shutil.copytree(prepared, tmp_path / "prepared")
    meta = json.loads((copy / "dataset.json").read_text())
    named = {f"{case['name']}.{ending}" for case in meta["cases"] for ending in case["sha256"]}
    assert named == {path.name for path in (copy / "cases").iterdir()}
    for case in meta["cases"]:
        assert all(
            checkpoints.checksum(copy / "cases" / f"{case['name']}.{ending}") == sha256
            for ending, sha256 in case.pop("sha256").items()
        )
    (copy / "dataset.json").write_text(json.dumps(meta))
    spoil(copy / "cases" / "phantom_000.json")
    assert (
        PreparedSet(copy).array("phantom_000", "image").shape
        == PreparedSet(prepared).array("phantom_000", "image").shape
    )


def test_a_file_is_compared_once(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "prepared")
    data = PreparedSet(copy)
    before = data.crop("phantom_000", "image", (0, 0, 0), (4, 4, 4))
    path = copy / "cases" / "phantom_000.image.b2nd"
    path.rename(path.with_suffix(".moved"))
    shutil.copy(path.with_suffix(".moved"), path)
    path.write_bytes(path.read_bytes() + b"more")
    assert (data.crop("phantom_000", "image", (0, 0, 0), (4, 4, 4)) == before).all()
    with pytest.raises(UserError, match="damaged"):
        PreparedSet(copy).crop("phantom_000", "image", (0, 0, 0), (4, 4, 4))


# --- workers that die ---

PREPARE = """
import sys
from pathlib import Path
from dkuxnet.cli import commands as cli
from dkuxnet.data import storing
import multiprocessing, os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may inherit that it is ignored
store = storing.store_case
def slow(*job):
    os.write(1, b"working %d\\n" % os.getpid())  # at once: print would write word by word, between the other's words
    time.sleep(60)
storing.store_case = slow
sys.argv = ["dkuxnet", "prepare", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture
def preparing(scans, tmp_path):
    """A `dkuxnet prepare` in two processes, caught while both store a case; and the numbers of the
    two.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, scans, tmp_path / "prepared"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    workers = set()
    while len(workers) < 2:
        line = process.stdout.readline()
        assert line or process.poll() is None, process.stderr.read()
        if line.startswith("working"):
            workers.add(int(line.split()[1]))
    yield process, workers
    if process.poll() is None:
        process.kill()
    for worker in workers:
        if alive(worker):
            os.kill(worker, signal.SIGKILL)


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def ends(number: int) -> bool:
    until = time.monotonic() + 30
    while alive(number) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(number)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes")
def test_a_killed_worker_of_prepare_is_one_line_and_leaves_nothing(preparing, tmp_path):
    process, workers = preparing
    os.kill(min(workers), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and re.fullmatch(
        r"error: case 'phantom_00\d' or one after it: .* killed.*\n", err
    ), err
    assert "--processes 1" in err and list(tmp_path.iterdir()) == [] and all(map(ends, workers))


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_prepare_takes_its_workers_along(preparing, tmp_path, number):
    process, workers = preparing
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in err and all(map(ends, workers))
    assert [path.name for path in tmp_path.iterdir()] == ["prepared.parts"]


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes")
def test_what_a_killed_prepare_left_is_gone_on_with(preparing, scans, tmp_path):
    process, workers = preparing
    process.kill()
    process.communicate(timeout=60)
    assert all(map(ends, workers))
    told = set()
    prepare_scans(
        scans, tmp_path / "prepared", processes=1, progress=lambda what, *_: told.add(what)
    )
    assert told == {"store"}  # all was checked
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


PREDICT = """
import os, signal, sys
from pathlib import Path
from dkuxnet.data.formats import nifti
from dkuxnet.prediction.predict import predict_scans
def killed(volume, path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
nifti.NIFTI.__class__.write = staticmethod(killed)
predict_scans(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]), device="cpu")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_what_a_killed_predict_left_goes_with_the_next_one(dual_run, scans, tmp_path):
    scan, out = scans / "imagesTr" / "phantom_000_0000.nii.gz", tmp_path / "out"
    subprocess.run([sys.executable, "-c", PREDICT, dual_run, scan, out])
    assert [path.name[:6] for path in sorted(out.iterdir())] == [".part-", "datase"]
    [written] = predict_scans(dual_run, [scan], out, device="cpu")
    assert sorted(out.iterdir()) == sorted([written, out / "classes.csv", out / "dataset.json"])


BEGIN = """
import json, os, signal, sys
from pathlib import Path
from dkuxnet.core.config import load_settings
from dkuxnet.training.experiment import run_training
def kill(what, done, total, figures):
    os.kill(os.getpid(), signal.SIGKILL)
settings = load_settings(overrides=json.loads(sys.argv[3]))
run_training(Path(sys.argv[1]), Path(sys.argv[2]), settings, progress=kill)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_training_that_was_killed_before_its_first_save_goes_on(prepared, tmp_path):
    """What `train` advises then, --resume does."""
    run = tmp_path / "run"
    order = [sys.executable, "-c", BEGIN, prepared, run, json.dumps(TINY)]
    assert subprocess.run(order).returncode == -signal.SIGKILL and run.exists()
    with pytest.raises(UserError, match=r"exists already.*go on with --resume"):
        run_training(prepared, run, settings())
    run_training(prepared, run, settings(), resume=True)
    run_training(prepared, tmp_path / "whole", settings())
    a, b = (load_file(tmp_path / run / "final.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [row["step"] for row in RunFolder(run).metrics()] == list(range(6))


@pytest.mark.parametrize("there", ["notes.txt", "manifest.json"])
def test_a_folder_that_is_no_run_is_not_to_be_resumed(prepared, tmp_path, there):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / there).write_text("")
    with pytest.raises(UserError, match=r"exists already; choose another run folder$"):
        run_training(prepared, tmp_path / "run", settings())
    with pytest.raises(UserError, match="is not a run folder"):
        run_training(prepared, tmp_path / "run", settings(), resume=True)


# --- memory ---


def test_a_patch_that_no_memory_holds_is_told_with_one_that_fits(prepared, tmp_path):
    """Before the first step; the advice is taken at its word and measured."""
    with pytest.raises(UserError) as told:
        run_training(prepared, tmp_path / "run", settings(train__patch=[8192, 8192, 8192]))
    line = str(told.value)
    found = re.fullmatch(
        r"out of memory: a step on 1 patch of \[8192,8192,8192\] needs about (\d+) GiB, (\S+) GiB "
        r"were free; "
        r"train\.patch=\[(\d+),(\d+),(\d+)\] would need about (\S+) GiB",
        line,
    )
    assert found, line
    needs, free, *patch, fits = map(float, found.groups())
    assert fits <= free and needs == pytest.approx(fits * 8192**3 / math.prod(patch), rel=0.1)
    assert 0.5 * free < fits and not (tmp_path / "run").exists()


LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from dkuxnet.training import experiment
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
torch.set_num_threads(1)
make_state = experiment.make_state
def then_limited(*args):
    state = make_state(*args)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + 756 * 2**20, resource.RLIM_INFINITY))
    return state
experiment.make_state = then_limited
try:
    experiment.run_training(Path(sys.argv[1]), Path(sys.argv[2]), load_settings(overrides=json.loads(sys.argv[3])))
    print("trained")
except UserError as error:
    print(error)
"""


def test_a_patch_that_the_system_would_kill_for_is_told_before_a_case_is_read(
    prepared, tmp_path, monkeypatch
):
    """A folder that an earlier one left, killed for such a patch, blocks neither way."""
    run, huge = tmp_path / "run", settings(train__patch=[1024] * 3)
    monkeypatch.setattr(experiment, "batches", lambda *job: pytest.fail("a step was prepared"))
    with pytest.raises(UserError, match=r"out of memory: a step on .* needs about"):
        run_training(prepared, run, huge)
    assert not run.exists()
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "check_step_fits", lambda *asked: None)
        patched.setattr(RunFolder, "discard_unless_saved", lambda folder: None)  # as by SIGKILL
        patched.setattr(experiment, "batches", Mock(side_effect=UserError("killed")))
        with pytest.raises(UserError, match="killed"):
            run_training(prepared, run, huge)
    with pytest.raises(UserError, match="nothing is saved in it yet: it can be deleted"):
        run_training(prepared, run, settings())
    with pytest.raises(
        UserError, match=r"out of memory: .*; a run keeps its settings: begin a new"
    ):
        run_training(prepared, run, huge, resume=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_memory_that_ends_within_a_step_is_told_with_a_smaller_patch(prepared, tmp_path):
    """Under a limit on the process, as `ulimit -v` sets it."""
    overrides = json.dumps(TINY | {"train.patch": [128, 128, 128], "train.labelled_batch": 2})
    order = [sys.executable, "-c", LIMITED, prepared, tmp_path / "run", overrides]
    done = subprocess.run(order, text=True, capture_output=True)
    told = re.fullmatch(
        r"out of memory: a step on 2 patches of \[128,128,128\] needs about \S+ GiB, 0\.\d+ GiB "
        r"were free; .*"
        r"train\.patch=\[(\d+),(\d+),(\d+)\] would need about 0\.\d+ GiB",
        done.stdout.strip(),
    )
    assert told and math.prod(map(int, told.groups())) < 128**3 / 2, done
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words", ["[enforce fail] DefaultCPUAllocator: can't allocate memory", "std::bad_alloc"]
)
def test_whatever_words_the_cpu_has_for_it(words):
    with pytest.raises(UserError, match="out of memory: take a smaller"), telling_device_errors():
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="else"), telling_device_errors():
        raise RuntimeError("something else")


OF_MPS = (
    "The operator 'aten::max_pool3d_with_indices' is not currently implemented for the MPS device. "
    "If you want this op to be considered for addition please comment on a page.\nAs a temporary "
    "fix, you can set the environment variable `PYTORCH_ENABLE_MPS_FALLBACK=1`"
)
OF_XPU = "Could not run 'aten::_foo.bar' with arguments from the 'XPU' backend. This could be"
NO_FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            NotImplementedError(OF_MPS),
            "--device mps: torch has no aten::max_pool3d_with_indices there; set "
            "PYTORCH_ENABLE_MPS_FALLBACK=1 and the CPU does it, or use --device cpu",
        ),
        (
            NotImplementedError(OF_XPU),
            "--device xpu: torch has no aten::_foo.bar there; set "
            "PYTORCH_ENABLE_XPU_FALLBACK=1 and the CPU does it, or use --device cpu",
        ),
        (TypeError(NO_FLOAT64), "--device mps: torch has no float64 there; use --device cpu"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "out of memory: take"),
    ],
)
def test_what_a_device_cannot_do_ends_a_training_with_one_line(
    prepared, tmp_path, monkeypatch, error, told
):
    monkeypatch.setattr(experiment, "check_step_fits", Mock(side_effect=error))
    with pytest.raises(UserError) as raised:
        run_training(prepared, tmp_path / "run", settings())
    assert str(raised.value).startswith(told) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("Could not run 'aten::item' with arguments from the 'Meta' backend"),
        TypeError("can't multiply"),
    ],
)
def test_a_fault_of_the_program_is_no_fault_of_the_device(error):
    with pytest.raises(type(error)), telling_device_errors():
        raise error


def test_what_a_step_needs_is_measured(prepared, tmp_path):
    """Against the peak of a process that takes such a step, see docs/reliability.md; here: it
    grows with what is kept.
    """
    seen = []

    def look(method, job, free, resume):
        seen.append(advice.step_bytes_per_voxel(method, job, 0))
        return advice.check_step_fits(method, job, free, resume)

    for batch in (2, 6):
        with (
            pytest.MonkeyPatch.context() as patched,
            pytest.raises(UserError, match="out of memory: a step"),
        ):
            patched.setattr("dkuxnet.training.experiment.check_step_fits", look)
            run_training(
                prepared,
                tmp_path / "run",
                settings(train__patch=[8192] * 3, train__labelled_batch=batch),
            )
    assert seen[1] == pytest.approx(3 * seen[0], rel=0.05)


def test_batches_are_lowered_before_patches_and_a_half_is_advised_where_nothing_is_known(
    prepared, tmp_path
):
    from dkuxnet.models.build import build_method
    from dkuxnet.training.job import new_job

    job = new_job(prepared, settings(train__labelled_batch=4, train__patch=[32, 32, 32]))
    method = build_method(job.settings, job.shape, job.data.meta.plan.network)
    needed = advice.step_bytes_per_voxel(method, job, 0) * 32**3
    line = advice.memory_advice(method, job, int(0.7 * needed))
    assert (
        "; train.labelled_batch=1 and train.unlabelled_batch=1 would need about" in line
        and " GiB, or train.patch=[" in line
    )
    assert "train.patch=[24,24,28] would need about 49% of it" in advice.memory_advice(
        method, job, None
    )
    assert advice.memory_advice(method, job, 1000).endswith(
        "no patch would fit: take a smaller network"
    )


def test_the_memory_of_a_container_counts(tmp_path):
    for name, content in (
        ("max", "1000000"),
        ("current", "700000"),
        ("stat", "anon 5\ninactive_file 50000"),
    ):
        (tmp_path / f"memory.{name}").write_text(content + "\n")
    assert memory._of_group(memory.GROUPS[0], tmp_path) == 350_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (
        memory._of_group(memory.GROUPS[0], tmp_path) is None
        and memory._of_group(memory.GROUPS[1], tmp_path) is None
    )


# --- the clock ---


@pytest.mark.parametrize("jump", [-(10**6), 10**6])
def test_a_clock_that_jumps_changes_no_duration_and_no_save(prepared, tmp_path, monkeypatch, jump):
    """save_minutes is a day: with the jumping clock a save would be due at every step, or
    `seconds` be below 0.
    """
    now, saves = [time.time()], []
    monkeypatch.setattr(time, "time", lambda: now[0])
    save = RunFolder.save_checkpoint
    monkeypatch.setattr(
        RunFolder,
        "save_checkpoint",
        lambda run, state: (saves.append(state["step"]), save(run, state)),
    )

    def tick(what, done, total, figures):
        now[0] += jump

    manifest = run_training(
        prepared,
        tmp_path / "run",
        settings(train__save_every=4, train__save_minutes=1440.0),
        False,
        tick,
    )
    seconds = [row["seconds"] for row in RunFolder(tmp_path / "run").metrics()]
    assert saves == [4, 6] and seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] < 600
    assert 0 < manifest.train_seconds < 600


def test_no_duration_is_taken_from_a_clock_that_can_be_set():
    """time.time stands where a moment is written down, and nowhere else."""
    uses = set()
    for path in (ROOT / "src" / "dkuxnet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "time.time",
                "time.time_ns",
                "datetime.now",
            ):
                uses.add(path.name)
    assert uses <= {"contours.py", "events.py", "label_folder.py", "trackers.py"}


# --- folders that cannot be written ---


@pytest.fixture
def read_only(prepared, dual_run, tmp_path):
    """A disk that is mounted read-only, with a prepared set and a finished run on it."""
    with mounted(tmp_path / "disk", "size=1g") as disk:  # takes only what is written
        shutil.copytree(prepared, disk / "prepared")
        shutil.copytree(dual_run, disk / "dual", ignore=shutil.ignore_patterns("checkpoints"))
        (disk / "dual" / "checkpoints").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        yield disk


def test_what_is_read_only_can_be_read_and_what_cannot_be_written_is_one_line(
    read_only, scans, tmp_path
):
    scan = scans / "imagesTr" / "phantom_000_0000.nii.gz"
    run_training(
        read_only / "prepared", tmp_path / "run", settings(train__steps=2, data__test_cases=1)
    )
    assert predict_scans(read_only / "dual", [scan], tmp_path / "out", device="cpu")[0].is_file()
    refused = (
        "Read-only file system; choose a folder that can be written to|"
        "no right to write in .*; choose another --output"
    )
    for order in (
        lambda: run_training(read_only / "prepared", read_only / "run", settings()),
        lambda: run_training(read_only / "prepared", read_only / "dual", settings(), resume=True),
        lambda: prepare_scans(scans, read_only / "new", processes=1),
        lambda: predict_scans(tmp_path / "run", [scan], read_only / "out", device="cpu"),
    ):
        with pytest.raises(UserError, match=refused):
            order()


def test_what_stands_in_the_way_of_the_evaluation_is_one_line_and_the_state_is_kept(
    prepared, tmp_path
):
    run = tmp_path / "run"

    def block(what, done, total, figures):
        (run / "evaluation").write_text("a file")

    with pytest.raises(UserError, match=r"run/evaluation.*(File exists|Not a directory)"):
        run_training(prepared, run, settings(data__test_cases=1), False, block)
    (run / "evaluation").unlink()
    assert run_training(prepared, run, settings(), resume=True).test


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["safetensors.torch.save", "os.fsync", "os.replace"])
def test_a_signal_inside_a_save_does_not_break_it(prepared, tmp_path, monkeypatch, number, place):
    """The state is saved once more, whole, at the step of the signal, and the run goes on from
    there.
    """
    (within, name), packing = place.rsplit(".", 1), place == "safetensors.torch.save"
    module = importlib.import_module(within)
    real, sent = getattr(module, name), []

    def interrupted(*args, **more):
        saving = packing or any((tmp_path / "run" / "checkpoints").glob(".part-*"))
        if saving and not sent:
            sent.append(True)
            if packing:  # from another thread, so that it comes in the midst of the writing
                threading.Timer(0.001, os.kill, (os.getpid(), number)).start()
                result = [real(*args, **more), time.sleep(0.02)][0]
            else:
                os.kill(os.getpid(), number)
                result = real(*args, **more)
            return result
        return real(*args, **more)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(Interrupted, match=r"stopped at step \d of 6; the state is saved"):
        run_training(prepared, tmp_path / "run", settings())
    assert sent and not list((tmp_path / "run").rglob(".part-*"))
    assert RunFolder(tmp_path / "run").load_checkpoint()["step"] in (2, 3)
    run_training(prepared, tmp_path / "run", settings(), resume=True)


def test_a_second_signal_that_breaks_a_save_leaves_what_was_saved(prepared, tmp_path, monkeypatch):
    flush, calls = os.fsync, []

    def broken(descriptor):
        calls.extend((tmp_path / "run" / "checkpoints").glob(".part-*"))
        if len(calls) == 2:
            os.ftruncate(descriptor, 1000)  # half of it
            raise KeyboardInterrupt
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(KeyboardInterrupt):
        run_training(prepared, tmp_path / "run", settings())
    assert [path.name[:8] for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000002"]
    monkeypatch.setattr(os, "fsync", flush)
    run_training(prepared, tmp_path / "run", settings(), resume=True)
    run_training(prepared, tmp_path / "whole", settings())
    a, b = (load_file(tmp_path / run / "final.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(a[key], b[key]) for key in a)
