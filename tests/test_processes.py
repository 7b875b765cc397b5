"""Several processes as torchrun starts them, by the command line: killed, failing, and on two
hosts.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dkuxnet.data.prepared_set import PreparedSet
from tiny import DK_UXNET, dotted, prepared_phantoms

pytestmark = pytest.mark.slow

TINY = DK_UXNET | {
    "method.name": "mean-teacher",
    "train.labelled_batch": 2,
    "train.unlabelled_batch": 2,
    "train.steps": 40,
    "train.save_every": 4,
    "data.test_cases": 2,
    "data.labelled": 2,
}
ADDRESSES = ("10.231.7.1", "10.231.7.2")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return prepared_phantoms(tmp_path_factory.mktemp("data"), cases=6, labelled=5)


def training(prepared: Path, run: Path, **more) -> list[str]:
    chosen = TINY | dotted(more)
    return ["-m", "dkuxnet", "train", str(prepared), str(run)] + [
        f"--set={key}={json.dumps(chosen[key])}" for key in chosen
    ]


def begin(command: list[str], **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What it said; it must have ended well."""
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    return said


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final.safetensors")


def metrics(run: Path) -> list[dict]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def until(happens, *processes: subprocess.Popen) -> None:
    """Wait for it, as long as all processes live."""
    while not happens():
        assert all(process.poll() is None for process in processes), [
            process.communicate()[1] for process in processes
        ]
        time.sleep(0.02)


def worker_of(run: Path, rank: int) -> int:
    """The process of that rank, which trains in `run`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                str(run) in (folder / "cmdline").read_text()
                and f"\0RANK={rank}\0" in (folder / "environ").read_text()
            ):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(),
    reason="which process is of which rank is read from /proc",
)
def test_torchrun_starts_a_training_again_after_a_kill_and_nothing_is_different(prepared, tmp_path):
    """With as many processes as before: equal bit for bit, figures of every step included."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [*TORCHRUN, "2", "--standalone", "--max-restarts", "1", "--monitor-interval", "0.1"]
    finish(begin([*command, *training(prepared, whole)]))
    process = begin([*command, *training(prepared, broken)])
    until(lambda: any((broken / "checkpoints").glob("*-*.safetensors")), process)
    os.kill(worker_of(broken, 1), signal.SIGKILL)
    assert "exitcode: -9" in finish(process)
    one, other = weights(whole), weights(broken)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert metrics(whole) == metrics(broken) and len(metrics(whole)) == 40
    assert (broken / "evaluation" / "cases.csv").read_bytes() == (
        whole / "evaluation" / "cases.csv"
    ).read_bytes()


def test_the_command_s_own_processes_tell_an_error_once_and_go_on_as_many(prepared, tmp_path):
    """Without a traceback of whoever started them."""
    order = [sys.executable, *training(prepared, tmp_path / "run", train__steps=10**6)]
    done = subprocess.run(
        [*order, "--devices", "2", "--labelled", "99"], capture_output=True, text=True
    )
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert re.fullmatch(r"error: --labelled 99: the training pool has \d .*\n", done.stderr)
    process = begin([*order, "--devices", "2"])
    until(lambda: any((tmp_path / "run").glob("checkpoints/*-*.safetensors")), process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130 and len(said) == 2 and said[0].startswith("stopped at step")
    again = f"dkuxnet train {prepared} {tmp_path / 'run'} --resume --devices 2"
    assert said[1] == f"Go on with: {again}"


def test_several_processes_refuse_a_patch_that_no_memory_holds_before_the_first_step(
    prepared, tmp_path
):
    order = [sys.executable, *training(prepared, tmp_path / "run", train__patch=[1024] * 3)]
    done = subprocess.run([*order, "--devices", "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert re.fullmatch(
        r"error: out of memory: a step on .* needs about .* would need .*\n", done.stderr
    )


def test_what_one_process_runs_into_ends_all_and_says_which_and_why(prepared, tmp_path):
    """The second of the test cases, which is the second process's to predict, is damaged."""
    spoilt = shutil.copytree(prepared, tmp_path / "spoilt")
    name = PreparedSet(prepared).names_with_label[-1]
    (spoilt / "cases" / f"{name}.image.b2nd").write_bytes(b"garbage")
    process = begin(
        [*TORCHRUN, "2", "--standalone", *training(spoilt, tmp_path / "run", train__steps=2)]
    )
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert (
        f"error: process 1 of 2: case '{name}': {spoilt}/cases/{name}.image.b2nd is damaged" in said
    )
    assert (tmp_path / "run" / "final.safetensors").is_file()  # what was done by then stays


@pytest.fixture
def hosts():
    """Two network namespaces that see nothing but each other, over one cable: what runs a command
    in each.
    """
    names = [f"dkux{os.getpid()}{end}" for end in "ab"]

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)

    with ExitStack() as tidy:
        try:
            for name in names:
                ip("netns", "add", name)
                tidy.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
                ip("-n", name, "link", "set", "lo", "up")
            ip(
                "-n",
                names[0],
                "link",
                "add",
                "cable",
                "type",
                "veth",
                "peer",
                "name",
                "cable",
                "netns",
                names[1],
            )
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
                ip("-n", name, "link", "set", "cable", "up")
        except OSError as error:
            pytest.skip(f"two hosts need the rights to make network namespaces: {error}")
        yield [["ip", "netns", "exec", name] for name in names]


def test_two_hosts_train_what_one_process_trains(prepared, tmp_path, hosts):
    """Over a network of their own, by torchrun's rendezvous.

    Plain descent: AdamW would blow rounding up to whole steps. Of two labelled patches each host
    has one, so that neither has the gradient of the whole.
    """
    few = {
        "method__name": "supervised",
        "train__steps": 2,
        "train__optimiser": "sgd",
        "train__lr": 0.01,
        "train__warm_up_steps": 0,
    }
    alone = begin([sys.executable, *training(prepared, tmp_path / "alone", **few)])
    pair = [
        begin(
            [
                *enter,
                *TORCHRUN,
                "1",
                "--nnodes",
                "2",
                "--rdzv-backend",
                "c10d",
                "--rdzv-endpoint",
                f"{ADDRESSES[0]}:29500",
                "--rdzv-conf",
                f"is_host={int(address == ADDRESSES[0])}",
                "--local-addr",
                address,
                *training(prepared, tmp_path / "pair", **few),
            ],
            GLOO_SOCKET_IFNAME="cable",
        )
        for enter, address in zip(hosts, ADDRESSES, strict=True)
    ]
    for process in (alone, *pair):
        finish(process)
    ours, theirs = weights(tmp_path / "alone"), weights(tmp_path / "pair")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(
            theirs[key], value, rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    for mine, its in zip(metrics(tmp_path / "alone"), metrics(tmp_path / "pair"), strict=True):
        assert its == pytest.approx(mine, rel=1e-3, abs=1e-5)
