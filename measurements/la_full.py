"""la-full: the left atrium at 0.625 mm with 8 labels, DK-UXNet and supervised: Dice, wall time,
memory. For one GPU.

    python measurements/la_full.py SOURCE WORK [--labelled 8] [--steps 3000] [--network dk-uxnet-small]
    python measurements/la_full.py SOURCE WORK --toy      # the same chain in minutes on a CPU, at 2.5 mm: figures mean nothing

SOURCE is the field's h5 copy (80 scans with train.list). The first 64 cases are the training pool,
the last 16 the development test. A run that is done is not made again and one that was stopped goes
on, so the command can be repeated; other options are another run.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from dkuxnet import load_settings, prepare_scans, run_training
from dkuxnet.core.config import Settings
from dkuxnet.core.schemas import Manifest
from dkuxnet.runs.folder import RunFolder, read_json

FULL = {"spacing_mm": 0.625, "settings": {}}
TOY = {
    "spacing_mm": 2.5,
    "settings": {"train.steps": 10, "train.patch": [48, 32, 16], "network.name": "dk-uxnet-tiny"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--labelled", type=int, default=8)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true")
    chosen = parser.parse_args()
    size = TOY if chosen.toy else FULL
    prepared = chosen.work / f"prepared_{size['spacing_mm']}mm"
    if not prepared.exists():
        prepare_scans(chosen.source, prepared, spacing_mm=size["spacing_mm"])
    given = {
        "train.steps": chosen.steps,
        "network.name": chosen.network,
        "train.seed": chosen.seed,
        "data.labelled": chosen.labelled,
    }
    overrides = size["settings"] | {key: value for key, value in given.items() if value is not None}
    print(
        "| method | labelled | Dice | 95HD (voxels) | training, minutes | seconds a step | peak "
        "memory, GiB | device |"
    )
    print("|---|---|---|---|---|---|---|---|")
    # a process a run: the peak of memory that it reports is then its own
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for method in ("dual-mutual", "supervised"):
            settings = load_settings("la-full", overrides=overrides | {"method.name": method})
            run = chosen.work / run_name(settings, chosen.toy)
            print(row(pool.submit(train_once, prepared, run, settings).result()), flush=True)


def run_name(settings: Settings, toy: bool) -> str:
    """The name of its folder, from all that the options change."""
    return (
        f"{'toy_' if toy else ''}{settings.method.name}_{settings.network.name}_n{settings.data.labelled}"
        f"_{settings.train.steps}steps_seed{settings.train.seed}"
    )


def train_once(prepared: Path, run: Path, settings: Settings) -> dict:
    """The manifest of a finished run, which is made or gone on with where it is not there yet."""
    if (run / "manifest.json").exists() and "test" in read_json(run / "manifest.json"):
        return RunFolder(run).manifest
    return run_training(prepared, run, settings, resume=RunFolder(run).has_checkpoint)


def row(manifest: Manifest) -> str:
    test, seconds = manifest.test["LA"], manifest.train_seconds
    cells = [
        manifest.method,
        len(manifest.split.labelled),
        f"{test['dice'].mean:.4f}",
        f"{test['hd95_voxels'].mean:.2f}",
        f"{seconds / 60:.1f}",
        f"{seconds / manifest.steps_done:.3f}",
        manifest.peak_memory_gib,
        manifest.machine.gpu or f"{manifest.machine.cpu_threads} CPU threads",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
