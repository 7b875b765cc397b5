"""Several processes train what one trains, for every method; they stop together; another number of
them goes on.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.machine import distributed
from dkuxnet.machine.distributed import joined, of_this_start, world
from dkuxnet.models.methods import METHODS, bcp, mixing
from dkuxnet.training.experiment import run_training
from tiny import DK_UXNET, UXNET, prepared_phantoms

# plain descent: AdamW would blow the rounding of vanishing gradients up to whole steps
TINY = DK_UXNET | {
    "train.labelled_batch": 4,
    "train.unlabelled_batch": 4,
    "network.drop_rate": 0.2,
    "train.steps": 2,
    "train.save_every": 1,
    "train.validate_every": 2,
    "train.warm_up_steps": 0,
    "train.optimiser": "sgd",
    "train.lr": 0.01,
    "data.validation_cases": 1,
    "data.test_cases": 3,
}
# what follows a training knows no method: one of them shows it
SHORT = {
    "data.validation_cases": 0,
    "data.test_cases": 0,
    "train.reference_cases": 0,
    "train.save_every": 2,
}
OPTIONS = {
    "ad-mt": {"method.period": 1},  # a step in the turn of each teacher
    "bcp": {"method.pretrain_steps": 1},
}

WORKER = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from dkuxnet.core.config import load_settings
from dkuxnet.machine.distributed import joined, rank
from dkuxnet.training import loop
from dkuxnet.training.experiment import run_training
torch.set_num_threads(1)
prepared, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
crossed, step = [], loop.train_step
def counting(name, call):
    def counted(*given, **more):
        crossed.append((name, sum(part.nbytes for part in given if torch.is_tensor(part))))
        return call(*given, **more)
    setattr(dist, name, counted)
def watched(state, *given):
    crossed.clear()
    told = step(state, *given)
    grads = sum(p.grad.nbytes for p in state.method.parameters() if p.grad is not None)
    assert {name for name, _ in crossed} == {"all_reduce"}, crossed
    assert grads < sum(count for _, count in crossed) < grads + 1000, (grads, crossed)
    return told
with joined():
    for name in ("all_reduce", "all_gather", "broadcast", "reduce_scatter", "all_to_all", "send"):
        counting(name, getattr(dist, name))
    loop.train_step = watched
    for folder, overrides, resume in runs:
        run_training(prepared, Path(folder), load_settings(overrides=overrides), resume)
        print(Path(folder).name, len(crossed), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return prepared_phantoms(tmp_path_factory.mktemp("data"), cases=8, labelled=6)


def start(prepared: Path, processes: int, runs: list) -> list[subprocess.Popen]:
    """Processes that train `runs`, (folder, overrides, resume) each."""
    return start_script(processes, WORKER, str(prepared), json.dumps(runs))


def start_script(processes: int, script: str, *arguments: str) -> list[subprocess.Popen]:
    """As torchrun would start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
    }
    command = [sys.executable, "-c", script, *arguments]
    return [
        subprocess.Popen(
            command,
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(processes: list[subprocess.Popen]) -> None:
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), errors


def overrides(method: str) -> dict:
    short = {} if method == "dual-mutual" else SHORT
    return TINY | short | {"method.name": method} | OPTIONS.get(method, {})


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory) -> Callable[..., Path]:
    """The runs of one process, each made when it is asked for: of a method, for comparison with so
    many processes.

    Where patches are mixed, each with the one that a process has before it. One thread, as in the
    workers: the sums of two threads round otherwise, and a voxel on the border of two queries may
    then be assigned to the other, which is a jump, not a rounding.
    """
    folder = tmp_path_factory.mktemp("alone")

    def trained(method: str, processes: int = 2) -> Path:
        mixes = lookup(METHODS, method, "method").mixes
        run, threads = (
            folder / (f"{method}-{processes}" if mixes else method),
            torch.get_num_threads(),
        )
        if not run.exists():
            torch.set_num_threads(1)
            with pytest.MonkeyPatch.context() as patch:
                for module in (mixing, bcp):
                    patch.setattr(module, "before", lambda patches: patches.roll(processes, 0))
                run_training(prepared, run, load_settings(overrides=overrides(method)))
            torch.set_num_threads(threads)
        return run

    return trained


def compare(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / "final.safetensors"), load_file(other / "final.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(
            theirs[key], value, rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (one, other)
    ]
    for mine, its in zip(*rows, strict=True):
        assert mine.keys() == its.keys()
        for key in mine.keys() - {"seconds"}:
            assert its[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), key
    if not (one / "evaluation").exists():
        return
    tables = [(run / "evaluation" / "cases.csv").read_text().splitlines() for run in (one, other)]
    assert [row.split(",")[0] for row in tables[0]] == [row.split(",")[0] for row in tables[1]]


@pytest.mark.slow
@pytest.mark.parametrize("processes, methods", [(2, list(METHODS)), (4, ["dual-mutual", "bcp"])])
def test_every_method_learns_the_same_in_several_processes(
    prepared, alone, tmp_path, processes, methods
):
    finish(
        start(
            prepared,
            processes,
            [(str(tmp_path / method), overrides(method), False) for method in methods],
        )
    )
    for method in methods:
        compare(alone(method, processes), tmp_path / method)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(prepared, alone, tmp_path):
    half = overrides("dual-mutual")
    run_training_until(prepared, tmp_path / "run", half, 1)
    finish(start(prepared, 2, [(str(tmp_path / "run"), half, True)]))
    compare(alone("dual-mutual"), tmp_path / "run")


def run_training_until(prepared: Path, run: Path, chosen: dict, step: int) -> None:
    """One process, stopped after `step` steps."""
    from dkuxnet.training.loop import Interrupted

    def stop(what, done, total, figures):
        if done == step:
            os.kill(os.getpid(), 2)

    with pytest.raises(Interrupted):
        run_training(prepared, run, load_settings(overrides=chosen), progress=stop)


@pytest.mark.slow
def test_when_one_process_dies_the_others_end_and_say_why(prepared, tmp_path):
    long = overrides("supervised") | {"train.steps": 100000, "train.log_every": 1}
    processes = start(prepared, 2, [(str(tmp_path / "run"), long, False)])
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert all(process.poll() is None for process in processes), [
            process.communicate()[1] for process in processes
        ]
    processes[1].kill()
    error = processes[0].communicate(timeout=60)[1]
    assert processes[0].returncode != 0 and "another process of this training has ended" in error


AGAIN = """
import os, sys
from pathlib import Path
from dkuxnet.machine.distributed import joined
from dkuxnet.cli.launch import goes_on
os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["RANK"]  # the second machine has counted a restart, the first has not
with joined():
    print([goes_on(Path(folder)) for folder in sys.argv[1:]], file=sys.stderr)
"""


def test_processes_that_are_started_again_agree_whether_they_go_on(tmp_path):
    """With a run that is there, saved or not; what else lies under its name stays."""
    begun, other, none = (tmp_path / name for name in ("begun", "other", "none"))
    for folder in (begun, other):
        (folder / "checkpoints").mkdir(parents=True)
    (begun / "settings.json").write_text("{}")
    processes = start_script(2, AGAIN, str(begun), str(other), str(none))
    assert [process.communicate(timeout=60)[1].splitlines()[-1] for process in processes] == [
        "[True, False, False]"
    ] * 2
    assert (other / "checkpoints").exists() and not none.exists()


MINUTES = """
import json, sys
from pathlib import Path
from dkuxnet.core.config import load_settings
from dkuxnet.machine.distributed import joined, rank
from dkuxnet.training import minutes
measured, minutes.MOST = minutes.timed, minutes.LEAST
minutes.timed = lambda *given: measured(*given) * (1 + rank())  # the second one is slow
with joined():
    settings, said = minutes.settings_for(
        1.0, Path(sys.argv[1]), Path("none"), load_settings(overrides=json.loads(sys.argv[2]))
    )
    print(settings.train.steps, said, file=sys.stderr)
"""


@pytest.mark.slow
def test_processes_agree_on_the_steps_that_fit_into_minutes(prepared):
    chosen = json.dumps(UXNET | {"train.labelled_batch": 2, "data.test_cases": 1})
    processes = start_script(2, MINUTES, str(prepared), chosen)
    first, second = (process.communicate(timeout=100)[1].splitlines()[-1] for process in processes)
    assert first == second and int(first.split()[0]) >= 10
    assert " s fit into 1 minute; the evaluation of the test list comes after" in first


def test_what_processes_before_left_in_the_store_of_torchrun_misleads_none():
    """Six starts on one store; in each another process is late, so that the others meet what is
    stale.
    """
    store, told = HashStore(), []
    for start in range(6):
        with ThreadPoolExecutor(3) as pool:

            def one(number, late=start % 3):
                time.sleep(0.1 * (number == late))
                return of_this_start(store, number, 3)

            parts = list(pool.map(one, range(3)))
        assert not any(part.check(["here"]) for part in parts)
        parts[start % 3].set("here", str(start))
        told.append([part.get("here") for part in parts])
    assert told == [[str(start).encode()] * 3 for start in range(6)]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "left",
    [{}, {"dkuxnet/0": b"gone", "dkuxnet/1": b"gone"}],
    ids=["nobody", "who said a name and died"],
)
def test_who_waits_for_a_process_that_does_not_come_is_told_so(number, left):
    store = HashStore()
    for key, value in left.items():
        store.set(key, value)
    with pytest.raises(
        UserError, match="not all of the 2 processes of this training have come within 0"
    ):
        of_this_start(store, number, 2, seconds=0.3)


def test_a_world_without_ranks_is_somebody_else_s(monkeypatch):
    """A job's script may set WORLD_SIZE for programs of its own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with joined():
        assert world() == 1


SUMS = """
import sys
import torch
from torch import nn
from dkuxnet.machine.distributed import joined, rank, sum_gradients
method = nn.ModuleList([nn.Conv3d(48, 64, 3).to(memory_format=torch.channels_last_3d), nn.Linear(3, 2)])
method.register_buffer("mean", torch.zeros(4))
with joined():
    for number, parameter in enumerate(method.parameters()):
        first = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) % 97
        parameter.grad = torch.empty_like(parameter).copy_((rank() + 1) * (first + number))
    method.mean += rank() + 1
    losses = sum_gradients(method, {"seg": torch.tensor(1.0 + rank()), "qd": torch.tensor(2.0)})
    for number, (name, parameter) in enumerate(method.named_parameters()):
        first = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) % 97
        assert torch.equal(parameter.grad, 3.0 * (first + number)), name
    assert torch.equal(method.mean, torch.full((4,), 1.5)) and losses == {"seg": 1.5, "qd": 2.0}
"""


def test_gradients_of_every_size_and_layout_are_summed_and_losses_and_statistics_averaged():
    finish(start_script(2, SUMS))


REFUSED = """
import json, sys
from pathlib import Path
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.machine.distributed import joined, rank
from dkuxnet.training.experiment import run_training
with joined():
    for run, *each in json.loads(sys.argv[1]):  # prepared set and settings of each process
        prepared, overrides = each[rank() % len(each)]
        try:
            run_training(prepared, Path(run), load_settings(overrides=overrides))
        except UserError as error:
            print(error, file=sys.stderr)
"""


def test_what_processes_cannot_train_together_is_refused(prepared, tmp_path):
    """A folder that is there, other settings, other data of the same names, a batch that cannot
    be shared.
    """
    new, there = str(tmp_path / "run"), tmp_path / "there"
    there.mkdir()
    (there / "something").write_text("")
    other, own = shutil.copytree(prepared, tmp_path / "other"), overrides("supervised")
    described = json.loads((other / "dataset.json").read_text())
    described["cases"][0]["sha256"]["image.b2nd"] = "0" * 64
    (other / "dataset.json").write_text(json.dumps(described))
    whose = [
        [str(there), (str(prepared), own)],
        [new, (str(prepared), own), (str(prepared), own | {"train.lr": 0.5})],
        [new, (str(prepared), own), (str(other), own)],
        [new, (str(prepared), own | {"train.labelled_batch": 3})],
    ]
    for process in start_script(2, REFUSED, json.dumps(whose)):
        folder, settings, data, batch = process.communicate(timeout=60)[1].splitlines()
        assert "exists already" in folder  # said by the first, and known to all
        assert (
            "not alike: train.lr is 0.5 in process 1 and 0.01 in process 0; start all" in settings
        )
        assert "not alike: PREPARED is " in data
        assert "a batch of 3 patches cannot be shared by 2 processes" in batch
    assert not Path(new).exists()


def test_other_versions_are_told_apart(monkeypatch):
    monkeypatch.setattr(distributed, "all_gather", lambda mine: [*mine, {"dkuxnet": "0.1"}])
    with pytest.raises(UserError, match=r"dkuxnet is 0\.1 in process 1 and 0\.2 in process 0"):
        distributed.check_alike({"dkuxnet": "0.2"})


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ({}, "MASTER_ADDR expected, but not set"),
        ({"MASTER_ADDR": "127.0.0.1"}, "were not met at 127.0.0.1:"),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_who_is_alone_where_the_processes_meet_is_told_so(monkeypatch, number, address, said):
    monkeypatch.setattr(distributed, "JOINING", 0.3)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env = {"RANK": number, "WORLD_SIZE": 2, "MASTER_PORT": free.getsockname()[1]} | address
    for name, value in env.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=said), joined():
        raise AssertionError("joined")
