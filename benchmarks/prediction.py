"""Predicting a scan: ours against MONAI's sliding window at equal window and overlap, and against the field's test loop.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py [--scan FILE.h5 --run RUN] [--device cuda --precision bf16]

Without a scan: a synthetic one, and fresh weights (the time of a prediction does not depend on them). The field's loop cuts
windows at stride 18/18/4, runs them one by one and adds softmax maps in numpy. The peers run the same network without its
inference path, under torch.no_grad as their scripts do. Whole scans take the field minutes: each peer is timed on `--sample` of
its windows, evenly spread, and multiplied to all. Prints medians over rounds, by turns: with one thread of processor seconds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from dkuxnet.build import load_predictor
from dkuxnet.config import InferSettings
from dkuxnet.infer import sliding_window, window_starts
from dkuxnet.methods.base import MeanOf
from dkuxnet.networks.dkuxnet import dk_uxnet_tiny
from dkuxnet.networks.grouping import default_groups
from dkuxnet.types import NetworkShape, Output

STRIDE = (18, 18, 4)
CLOCK = time.process_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter


class InPrecision(nn.Module):
    """A predictor under autocast, where that is asked for."""

    def __init__(self, predictor: nn.Module, device: str, precision: str):
        super().__init__()
        self.predictor, self.device, self.bf16 = predictor, device, precision == "bf16"

    def forward(self, image: torch.Tensor) -> Output:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.predictor(image)


def field_loop(predictor: nn.Module, image: np.ndarray, window: tuple[int, ...], device: str, most: int):
    """Seconds of the field's loop by `most` of its windows, evenly spread; how many it has; the label map of these."""
    steps = [range(-(-(size - w) // s) + 1) for size, w, s in zip(image.shape[1:], window, STRIDE, strict=True)]
    places = [tuple(min(i * s, size - w) for i, s, size, w in zip(at, STRIDE, image.shape[1:], window, strict=True))
              for at in np.ndindex(*map(len, steps))]
    score, count = np.zeros((2, *image.shape[1:]), np.float32), np.zeros(image.shape[1:], np.float32)
    chosen = [places[i] for i in np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)]
    started = CLOCK()
    for place in chosen:
        box = tuple(slice(a, a + w) for a, w in zip(place, window, strict=True))
        patch = torch.from_numpy(image[(slice(None), *box)][None].astype(np.float32)).to(device)
        with torch.no_grad():
            prob = predictor(patch).logits.float().softmax(dim=1)
        score[(slice(None), *box)] += prob.cpu().numpy()[0]
        count[box] += 1
    label = np.argmax(score / np.maximum(count, 1), axis=0)
    return (CLOCK() - started) * len(places) / len(chosen), len(places), label


def monai_loop(predictor: nn.Module, image: np.ndarray, window: tuple[int, ...], overlap: float, batch: int, device: str):
    from monai.inferers import sliding_window_inference

    with torch.no_grad():
        prob = sliding_window_inference(torch.from_numpy(image)[None].to(device), window, batch,
                                        lambda x: predictor(x).logits.float().softmax(dim=1), overlap, mode="gaussian")
    return prob[0].cpu().numpy().argmax(axis=0)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    started = CLOCK()
    result = work()
    return CLOCK() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, help="the field's h5, 0.625 mm")
    parser.add_argument("--run", type=Path, help="a finished run of two classes")
    parser.add_argument("--window", type=int, nargs=3, default=(112, 112, 80))
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--sample", type=int, default=6, help="windows of the field's loop that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    chosen = parser.parse_args()
    predictor = InPrecision(network(chosen.run, chosen.device), chosen.device, chosen.precision)
    image, window = scan_of(chosen.scan), tuple(chosen.window)
    settings = InferSettings(overlap=chosen.overlap, batch=chosen.batch)
    ours = lambda: sliding_window(predictor, image, window, 2, settings, torch.device(chosen.device)).prob.argmax(axis=0)  # noqa: E731
    peers: dict[str, Callable[[], np.ndarray]] = {}
    try:
        for batch in (1, 4):
            peers[f"MONAI, sw_batch_size {batch}"] = (
                lambda b=batch: monai_loop(predictor, image, window, chosen.overlap, b, chosen.device))
    except ImportError:
        print("without MONAI: pip install monai")
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "the field's loop", *peers)}
    dice: dict[str, float] = {}
    for _ in range(chosen.rounds):
        taken, label = timed(ours)
        seconds["ours"].append(taken)
        for name, peer in peers.items():
            taken, theirs = timed(peer)
            seconds[name].append(taken)
            dice[name] = agreement(label, theirs)
        taken, windows, theirs = field_loop(predictor, image, window, chosen.device, chosen.sample)
        seconds["the field's loop"].append(taken)
        if chosen.sample >= windows:
            dice["the field's loop"] = agreement(label, theirs)
    mine = np.prod([len(window_starts(max(n, w), w, chosen.overlap)) for n, w in zip(image.shape[1:], window, strict=True)])
    print(f"scan {image.shape[1:]}, window {window}, overlap {chosen.overlap}, {mine} windows; the field {windows}, "
          f"{min(chosen.sample, windows)} of them timed\n\n| | seconds | ours is faster by | spread | Dice with ours |\n"
          "|---|---|---|---|---|")
    for name, each in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(each, seconds["ours"], strict=True)]
        print(f"| {name} | {median(each):.1f} | {median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | "
              f"{'' if name not in dice else f'{dice[name]:.4f}'} |")


def network(run: Path | None, device: str) -> nn.Module:
    if run:
        return load_predictor(run, device=device)[0]
    from dkuxnet.devices import to_device

    torch.manual_seed(0)
    shape = NetworkShape(1, 2, default_groups(["background", "LA"], 16))
    return to_device(MeanOf([dk_uxnet_tiny(shape, {}) for _ in range(2)]), torch.device(device)).eval()


def scan_of(file: Path | None) -> np.ndarray:
    """(1, X, Y, Z) float32, normalised."""
    if file is None:
        image = np.random.default_rng(0).normal(size=(1, 184, 140, 88))
    else:
        import h5py

        with h5py.File(file) as opened:
            image = opened["image"][:][None]
    return ((image - image.mean()) / image.std()).astype(np.float32)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.sum((a == 1) & (b == 1)) / max(np.sum(a == 1) + np.sum(b == 1), 1)


if __name__ == "__main__":
    main()
