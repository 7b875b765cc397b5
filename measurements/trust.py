"""Does the program know when not to trust a label map? For docs/trust.md.

    python measurements/trust.py RUN SCANS [--strange OTHER_SCANS ...] [--count 8]

RUN: a finished run with test cases. First: how well the Dice that is estimated for each test case
from the others follows the true one. Then scans of SCANS (its test cases), changed so that they
are strange, and scans of other sets: how many are flagged as unlike the training scans.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import spearmanr

from dkuxnet.core.types import Volume
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.prediction.segment import Segmenter
from dkuxnet.prediction.trust import Estimator, explains
from dkuxnet.runs.folder import RunFolder

RNG = np.random.default_rng(0)
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda x: x,
    "left and right exchanged": lambda x: x[:, ::-1],
    "front and back exchanged": lambda x: x[:, :, ::-1],
    "upside down": lambda x: x[:, :, :, ::-1],
    "turned by 90 degrees in plane": lambda x: np.rot90(x, 1, (1, 2)),
    "two axes exchanged": lambda x: x.swapaxes(1, 3),
    "contrast inverted": lambda x: x.max() - x,
    "edges alone": lambda x: ndimage.gaussian_gradient_magnitude(x, (0, 1, 1, 1)),
    "cut in half": lambda x: x[:, :, : x.shape[2] // 2],
    "every other voxel": lambda x: x[:, ::2, ::2, ::2],
    "noise in place of the scan": lambda x: RNG.normal(size=x.shape),
    "noise, smooth": lambda x: ndimage.gaussian_filter(RNG.normal(size=x.shape), (0, 4, 4, 4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--strange", type=Path, nargs="*", default=[])
    parser.add_argument("--count", type=int, default=8)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print_estimates(chosen.run)
    segmenter = Segmenter(chosen.run)
    test = RunFolder(chosen.run).manifest.split.test
    own = list(scans(chosen.scans, segmenter, test, chosen.count))
    print("\n| scans | flagged | unlike, median |\n|---|---|---|")
    for name, change in CHANGES.items():
        print_flagged(name, segmenter, [changed(scan, change) for scan in own])
    for folder in chosen.strange:
        others = list(scans(folder, segmenter, None, chosen.count))
        print_flagged(f"of {folder.name}", segmenter, others)


def print_estimates(run: Path) -> None:
    """Each test case's Dice against the estimate from the others."""
    held_out = RunFolder(run).reference.held_out
    print(
        "| class | cases | Spearman | mean absolute error | of the mean | worst tenth flagged | false alarms |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in RunFolder(run).reference.volumes_ml:
        known = [case for case in held_out if name in case.dice]
        x = [explains(case.confidence[name], case.unlike) for case in known]
        dice = np.array([case.dice[name] for case in known])
        estimated, usual = Estimator.left_out(np.array(x), dice)
        mean = (dice.sum() - dice) / (len(dice) - 1)
        worst, flagged = dice <= np.quantile(dice, 0.1), estimated < usual
        print(
            f"| {name} | {len(dice)} | {spearmanr(dice, estimated)[0]:.2f} "
            f"| {np.abs(dice - estimated).mean():.3f} | {np.abs(dice - mean).mean():.3f} "
            f"| {flagged[worst].sum()} of {worst.sum()} | {flagged[~worst].sum()} of {(~worst).sum()} |"
        )


def scans(folder: Path, segmenter: Segmenter, names, count: int) -> Iterator[Volume]:
    cases = find_cases([folder], None, len(segmenter.channels), None)
    for case in [c for c in cases if names is None or c.name in names][:count]:
        yield read_image(case, len(segmenter.channels))


def changed(scan: Volume, change: Callable[[np.ndarray], np.ndarray]) -> Volume:
    return replace(scan, array=np.ascontiguousarray(change(scan.array), np.float32), nifti=None)


def print_flagged(name: str, segmenter: Segmenter, given: list[Volume]) -> None:
    unlike = np.array([segmenter(scan).trust.unlike for scan in given])
    print(
        f"| {name} | {(unlike > 1).sum()} of {len(unlike)} | {np.median(unlike):.2f} |", flush=True
    )


if __name__ == "__main__":
    main()
