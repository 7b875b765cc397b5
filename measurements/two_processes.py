"""How much faster two processes train than one, and where a step's time goes.

On the CPU, one thread a process.

    python measurements/two_processes.py [--rounds 5] [--steps 12] [--batch 2] [--method dual-mutual] [--network dk-uxnet-tiny]
                                       [--patch 48 32 16]

Trains on synthetic scans, --batch labelled patches and as many unlabelled a step (where the method
uses them): by one process, then by two, and so on in turn; of each training the median step counts,
without the first two. Prints

wall    seconds of a step, and their ratio: what a user waits. On a machine with other work it says little.
cpu     processor seconds of a step in the busier process, and their ratio: what the wall clock would give where each process
        has a core to itself and no one waits for the other.
parts   of a step of one process: drawing and augmenting, the losses forwards and backwards, the networks (these are shared,
        but for a part a step of the networks, see scaling.py), and optimiser and moving averages (which every process does).
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = {"train.device": "cpu", "train.log_every": 1, "data.labelled": 4, "data.workers": 0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--method", default="dual-mutual")
    parser.add_argument("--network", default="dk-uxnet-tiny")
    parser.add_argument("--patch", type=int, nargs=3, default=[48, 32, 16])
    parser.add_argument("--worker", nargs=2, metavar=("PREPARED", "RUN"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    settings = SETTINGS | {
        "train.steps": chosen.steps,
        "method.name": chosen.method,
        "network.name": chosen.network,
        "train.patch": chosen.patch,
        "train.labelled_batch": chosen.batch,
        "train.unlabelled_batch": chosen.batch,
    }
    if chosen.worker:
        print(json.dumps(train(*map(Path, chosen.worker), settings)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder))
        rounds = {1: [], 2: []}
        for number in range(chosen.rounds):
            for processes, measured in rounds.items():
                measured.append(
                    processes_train(prepared, Path(folder) / f"run{number}_{processes}", processes)
                )
                print(
                    f"round {number + 1}, {processes} process{'es' * (processes > 1)}: "
                    + ", ".join(f"{key} {value:.3f} s" for key, value in measured[-1].items())
                    + f"; load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
        median = {
            processes: {
                key: statistics.median(each[key] for each in measured) for key in ("wall", "cpu")
            }
            for processes, measured in rounds.items()
        }
        ratio = {key: round(median[1][key] / median[2][key], 2) for key in ("wall", "cpu")}
        print(
            json.dumps(
                {"median step": median, "ratio": ratio, "parts": parts(prepared, settings)},
                indent=1,
            )
        )


def prepare(folder: Path) -> Path:
    from dkuxnet.data import phantom
    from dkuxnet.data.prepare import prepare_scans

    prepare_scans(
        phantom.write_dataset(folder / "scans", cases=8, labelled=4, size=48),
        folder / "prepared",
        processes=1,
    )
    return folder / "prepared"


def processes_train(prepared: Path, run: Path, processes: int) -> dict[str, float]:
    """Seconds of a step, by the wall and by the processors of the busier process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
    }
    command = [sys.executable, *sys.argv, "--worker", str(prepared), str(run)]
    workers = [
        subprocess.Popen(
            command, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE
        )
        for rank in range(processes)
    ]
    told = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in workers]
    return {key: max(each[key] for each in told) for key in told[0]}


def train(prepared: Path, run: Path, settings: dict) -> dict[str, float]:
    """One of the processes."""
    import torch

    from dkuxnet.core.config import load_settings
    from dkuxnet.training import experiment
    from dkuxnet.training import loop as train

    torch.set_num_threads(1)
    walls, cpus = [], []
    whole = train.train_step

    def noting(*arguments):
        walls.append(time.perf_counter())
        cpus.append(time.process_time())
        return whole(*arguments)

    train.train_step = noting
    experiment.run_training(prepared, run, load_settings(overrides=settings))
    return {
        name: statistics.median(b - a for a, b in itertools.pairwise(times[2:]))
        for name, times in (("wall", walls), ("cpu", cpus))
    }


def parts(prepared: Path, settings: dict, steps: int = 8) -> dict[str, str]:
    """Shares of the processor seconds of the parts of a step in one process, medians."""
    import torch

    from dkuxnet.core.config import load_settings
    from dkuxnet.machine.devices import to_device
    from dkuxnet.models.build import build_method
    from dkuxnet.training import experiment
    from dkuxnet.training.job import new_job
    from dkuxnet.training.loop import make_state, train_step

    torch.set_num_threads(1)
    job = new_job(prepared, load_settings(overrides=settings | {"train.steps": steps}))
    method = to_device(
        build_method(job.settings, job.shape, job.data.meta.plan.network), job.device
    )
    state = make_state(method, job.settings.train)
    spent = {"draw and augment": [], "losses": [], "optimiser and averages": [], "step": []}
    batches = experiment.batches(job, 0)
    for step in range(steps):
        batch = timed(spent["draw and augment"], next, batches)
        timed(
            spent["step"], train_step, state, batch, job.settings.train, job.device, torch.float32
        )
        loss_alone(method, batch, step, spent["losses"])
        timed(
            spent["optimiser and averages"], lambda: (state.optimiser.step(), method.after_step(0))
        )
        state.step += 1
    seconds = {name: statistics.median(values[2:]) for name, values in spent.items()}
    whole = seconds.pop("step") + seconds["draw and augment"]
    seconds["networks"] = whole - sum(seconds.values())
    return {name: f"{100 * value / whole:.1f} %" for name, value in seconds.items()}


def timed(spent: list[float], work, *arguments):
    started = time.process_time()
    result = work(*arguments)
    spent.append(time.process_time() - started)
    return result


def loss_alone(method, batch, step: int, spent: list[float]) -> None:
    """Time the losses forwards and backwards: the networks run once, then their outputs are given
    out as they are.
    """
    import torch
    from torch.utils._pytree import tree_map

    from dkuxnet.core.types import Output

    def leaf(value):
        return value.detach().requires_grad_() if torch.is_tensor(value) else value

    outputs = []
    kept = {id(module): module.forward for module in method.modules()}
    answering = [
        m for name, m in method.named_modules() if name.count(".") == 1
    ]  # networks.0, teachers.1

    def keep(module, arguments, output):
        outputs.append(tree_map(leaf, vars(output)))

    hooks = [module.register_forward_hook(keep) for module in answering]
    method.losses(batch, step)
    for hook in hooks:
        hook.remove()
    given = iter(outputs)
    for module in answering:
        module.forward = lambda image: Output(**next(given))
    timed(spent, lambda: sum(method.losses(batch, step).values()).backward())
    for module in answering:
        module.forward = kept[id(module)]


if __name__ == "__main__":
    main()
