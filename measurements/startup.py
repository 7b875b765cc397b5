"""How long it takes from a command to its first sign of life, beside what Python and torch alone
take.

    OMP_NUM_THREADS=1 python measurements/startup.py [--rounds 7] [--prepared FOLDER]

Each in a fresh process, all by turns: an empty program, `import torch`, `dkuxnet --help`, `dkuxnet
info`, and `dkuxnet train` until its first step begins and until it is done (DK-UXNet tiny by the
recipe `la-mini` on synthetic scans, or on a prepared set). Prints medians with the lowest and
highest, by the clock and in processor seconds, and each as a multiple of the floor: of the empty
program for what needs no torch, of `import torch` for the training.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PYTHON, TORCH = "empty program", "import torch"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument(
        "--train", nargs=3, metavar=("UNTIL", "PREPARED", "RUN"), help=argparse.SUPPRESS
    )
    chosen = parser.parse_args()
    if chosen.train:
        train(*chosen.train)
    with tempfile.TemporaryDirectory() as folder:
        prepared = chosen.prepared or prepare(Path(folder))
        commands = {
            PYTHON: ["-c", "pass"],
            "dkuxnet --help": ["-m", "dkuxnet", "--help"],
            "dkuxnet info": ["-m", "dkuxnet", "info"],
            TORCH: ["-c", "import torch"],
            "dkuxnet train, first step begins": [
                __file__,
                "--train",
                "begun",
                prepared,
                Path(folder) / "run",
            ],
            "dkuxnet train, first step done": [
                __file__,
                "--train",
                "done",
                prepared,
                Path(folder) / "run",
            ],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(chosen.rounds + 1):
            for name, command in commands.items():
                times = timed([sys.executable, *map(str, command)])
                if number:  # the first round brings the files into memory
                    taken[name].append(times)
    show(taken)


def prepare(folder: Path) -> Path:
    from dkuxnet import prepare_scans
    from dkuxnet.data import phantom

    prepare_scans(
        phantom.write_dataset(folder / "scans", cases=8, labelled=8, size=56),
        folder / "prepared",
        processes=1,
    )
    return folder / "prepared"


def train(until: str, prepared: str, run: str) -> None:
    """The command line's training; ends this process when its first step begins or is done."""
    from dkuxnet.cli import commands as cli
    from dkuxnet.training import loop as training

    whole = training.train_step

    def one_step(*arguments) -> None:
        if until == "done":
            whole(*arguments)
        os._exit(0)

    training.train_step = one_step
    shutil.rmtree(run, ignore_errors=True)
    sys.argv = [
        "dkuxnet",
        "train",
        prepared,
        run,
        "--preset",
        "la-mini",
        "--set",
        "data.test_cases=0",
        "--labelled",
        "4",
        "--device",
        "cpu",
    ]
    cli.main()


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds by the clock, and of processors."""
    started, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return (
        time.perf_counter() - started,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


def show(taken: dict[str, list[tuple[float, float]]]) -> None:
    print("| | clock (s) | processor (s) | of the floor |\n|---|---|---|---|")
    floor = PYTHON
    for name, times in taken.items():
        floor = TORCH if name == TORCH else floor
        clock, cpu = zip(*times, strict=True)
        ratios = sorted(
            mine / least for (_, mine), (_, least) in zip(times, taken[floor], strict=True)
        )
        print(
            f"| {name} | {spread(clock)} | {spread(cpu)} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f}) |"
        )


def spread(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
