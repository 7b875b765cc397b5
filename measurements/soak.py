"""A long training of a tiny network: does the process grow? Memory, open files and threads, every
100 steps.

    python measurements/soak.py [--steps 2000] [--method dual-mutual]

The scans are too large for the cache that they get, so that chunks are read from the disk all the
time, by a thread; validation and checkpoints come every 100 steps. The first quarter counts as
warming up. Over the rest a line is fitted to the memory: it is flat where it rises by less than 1 %
of its level over 1,000 steps, or by no more than twice what its scatter explains (standard error of
the slope). Open files and threads must not be more at the end than after the warm-up. Ends with 1
otherwise.
"""

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

SETTINGS = {
    "network.name": "dk-uxnet-tiny",
    "network.widths": [8, 8, 8, 8],
    "network.query_channels": 16,
    "network.depths": [1, 1, 1, 1],
    "train.patch": [16, 16, 16],
    "train.labelled_batch": 1,
    "train.unlabelled_batch": 1,
    "train.device": "cpu",
    "train.log_every": 1,
    "data.labelled": 3,
    "data.validation_cases": 1,
    "data.cache_gib": 1e-4,
    "data.workers": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--method", default="dual-mutual")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = soak(
            Path(folder),
            chosen.steps,
            chosen.method,
            lambda row: print(json.dumps(row), flush=True),
        )
    result = judge(rows)
    print(json.dumps(result, indent=1))
    sys.exit(not result["flat"])


def soak(
    folder: Path, steps: int, method: str, tell=lambda row: None, every: int = 100
) -> list[dict[str, float]]:
    """Train; what the process holds after every `every` steps."""
    import torch

    from dkuxnet.core.config import load_settings
    from dkuxnet.data import phantom
    from dkuxnet.data.prepare import prepare_scans
    from dkuxnet.training.experiment import run_training

    torch.set_num_threads(1)
    prepare_scans(
        phantom.write_dataset(folder / "scans", cases=6, labelled=4, size=32),
        folder / "prepared",
        processes=1,
    )
    rows = []

    def look(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        if what == "train" and done % every == 0:
            rows.append({"step": done, **held()})
            tell(rows[-1])

    settings = load_settings(
        overrides=SETTINGS
        | {
            "train.steps": steps,
            "method.name": method,
            "train.validate_every": every,
            "train.save_every": every,
        }
    )
    run_training(folder / "prepared", folder / "run", settings, progress=look)
    return rows


def held() -> dict[str, float]:
    """What this process holds now: resident memory (MiB), open files, threads. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mib": round(pages * 4096 / 2**20, 2),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "python_threads": threading.active_count(),
    }


def judge(rows: list[dict[str, float]]) -> dict[str, float | bool]:
    """Whether what is held is flat after the first quarter, and by how much it is or is not."""
    rows = rows[len(rows) // 4 :]
    step, memory = (np.array([row[key] for row in rows], float) for key in ("step", "rss_mib"))
    slope, level = np.polyfit(step, memory, 1)
    left = memory - (slope * step + level)
    error = float(
        np.sqrt((left**2).sum() / max(len(rows) - 2, 1) / ((step - step.mean()) ** 2).sum())
    )
    share = 1000 * slope / memory.mean()
    flat = share < 0.01 or slope <= 2 * error
    steady = all(rows[-1][key] <= max(rows[0][key], rows[1][key]) for key in ("files", "threads"))
    return {
        "mib_per_1000_steps": round(1000 * slope, 3),
        "standard_error": round(1000 * error, 3),
        "percent_per_1000_steps": round(100 * share, 3),
        "rss_mib_first": memory[0],
        "rss_mib_last": memory[-1],
        "files_and_threads_steady": steady,
        "flat": bool(flat and steady),
    }


if __name__ == "__main__":
    main()
