"""Predicting a scan: ours against MONAI's sliding window at equal window and overlap, and against
the field's test loop.

    OMP_NUM_THREADS=1 python measurements/prediction.py [--scan FILE.h5] [--network ours] [--device cuda --precision bf16]
    python measurements/prediction.py --prepared PREPARED --run RUN [--cases 16] [--stride 9 9 2] [--overlaps 0.25 0.75]

The first prints seconds. Without a scan: a synthetic one; the weights are fresh, as the time does
not depend on them. The field's loop cuts windows at stride 18/18/4, runs them one by one and adds
softmax maps in numpy; `--sample` of its windows, all over the scan, are timed and multiplied to
all. Under torch.no_grad, as their scripts do, the peers run the same network as one would first
write it (plain_network.py, the same weights); with `--network ours` they run ours, and what is left
is the windows. Medians over rounds, by turns: with one thread of processor seconds.

The second prints the Dice of each against the truth on the scans' own grid, and the paired
difference of the field's loop and MONAI's from ours, over the test cases of a run, all with our
network. `--stride`: of the field's loop in these voxels; `--overlaps`: ours with others besides.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from dkuxnet.core.config import InferSettings
from dkuxnet.core.types import NetworkShape, Output
from dkuxnet.models.components import Cleaning
from dkuxnet.models.methods.base import Ensemble
from dkuxnet.models.networks.grouping import default_groups
from dkuxnet.prediction.predictor import load_predictor
from dkuxnet.prediction.windows import Windows, sliding_window, window_starts
from prediction_peers import STRIDE, field_loop, monai_loop, plainly

CLOCK = (
    time.process_time
    if torch.get_num_threads() == 1 and not torch.cuda.is_available()
    else time.perf_counter
)


class InPrecision(nn.Module):
    """A predictor under autocast, where that is asked for."""

    def __init__(self, predictor: nn.Module, device: str, precision: str):
        super().__init__()
        self.predictor, self.device, self.bf16 = predictor, device, precision == "bf16"

    def forward(self, image: torch.Tensor) -> Output:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.predictor(image)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, help="the field's h5, 0.625 mm")
    parser.add_argument("--window", type=int, nargs=3, default=(112, 112, 80))
    parser.add_argument("--overlap", type=float, default=InferSettings().overlap)
    parser.add_argument("--batch", type=int, default=InferSettings().batch)
    parser.add_argument(
        "--network", choices=("plain", "ours"), default="plain", help="what the peers run"
    )
    parser.add_argument(
        "--sample", type=int, default=3, help="windows of the field's loop that are timed"
    )
    parser.add_argument(
        "--monai-batch", type=int, nargs="*", default=[1, 4], help="MONAI's sw_batch_size"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--prepared", type=Path, help="a prepared set whose test cases give the Dice"
    )
    parser.add_argument("--run", type=Path, help="a finished run of two classes on it")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--stride", type=int, nargs=3, default=STRIDE)
    parser.add_argument(
        "--overlaps",
        type=float,
        nargs="*",
        default=[],
        help="of further loops of ours that give their Dice",
    )
    chosen = parser.parse_args()
    if chosen.prepared:
        agreement(chosen)
    else:
        seconds(chosen)


def seconds(chosen: argparse.Namespace) -> None:
    networks = fresh(chosen.device)
    theirs = InPrecision(
        networks if chosen.network == "ours" else plainly(networks), chosen.device, chosen.precision
    ).eval()
    ours = InPrecision(networks, chosen.device, chosen.precision).eval()
    image, window = scan_of(chosen.scan), tuple(chosen.window)
    settings = InferSettings(overlap=chosen.overlap, batch=chosen.batch)
    windows = Windows(window, 2, settings, torch.device(chosen.device))
    work: dict[str, Callable[[], float]] = {
        "ours": lambda: timed(lambda: sliding_window(ours, image, windows)),
        "the field's loop": lambda: field_loop(
            theirs, image, window, chosen.device, STRIDE, chosen.sample, CLOCK
        )[0],
    }
    try:
        import monai.inferers  # noqa: F401
    except ImportError:
        print("without MONAI: pip install monai")
    else:
        for batch in chosen.monai_batch:
            work[f"MONAI, sw_batch_size {batch}"] = lambda b=batch: timed(
                lambda: monai_loop(theirs, image, window, chosen.overlap, b, chosen.device)
            )
    taken = [{name: each() for name, each in work.items()} for _ in range(chosen.rounds)]
    windows = np.prod(
        [
            len(window_starts(max(n, w), w, chosen.overlap))
            for n, w in zip(image.shape[1:], window, strict=True)
        ]
    )
    print(
        f"scan {image.shape[1:]}, window {window}, overlap {chosen.overlap}, {windows} windows; "
        "peers run the "
        f"{chosen.network} network, {torch.get_num_threads()} threads\n\n"
        "| | seconds | ours is faster by | spread |\n|---|---|---|---|"
    )
    for name in work:
        ratios = [each[name] / each["ours"] for each in taken]
        print(
            f"| {name} | {median(each[name] for each in taken):.1f} | {median(ratios):.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} |"
        )


def agreement(chosen: argparse.Namespace) -> None:
    """Dice of the test cases of a run, by three loops over the same network."""
    from dkuxnet.data.prepared_set import PreparedSet
    from dkuxnet.evaluation.metrics import dice
    from dkuxnet.prediction.windows import label_on_scan

    predictor, settings, manifest = load_predictor(chosen.run, device=chosen.device)
    predictor, window = (InPrecision(predictor, chosen.device, chosen.precision), manifest.patch)
    data, infer, device = PreparedSet(chosen.prepared), settings.infer, torch.device(chosen.device)
    loops = {
        "ours": lambda image: (
            sliding_window(predictor, image, Windows(window, 2, infer, device)).prob
        ),
        "MONAI": lambda image: monai_loop(
            predictor, image, window, infer.overlap, 1, chosen.device
        ),
        "the field's loop": lambda image: field_loop(
            predictor, image, window, chosen.device, chosen.stride
        )[1],
    }
    for overlap in chosen.overlaps:
        other = infer.model_copy(update={"overlap": overlap})
        windows = Windows(window, 2, other, device)
        loops[f"ours, overlap {overlap}"] = lambda image, windows=windows: (
            sliding_window(predictor, image, windows).prob
        )
    found: dict[str, list[float]] = {name: [] for name in loops}
    for name in manifest.split.test[: chosen.cases]:
        info, image = data.info(name), np.asarray(data.array(name, "image"))
        for loop, predict in loops.items():
            label = label_on_scan(
                predict(image),
                info.shape,
                np.array(info.affine),
                Cleaning.of(infer, list(manifest.labels)),
            )
            found[loop].append(dice(label == 1, np.asarray(data.array(name, "truth")) == 1))
    print(
        f"window {window}, overlap {infer.overlap}, the field's stride {tuple(chosen.stride)}, "
        f"{len(found['ours'])} cases"
        "\n\n| | Dice | difference from ours | standard error |\n|---|---|---|---|"
    )
    for loop, scores in found.items():
        apart = np.subtract(scores, found["ours"])
        print(
            f"| {loop} | {np.mean(scores):.4f} | {apart.mean():+.4f} | "
            f"{apart.std(ddof=1) / len(apart) ** 0.5:.4f} |"
        )


def timed(work: Callable[[], object]) -> float:
    started = CLOCK()
    work()
    return CLOCK() - started


def fresh(device: str, network: str = "dk-uxnet-tiny") -> Ensemble:
    from dkuxnet.core.lookup import lookup
    from dkuxnet.machine.devices import to_device
    from dkuxnet.models.networks import NETWORKS

    torch.manual_seed(0)
    shape = NetworkShape(1, 2, default_groups(["background", "LA"], 16))
    build = lookup(NETWORKS, network, "network")
    return to_device(Ensemble([build(shape, {}) for _ in range(2)]), torch.device(device)).eval()


def scan_of(file: Path | None) -> np.ndarray:
    """(1, X, Y, Z) float32, normalised."""
    if file is None:
        image = np.random.default_rng(0).normal(size=(1, 183, 140, 88))
    else:
        import h5py

        with h5py.File(file) as opened:
            image = opened["image"][:][None]
    return ((image - image.mean()) / image.std()).astype(np.float32)


if __name__ == "__main__":
    main()
