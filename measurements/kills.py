"""Kill trainings at random moments, resume them, and compare what comes out with trainings that
nobody disturbed.

    python measurements/kills.py [--kills 50] [--seed 0]

Every training is a process of its own on tiny synthetic scans, killed with SIGKILL (no handler
runs) and resumed until it ends. It saves after every step and logs the means of five, so that many
kills fall inside a save and most saves inside what a line of the log is made of. A third of the
kills comes as SIGTERM first, which saves at once and stops. Methods take turns. Weights, optimiser,
metrics, validation scores and learning rates must be equal bit for bit. Ends with 1 where a
training is not.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from dkuxnet.core.errors import UserError

TINY = {
    "network.name": "dk-uxnet-tiny",
    "network.widths": [8, 8, 8, 8],
    "network.query_channels": 16,
    "network.depths": [1, 1, 1, 1],
    "train.patch": [16, 16, 16],
    "train.labelled_batch": 1,
    "train.unlabelled_batch": 1,
    "train.steps": 16,
    "train.log_every": 5,
    "train.save_every": 1,
    "train.validate_every": 3,
    "train.reference_cases": 0,
    "train.device": "cpu",
    "train.warm_up_steps": 2,
    "train.average": 0.9,
    "data.labelled": 2,
    "data.validation_cases": 1,
    "data.test_cases": 0,
}
STOPPED = 3  # exit code of a training that saved because it was asked to stop
# once for all trainings: the kills then fall into the work, not into its imports
PRELOADED = ["dkuxnet.training.experiment", "dkuxnet.models.networks.dkuxnet", "blosc2", "sympy"]
METHODS = (
    "dual-mutual",
    "mean-teacher",
    "ua-mt",
    "cps",
    "mc-net-plus",
    "bcp",
    "fixmatch",
    "unimatch",
    "ad-mt",
    "crossmatch",
    "dtc",
    "supervised",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_and_compare(Path(folder), chosen.kills, chosen.seed, print)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["different"]))


def kill_and_compare(
    folder: Path,
    kills: int,
    seed: int = 0,
    tell=lambda line: None,
    methods=METHODS,
    steps: int = TINY["train.steps"],
) -> dict:
    """At least `kills` kills, spread over `methods`; how many trainings were killed, resumed, and
    came out different.
    """
    rng = random.Random(seed)
    prepared = prepare(folder)
    done, result = (
        0,
        {
            "kills": 0,
            "by SIGTERM": 0,
            "inside a save": 0,
            "before the first save": 0,
            "trainings": 0,
            "different": [],
        },
    )
    for turn in itertools.count():
        if result["kills"] >= kills:
            return result
        method = methods[turn % len(methods)]
        whole, broken = folder / f"whole{turn}", folder / f"broken{turn}"
        started = time.monotonic()
        assert run(prepared, whole, method, steps, None) == 0, "the undisturbed training failed"
        took = time.monotonic() - started
        while True:
            began, enough = time.time(), result["kills"] >= kills
            after = None if enough else rng.uniform(0.02, 1.0) * took
            code = run(prepared, broken, method, steps, after, softly=rng.random() < 1 / 3)
            if code == 0:
                break
            assert code in (-signal.SIGKILL, -signal.SIGTERM, STOPPED), f"ended with {code}"
            result["by SIGTERM"] += code != -signal.SIGKILL
            done = result["kills"] = result["kills"] + 1
            # a kill before the next save leaves the part of an earlier one: that is counted once
            result["inside a save"] += any(
                part.stat().st_mtime >= began for part in broken.rglob(".part-*")
            )
            result["before the first save"] += not any(
                (broken / "checkpoints").glob("*-*.safetensors")
            )
        result["trainings"] += 1
        same = state_of(whole) == state_of(broken)
        if not same:
            result["different"].append(method)
        tell(f"{method}: {done} kills so far, {'equal bit for bit' if same else 'DIFFERENT'}")


def prepare(folder: Path) -> Path:
    from dkuxnet.data import phantom
    from dkuxnet.data.prepare import prepare_scans

    prepare_scans(
        phantom.write_dataset(folder / "scans", cases=4, labelled=3, size=20),
        folder / "prepared",
        processes=1,
    )
    return folder / "prepared"


def run(
    prepared: Path,
    folder: Path,
    method: str,
    steps: int,
    kill_after: float | None,
    softly: bool = False,
) -> int:
    """A training, new or resumed, in a process; killed after so many seconds.

    softly: by SIGTERM, upon which it saves. Its exit code: minus the signal where one killed it,
    STOPPED where it had saved.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    child = context.Process(target=train, args=(prepared, folder, method, steps))
    child.start()
    child.join(kill_after)
    if child.is_alive():
        child.terminate() if softly else child.kill()
        child.join()
    return child.exitcode


def train(prepared: Path, folder: Path, method: str, steps: int) -> None:
    import shutil

    import torch

    from dkuxnet.core.config import load_settings
    from dkuxnet.training.experiment import run_training
    from dkuxnet.training.loop import Interrupted

    torch.set_num_threads(1)
    resume = (folder / "settings.json").exists()
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # killed before it was a run
    settings = load_settings(overrides=TINY | {"method.name": method, "train.steps": steps})
    try:
        run_training(prepared, folder, settings, resume)
    except Interrupted:
        sys.exit(STOPPED)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def state_of(folder: Path) -> dict:
    """All that a training leaves, but what tells the time."""
    from safetensors.torch import load_file

    from dkuxnet.runs.folder import RunFolder

    run = RunFolder.open(folder)
    state = run.load_checkpoint()
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in run.metrics()]
    return {
        "state": plain({key: value for key, value in state.items() if key != "seconds"}),
        "metrics": rows,
        "weights": plain(load_file(folder / "final.safetensors")),
    }


def plain(value):
    """Tensors as bytes, so that == compares them bit for bit."""
    import torch

    if isinstance(value, torch.Tensor):
        return (
            str(value.dtype),
            tuple(value.shape),
            value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else value.item(),
        )
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


if __name__ == "__main__":
    main()
