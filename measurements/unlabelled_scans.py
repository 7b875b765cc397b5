"""How well the runs of a benchmark segment the unlabelled scans that they were trained with.

    python measurements/unlabelled_scans.py BENCHMARK PREPARED --labelled 4

BENCHMARK: the folder that `dkuxnet benchmark` wrote. No training has seen these scans' labels; here
they are opened, to score. Each run's Dice is kept beside this script's work in
BENCHMARK/unlabelled/, so that a second call goes on. Prints a table: Dice, gain over `supervised`
with its interval over scans and seeds, Wilcoxon's test against the reference with Holm's
correction.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from dkuxnet.benchmark.grid import BOUND
from dkuxnet.benchmark.significance import against_reference, gain, spread
from dkuxnet.benchmark.text import plain, show_gain, show_p, show_spread, table_lines
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.metrics import DICE, dice
from dkuxnet.machine.files import write_json
from dkuxnet.models.components import Cleaning
from dkuxnet.prediction.predictor import load_predictor
from dkuxnet.prediction.windows import Windows, label_on_scan, sliding_window


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--labelled", type=int, required=True)
    parser.add_argument("--reference", default="dual-mutual")
    parser.add_argument("--every", type=int, default=1, help="take every n-th scan only")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    data = PreparedSet(chosen.prepared)
    arms: dict[str, dict[int, np.ndarray]] = {}
    for run in sorted((chosen.benchmark / "runs").glob(f"*_n{chosen.labelled}_seed*")):
        if (run / "evaluation" / "summary.json").is_file():
            arm, seed = run.name.split("_")[0], int(run.name.rsplit("seed", 1)[1])
            arms.setdefault(arm, {})[seed] = scored(run, data, chosen)
            print(run.name, f"{arms[arm][seed].mean():.4f}", flush=True)
    print_table(arms, chosen.reference)


def scored(run: Path, data: PreparedSet, chosen) -> np.ndarray:
    """Dice of every scan, the mean over classes."""
    kept = chosen.benchmark / "unlabelled" / f"{run.name}_every{chosen.every}.json"
    if not kept.is_file():
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, scores(run, data, chosen.every))
    return np.array([*json.loads(kept.read_text()).values()])


def scores(run: Path, data: PreparedSet, every: int) -> dict[str, float]:
    predictor, settings, manifest = load_predictor(run)
    classes, found = len(data.meta.labels), {}
    windows = Windows(manifest.patch, classes, settings.infer, torch.device("cpu"))
    for name in manifest.split.unlabelled[::every]:
        info, truth = data.info(name), np.asarray(data.array(name, "truth"))
        image = np.asarray(data.array(name, "image"))
        prob = sliding_window(predictor, image, windows).prob
        affine = np.array(info.affine)
        label = label_on_scan(
            prob, info.shape, affine, Cleaning.of(settings.infer, list(manifest.labels))
        )
        found[name] = float(np.mean([dice(label == k, truth == k) for k in range(1, classes)]))
    return found


def print_table(arms: dict[str, dict[int, np.ndarray]], reference: str) -> None:
    tests = against_reference(arms, reference) if reference in arms else {}
    rows = []
    for arm, runs in sorted(
        arms.items(), key=lambda item: -np.mean([run.mean() for run in item[1].values()])
    ):
        better = gain(runs, arms[BOUND]) if arm != BOUND and BOUND in arms else None
        means = [run.mean() for run in runs.values()]
        rows.append(
            [
                arm,
                plain(show_spread(DICE, *spread(means))),
                ", ".join(DICE.show(mean, compared=True).removeprefix("0") for mean in means),
                plain(show_gain(better)),
                plain(show_p(tests.get(arm))),
            ]
        )
    print("\n".join(table_lines(("arm", "Dice", "by seed", "gain in Dice", "p (Holm)"), rows)))


if __name__ == "__main__":
    main()
