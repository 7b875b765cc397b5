"""One pass over a whole scan against two: a coarse run chooses where to look, the fine one
segments there.

    OMP_NUM_THREADS=1 python measurements/whole_scans.py WORK [--scans 3] [--fine-mm 2] [--coarse-mm 6]

Synthetic CT: a body of 48 x 48 x 24 cm with one bright organ of 3 to 4 cm, and 60 dark spheres.
Trains a tiny fine run and a tiny coarse run on the same scans, then predicts others in one pass and
in two, by turns, each in a process of its own. Prints Dice, CPU seconds (which other work on the
machine changes little) and the peak memory of each process.
"""

import argparse
import json
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from dkuxnet import load_settings, prepare_scans, run_training
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.evaluation.metrics import dice
from dkuxnet.machine.memory import peak_memory_gib

WORLD_MM, SPACING_MM = np.array([480.0, 480.0, 240.0]), 1.5
TRAINING_SCANS = 4
BODY, ORGAN, OTHERS = 40, 350, (-100, -300)  # about as in Hounsfield units, air is -1000


def make_scan(rng: np.random.Generator) -> tuple[Volume, Volume]:
    """A scan int16 and its label map."""
    radii = rng.uniform(14, 20, 3)
    centre = WORLD_MM / 2 + WORLD_MM * 0.3 * rng.uniform(-1, 1, 3)
    shape = (WORLD_MM / SPACING_MM).astype(int)
    image = np.full(shape, -1000, np.float32)
    paint(image, WORLD_MM / 2, WORLD_MM * 0.47, BODY)
    for number in range(60):
        radius = rng.uniform(6, 18)
        place = WORLD_MM / 2 + WORLD_MM * 0.4 * rng.uniform(-1, 1, 3)
        if np.linalg.norm(place - centre) > radius + radii.max() + 3:
            paint(image, place, np.full(3, radius), OTHERS[number % 2] + rng.uniform(-20, 20))
    label = np.zeros(shape, np.uint8)
    paint(image, centre, radii, ORGAN + rng.uniform(-20, 20))
    paint(label, centre, radii, 1)
    image = (
        gaussian_filter(image, 0.6)
        + zoom(rng.normal(0, 12, (5, 5, 5)), shape / 5, order=1)
        + rng.normal(0, 30, shape)
    )
    affine = np.diag([*(rng.choice([-1.0, 1.0], 3) * SPACING_MM), 1.0])
    return Volume(image.clip(-1024, 3000).astype(np.int16), affine), Volume(label, affine)


def paint(array: np.ndarray, centre: np.ndarray, radii: np.ndarray, value: float) -> None:
    """Set the voxels of an ellipsoid (mm)."""
    low = np.clip(np.floor((centre - radii) / SPACING_MM), 0, array.shape).astype(int)
    high = np.clip(np.ceil((centre + radii) / SPACING_MM) + 1, 0, array.shape).astype(int)
    axes = [
        ((np.arange(a, b) + 0.5) * SPACING_MM - c) ** 2 / r**2
        for a, b, c, r in zip(low, high, centre, radii, strict=True)
    ]
    inside = axes[0][:, None, None] + axes[1][:, None] + axes[2] <= 1
    array[tuple(map(slice, low, high))][inside] = value


def write_scans(folder: Path, count: int, seed: int) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        image, label = make_scan(np.random.default_rng((seed, i)))
        formats.write(image, folder / "imagesTr" / f"case_{i:02d}_0000.nii.gz")
        formats.write(label, folder / "labelsTr" / f"case_{i:02d}.nii.gz")
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))


def train_run(
    work: Path, name: str, spacing_mm: float, patch: list[int], batch: int, steps: int
) -> Path:
    run = work / f"run_{name}"
    if not run.exists():
        if not (work / f"prepared_{name}").exists():
            prepare_scans(work / "training", work / f"prepared_{name}", spacing_mm, processes=1)
        run_training(
            work / f"prepared_{name}",
            run,
            load_settings(
                overrides={
                    "method.name": "supervised",
                    "network.name": "dk-uxnet-tiny",
                    "train.patch": patch,
                    "train.steps": steps,
                    "train.lr": 0.005,
                    "train.labelled_batch": batch,
                    "train.unlabelled_batch": 0,
                    "train.device": "cpu",
                    "augment.flip": "xyz",
                    "infer.overlap": 0.25,
                }
            ),
        )
    return run


def predict_once(fine: Path, coarse: Path | None, image: Path, label: Path) -> dict[str, float]:
    """Dice, CPU seconds of the segmentation, peak memory of the process, share of the network's
    grid that the windows cover.
    """
    from dkuxnet.prediction.segment import Segmenter

    segmenter = Segmenter(fine, device="cpu", localiser=coarse)
    scan, truth = formats.read(image), formats.read(label, kind="label")
    scan = Volume(scan.array[None].astype(np.float32), scan.affine)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as told:
        region = segmenter.region(scan)
        found = segmenter(scan, region=region).label.array
    return {
        "dice": dice(found == 1, truth.array == 1),
        "seconds": time.process_time() - started,
        "gib": peak_memory_gib(segmenter.device),
        "share": np.prod(region.shape) / np.prod(region.grid),
        "fell_back": len(told),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--scans", type=int, default=3)
    parser.add_argument("--fine-mm", type=float, default=2.0)
    parser.add_argument("--coarse-mm", type=float, default=6.0)
    chosen = parser.parse_args()
    work = chosen.work
    if not (work / "training").exists():
        write_scans(work / "training", TRAINING_SCANS, seed=1)
    if not (work / "large").exists():
        write_scans(work / "large", chosen.scans, seed=2)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = (
            pool.submit(train_run, work, "fine", chosen.fine_mm, [32, 32, 32], 2, 600),
            pool.submit(train_run, work, "coarse", chosen.coarse_mm, [32, 32, 32], 4, 400),
        )
        fine, coarse = (each.result() for each in made)
    rows: dict[str, list[dict[str, float]]] = {"one pass": [], "two passes": []}
    print(
        "| scan | passes | Dice | CPU seconds | GiB | share of the scan "
        "|\n|---|---|---|---|---|---|"
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for image in sorted((work / "large" / "imagesTr").iterdir()):
            label = work / "large" / "labelsTr" / image.name.replace("_0000", "")
            for name, localiser in (("one pass", None), ("two passes", coarse)):
                row = pool.submit(predict_once, fine, localiser, image, label).result()
                rows[name].append(row)
                print(f"| {image.name[:7]} | {name} | {cells(row)} |", flush=True)
    for name, each in rows.items():
        print(
            f"| median | {name} | "
            f"{cells({key: median(row[key] for row in each) for key in each[0]})} |"
        )


def cells(row: dict[str, float]) -> str:
    return (
        f"{row['dice']:.4f} | {row['seconds']:.1f} | {row['gib']:.2f} | {100 * row['share']:.1f} %"
    )


if __name__ == "__main__":
    main()
