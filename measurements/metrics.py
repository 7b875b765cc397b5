"""The four metrics of a case: ours against MedPy's four calls (dc, jc, hd95, asd).

    OMP_NUM_THREADS=1 python measurements/metrics.py [--scan NAME/FILE.h5 ... [--predicted FOLDER]]

Without a scan: two synthetic atria of its size. --predicted: NAME.nii.gz of a model, as `predict`
writes them. The other predictions are made of the truth: at 2.5 mm and back, its surface pushed to
and fro by smooth noise (2 and 5 voxels), moved by 5 and by 20 voxels. Processor seconds, medians
over rounds, by turns; the floor is a single reading of both masks.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from dkuxnet.data.geometry import resample
from dkuxnet.evaluation.metrics import SHOWN, segmentation_metrics

SHAPE, MM = (184, 140, 88), 0.625


def predictions_of(truth: np.ndarray) -> dict[str, np.ndarray]:
    noise = gaussian_filter(np.random.default_rng(0).standard_normal(truth.shape), 4)
    height = distance_transform_edt(truth) - distance_transform_edt(~truth)
    coarse = resample(resample(truth, [round(n / 4) for n in truth.shape]), truth.shape) > 0.5
    return {
        "2.5 mm and back": coarse,
        "wavy by 2 voxels": height + 2 * noise / noise.std() > 0,
        "wavy by 5 voxels": height + 5 * noise / noise.std() > 0,
        "moved by 5 voxels": np.roll(truth, 5, 0),
        "moved by 20 voxels": np.roll(truth, 20, 1),
    }


def synthetic(seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 10)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return sum(axis**2 for axis in axes) / 0.35 + 0.3 * noise / noise.std() < 1


def by_medpy(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, ...]
) -> tuple[float, ...]:
    from medpy.metric import binary

    return (
        binary.dc(prediction, truth),
        binary.jc(prediction, truth),
        binary.hd95(prediction, truth, voxelspacing=spacing_mm),
        binary.asd(prediction, truth, voxelspacing=spacing_mm),
    )


def timed(work: Callable) -> tuple[float, object]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, nargs="+", default=[], help="the field's h5, 0.625 mm")
    parser.add_argument("--predicted", type=Path, help="label maps of these scans")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if find_spec("medpy") is None:
        parser.exit(1, "without MedPy there is nothing to compare with: pip install medpy\n")
    truths = [label_of(path) for path in chosen.scan] or [synthetic(seed) for seed in range(2)]
    print(
        "| scan | prediction | Dice | voxels | MedPy, ms | ours, ms | faster by | spread | of the "
        "floor | differs by |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for number, truth in enumerate(truths):
        floor = median(
            timed(lambda: np.count_nonzero(truth) + np.count_nonzero(truth))[0] for _ in range(21)
        )
        predicted = (
            {"a model's": predicted_for(chosen.scan[number], chosen.predicted)}
            if chosen.predicted
            else {}
        )
        for name, prediction in (predicted | predictions_of(truth)).items():
            for spacing in ((MM, MM, MM), (MM, MM, 1.5)):
                rows = [
                    (
                        timed(lambda: by_medpy(prediction, truth, spacing)),
                        timed(lambda: segmentation_metrics(prediction, truth, spacing)),
                    )
                    for _ in range(chosen.rounds)
                ]
                ratios = [theirs[0] / ours[0] for theirs, ours in rows]
                (theirs, ours) = rows[0]
                mine = median(row[1][0] for row in rows)
                apart = max(
                    abs(ours[1][metric.key] - value)
                    for metric, value in zip(SHOWN, theirs[1], strict=True)
                )
                print(
                    f"| {number} | {name} | {ours[1]['dice']:.3f} | "
                    f"{'even' if spacing[2] == MM else 'uneven'} | "
                    f"{1000 * median(row[0][0] for row in rows):.0f} | {1000 * mine:.0f} | "
                    f"{median(ratios):.0f} | "
                    f"{min(ratios):.0f} to {max(ratios):.0f} | {mine / floor:.0f} | {apart:.0e} |",
                    flush=True,
                )


def label_of(path: Path) -> np.ndarray:
    import h5py

    with h5py.File(path) as opened:
        return opened["label"][:] > 0


def predicted_for(scan: Path, folder: Path) -> np.ndarray:
    from dkuxnet.data import formats

    return (
        np.ascontiguousarray(
            formats.read(folder / f"{scan.parent.name}.nii.gz", kind="label").array
        )
        > 0
    )


if __name__ == "__main__":
    main()
