"""How long a training step waits for its data.

    OMP_NUM_THREADS=1 python measurements/input_pipeline.py [--prepared FOLDER] [--rounds 6] [--steps 5] [--faster 50]

DK-UXNet tiny by the recipe `la-mini` (patches of 48 x 32 x 16, two labelled and two unlabelled a
step) on synthetic scans, or on a prepared set; one thread. The same steps by turns with the data
made when the step asks for it (data.workers=0) and made ahead (data.workers=1). Prints medians,
with the lowest and highest of the rounds: the step, what it waited, and the share.

Then the parts, in processor seconds a step: reading from memory (data.cache_gib) and from chunks on
disk, making the views; and what they come to where a device computes --faster times as fast: it
makes the views itself, so that many times as fast too, and a thread reads beside it at the speed
measured here. That is arithmetic, not measured on such a device.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dkuxnet import load_settings, prepare_scans
from dkuxnet.data import phantom
from dkuxnet.machine.devices import to_device
from dkuxnet.models.build import build_method
from dkuxnet.training import experiment
from dkuxnet.training.job import Job, new_job
from dkuxnet.training.loop import make_state, train_step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--faster", type=float, default=50.0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepared = chosen.prepared or prepare(Path(folder))
        step = waiting(prepared, chosen.rounds, chosen.steps)
        parts(prepared, step, chosen.faster)


def prepare(folder: Path) -> Path:
    scans = phantom.write_dataset(folder / "scans", cases=24, labelled=12, size=56)
    prepare_scans(scans, folder / "prepared", processes=1)
    return folder / "prepared"


def job_of(prepared: Path, workers: int, cache_gib: float = 4.0) -> Job:
    return new_job(
        prepared,
        load_settings(
            "la-mini",
            overrides={
                "data.labelled": 8,
                "data.test_cases": 0,
                "data.workers": workers,
                "data.cache_gib": cache_gib,
                "train.device": "cpu",
            },
        ),
    )


def waiting(prepared: Path, rounds: int, steps: int) -> float:
    """Print the table of the waiting; the seconds of a step without it."""
    job = job_of(prepared, 0)
    state = make_state(
        to_device(build_method(job.settings, job.shape, job.data.meta.plan.network), job.device),
        job.settings.train,
    )
    sources = {
        "asked for": experiment.batches(job, 0),
        "made ahead": experiment.batches(job_of(prepared, 1), 0),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for number in range(rounds + 1):
        for name, batches in sources.items():
            times = [one_step(state, job, batches) for _ in range(steps)]
            if number:  # the first round fills the memory
                measured[name].append(tuple(map(statistics.median, zip(*times, strict=True))))
    print("| the data | step (ms) | waiting (ms) | share |\n|---|---|---|---|")
    for name, each in measured.items():
        cells = [
            spread([1000 * whole for whole, _ in each]),
            spread([1000 * wait for _, wait in each]),
            spread([100 * wait / whole for whole, wait in each]),
        ]
        print(f"| {name} | {' | '.join(cells)} % |")
    return statistics.median(whole - wait for whole, wait in measured["made ahead"])


def one_step(state, job: Job, batches: Iterator) -> tuple[float, float]:
    """Seconds of a step, and those of them that it waited for its batch."""
    started = time.perf_counter()
    batch = next(batches)
    came = time.perf_counter()
    train_step(state, batch, job.settings.train, job.device, torch.float32)
    return time.perf_counter() - started, came - started


def parts(prepared: Path, step: float, faster: float) -> None:
    print(
        f"\n| the scans | reading (ms) | views (ms) | {faster:g} times as fast: step (ms) | "
        "waiting |\n|---|---|---|---|---|"
    )
    for where, cache_gib in (("in memory", 4.0), ("in chunks on disk", 0.0)):
        job = job_of(prepared, 0, cache_gib)
        streams, numbers = experiment.patch_streams(job), iter(range(100_000))
        for number in range(60):  # every file is compared with its checksum once
            patches = [stream.at(number) for stream in streams]
        read = cpu_median(lambda: [stream.at(next(numbers)) for stream in streams])
        views = cpu_median(lambda: experiment.make_batch(job, 0, patches))
        computed = (step + views) / faster
        whole = max(computed, read)
        share = 100 * (1 - computed / whole)
        print(
            f"| {where} | {1000 * read:.2f} | {1000 * views:.1f} | {1000 * whole:.1f} | "
            f"{share:.0f} % |"
        )


def cpu_median(work: Callable[[], object], times: int = 30) -> float:
    seconds = []
    for _ in range(times):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
