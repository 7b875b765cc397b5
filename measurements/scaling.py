"""What a training on many scans by many processes would cost, from costs measured here: what bends
first?

    python measurements/scaling.py [--scans 100 1000 10000] [--processes 1 2 8 32] [--faster 1 50]

Measures, in processor seconds of one thread: preparing a scan, its bytes on disk, reading a patch,
augmenting it, drawing what is random for a patch of another process, its losses, the networks on it
(a line through two sizes of batch: a part a step, a part a patch), optimiser and averages, a
checkpoint (this one by the clock). Then adds them up for other numbers of scans and processes.
Every process reads, augments and scores its own 4 patches, and runs the networks on them; the
gradients and a few small sums cross the link; all read from one disk, the scans being more than fit
into memory. --faster divides what a device computes (drawing, augmenting, losses, networks,
optimiser): a stand-in for a GPU, not a measured one.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from statistics import median

from two_processes import SETTINGS, loss_alone, timed

PATCHES = 4  # a process, labelled and unlabelled together
OTHERS = 7  # processes, where drawing for their patches is measured
SAVE_EVERY = 200
SMALL = {
    "method.name": "dual-mutual",
    "network.name": "dk-uxnet-tiny",
    "train.patch": [48, 32, 16],
    "coarse.use": False,
    "data.labelled": 2,
    "data.cache_gib": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument("--faster", type=float, nargs="+", default=[1, 50])
    parser.add_argument("--link-gbit", type=float, default=10)
    parser.add_argument("--latency-us", type=float, default=20, help="of a message over the link")
    parser.add_argument("--disk-mb", type=float, default=500, help="a second, read by all together")
    parser.add_argument(
        "--size", type=int, default=96, help="voxels along an edge of a scan, about"
    )
    parser.add_argument(
        "--costs",
        type=Path,
        help="a file of costs that an earlier call printed, in the place of measuring",
    )
    chosen = parser.parse_args()
    if chosen.costs:
        costs = json.loads(chosen.costs.read_text())
    else:
        with tempfile.TemporaryDirectory() as folder:
            costs = measure(Path(folder), chosen.size)
    print(json.dumps(costs, indent=1))
    print(
        "\n| scans | prepare, one core | on disk | draw the order of the cases, a step "
        "|\n|---|---|---|---|"
    )
    for scans in chosen.scans:
        print(
            f"| {scans} | {scans * costs['prepare_s'] / 3600:.2f} h | "
            f"{scans * costs['disk_mb'] / 1000:.1f} GB | "
            f"{1000 * PATCHES * order_seconds(scans):.2f} ms |"
        )
    print(
        "\n| device | processes | step (s) | patches a second | of one process's, times | slowest "
        "part after the networks |"
        "\n|---|---|---|---|---|---|"
    )
    for faster in chosen.faster:
        alone = None
        for processes in chosen.processes:
            parts = step(
                costs, processes, faster, chosen.link_gbit, chosen.latency_us / 1e6, chosen.disk_mb
            )
            seconds = max(
                parts["read"], sum(value for name, value in parts.items() if name != "read")
            )  # they go on at once
            rate = processes * PATCHES / seconds
            alone = alone or rate
            worst = max((name for name in parts if name != "networks"), key=parts.get)
            print(
                f"| x {faster:g} | {processes} | {seconds:.3f} | {rate:.1f} | {rate / alone:.1f} | "
                f"{worst}, {100 * parts[worst] / seconds:.0f} % |"
            )


def step(
    costs: dict[str, float],
    processes: int,
    faster: float,
    link_gbit: float,
    latency_s: float,
    disk_mb: float,
) -> dict[str, float]:
    """Part -> seconds of a step. Reading runs beside the rest, in a thread of its own."""
    others, link = PATCHES * (processes - 1), link_gbit * 1e9 / 8
    away = (processes - 1) / processes
    messages = 2 * math.ceil(math.log2(processes))  # of a sum, one after another
    return {
        "networks": (costs["networks_step_s"] + PATCHES * costs["networks_patch_s"]) / faster,
        "augment": PATCHES * costs["augment_patch_s"] / faster,
        "draw for others": others * costs["draw_patch_s"] / faster,
        "losses": PATCHES * costs["losses_patch_s"] / faster,
        "optimiser": costs["optimiser_s"] / faster,
        "sums over the link": costs["sums"] * messages * latency_s,
        "gradients over the link": 2 * away * costs["gradients_mb"] * 1e6 / link,
        "checkpoint": costs["checkpoint_s"] / SAVE_EVERY,
        "read": max(
            PATCHES * costs["read_patch_s"], PATCHES * processes * costs["read_patch_mb"] / disk_mb
        ),
    }


def order_seconds(scans: int) -> float:
    """Seconds to find the case of a patch: an epoch's order is drawn anew for each."""
    from dkuxnet.training.patches import PatchStream

    stream = PatchStream(None, [str(i) for i in range(scans)], (16, 16, 16), 1, 0, False)
    spent: list[float] = []
    for index in range(20):
        timed(spent, stream.names_at, index)
    return median(spent)


def measure(folder: Path, size: int) -> dict[str, float]:
    """The costs of the parts, on one thread of this machine."""
    import torch

    from dkuxnet.core.config import load_settings
    from dkuxnet.data import phantom
    from dkuxnet.data.prepare import prepare_scans
    from dkuxnet.runs.checkpoints import save
    from dkuxnet.training.job import new_job
    from dkuxnet.training.patches import PatchStream

    torch.set_num_threads(1)
    cases, spent = 4, []
    scans = phantom.write_dataset(folder / "scans", cases=cases, labelled=2, size=size)
    timed(spent, lambda: prepare_scans(scans, folder / "prepared", processes=1))
    disk = sum(path.stat().st_size for path in (folder / "prepared" / "cases").iterdir()) / cases
    job = new_job(folder / "prepared", load_settings(overrides=SETTINGS | SMALL))

    reading = PatchStream(job.training, job.split.unlabelled, job.patch, 1, 0, with_label=False)
    reads: list[float] = []
    before = bytes_read()
    for number in range(20):
        timed(reads, reading.at, number)
    read_mb = (bytes_read() - before) / 20 / 1e6
    small, large = (
        {name: median(values) for name, values in step_parts(job, half).items()} for half in (1, 2)
    )
    state, method = step_parts.state, step_parts.state.method
    saves = []
    for _ in range(3):
        started = time.perf_counter()
        path = save(folder / "checkpoints", state.to_checkpoint())
        saves.append(time.perf_counter() - started)
    networks = [each["step"] - each["losses"] - each["optimiser"] for each in (small, large)]
    slope = (networks[1] - networks[0]) / 2
    drawn, sums = shared_with_others(job, method)
    return {
        "prepare_s": round(spent[0] / cases, 3),
        "disk_mb": round(disk / 1e6, 2),
        "scan_mvoxels": round(size**3 / 1e6, 2),
        "read_patch_s": round(median(reads), 5),
        "read_patch_mb": round(read_mb, 3),
        "augment_patch_s": round(large["augment"] / 4, 5),
        "losses_patch_s": round(large["losses"] / 4, 5),
        "networks_patch_s": round(slope, 4),
        "networks_step_s": round(max(networks[0] - 2 * slope, 0), 4),
        "optimiser_s": round(large["optimiser"], 4),
        "draw_patch_s": round((drawn - large["augment"]) / 4 / OTHERS, 5),
        "sums": sums,
        "gradients_mb": round(sum(p.numel() for p in method.networks.parameters()) * 4 / 1e6, 2),
        "checkpoint_s": round(median(saves), 3),
        "checkpoint_mb": round(path.stat().st_size / 1e6, 1),
    }


def bytes_read() -> int:
    """That this process has asked files for so far. Linux only."""
    return int(Path("/proc/self/io").read_text().split()[1])


def with_batch(job, half: int, steps: int):
    """The job with `half` labelled and as many unlabelled patches a step."""
    from dataclasses import replace

    train = job.settings.train.model_copy(
        update={"labelled_batch": half, "unlabelled_batch": half, "steps": steps}
    )
    return replace(job, settings=job.settings.model_copy(update={"train": train}))


def shared_with_others(job, method, steps: int = 5) -> tuple[float, int]:
    """Seconds of the views of 2 + 2 patches where OTHERS more processes have as many; how many
    small sums cross the link in a step.
    """
    from dkuxnet.core.shares import Share, taking
    from dkuxnet.training import experiment

    crossed, spent = [], []

    def total(part):
        crossed.append(part)
        return part

    with taking(Share(0, 1 + OTHERS, total)):
        made = experiment.batches(with_batch(job, 2 * (1 + OTHERS), steps), 0)
        views = [timed(spent, next, made) for _ in range(steps)]
        method.losses(views[-1], 0)
    return median(spent[1:]), len(crossed)


def step_parts(job, half: int, steps: int = 7) -> dict[str, list[float]]:
    """Seconds of the parts of steps with `half` labelled and as many unlabelled patches, the first
    two steps left out.
    """
    import torch

    from dkuxnet.machine.devices import to_device
    from dkuxnet.models.build import build_method
    from dkuxnet.training import experiment
    from dkuxnet.training.loop import make_state, train_step

    job = with_batch(job, half, steps)
    train = job.settings.train
    method = to_device(
        build_method(job.settings, job.shape, job.data.meta.plan.network), job.device
    )
    state = step_parts.state = make_state(method, train)
    spent: dict[str, list[float]] = {"augment": [], "step": [], "losses": [], "optimiser": []}
    batches = experiment.batches(job, 0)
    for number in range(steps):
        batch = timed(spent["augment"], next, batches)
        timed(spent["step"], train_step, state, batch, train, job.device, torch.float32)
        loss_alone(method, batch, number, spent["losses"])
        timed(spent["optimiser"], lambda: (state.optimiser.step(), method.after_step(0)))
        state.step += 1
    return {name: values[2:] for name, values in spent.items()}


if __name__ == "__main__":
    main()
