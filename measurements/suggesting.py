"""Does `dkuxnet suggest` choose better than chance? For docs/loop.md.

    python measurements/suggesting.py PREPARED OUTPUT --preset la-mini --pool 64 --set train.steps=500

From 4 labelled cases of the first --pool (drawn by the seed), --rounds rounds of 2 more, each round
with a supervised training of its own from scratch. Strategies: `suggest` as the command does it,
`doubt` those that the model is least sure of, `random`. Can be stopped and gone on with. Prints Dice of the test cases over labels.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from dkuxnet.core.confidence import class_confidence
from dkuxnet.core.config import load_settings, parse_override
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.statistics import FOREGROUND_MEAN
from dkuxnet.prediction.predictor import load_predictor
from dkuxnet.prediction.suggest import Look, ranked
from dkuxnet.prediction.trust import Trust
from dkuxnet.prediction.windows import Windows, sliding_window
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.experiment import run_training

MORE = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prepared", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--pool", type=int, required=True)
    parser.add_argument("--test", type=int, default=16)
    parser.add_argument("--start", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="*", default=["random", "suggest", "doubt"])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = PreparedSet(chosen.prepared)
    for seed in chosen.seeds:
        for strategy in chosen.strategies:
            follow(strategy, seed, data, chosen)
    print_table(chosen)


def follow(strategy: str, seed: int, data: PreparedSet, chosen) -> None:
    """All rounds of a strategy."""
    pool = data.names[: chosen.pool]
    order = np.random.default_rng(seed).permutation(len(pool))
    labelled = [pool[i] for i in order[: chosen.start]]
    for number in range(chosen.rounds + 1):
        run = chosen.output / (f"{strategy}_{seed}_{number}" if number else f"start_{seed}")
        if not RunFolder(run).is_finished:
            train(run, labelled, pool, seed, data, chosen)
        if number < chosen.rounds:
            rest = [name for name in pool if name not in labelled]
            labelled = labelled + choose(strategy, run, rest, labelled, order, data)
            assert len(set(labelled)) == len(labelled)


def train(run: Path, labelled, pool, seed: int, data: PreparedSet, chosen) -> None:
    split = run.with_suffix(".json")
    split.parent.mkdir(parents=True, exist_ok=True)
    rest = [name for name in pool if name not in labelled]
    lists = {"labelled": labelled, "unlabelled": rest, "test": data.names[-chosen.test :]}
    split.write_text(json.dumps(lists))
    overrides = dict(map(parse_override, chosen.set)) | {
        "method.name": "supervised",
        "data.split": str(split),
        "train.seed": seed,
        "train.reference_cases": 0,
    }
    run_training(chosen.prepared, run, load_settings(chosen.preset, None, overrides))


def choose(strategy: str, run: Path, rest, labelled, order, data: PreparedSet) -> list[str]:
    """The next cases to label."""
    if strategy == "random":
        return [data.names[i] for i in order if data.names[i] in rest][:MORE]
    looks = [look(run, name, data) for name in [*rest, *labelled]]
    if strategy == "doubt":
        sure = [np.nanmean([*each.confidence.values()]) for each in looks[: len(rest)]]
        return [rest[i] for i in np.argsort(sure)[:MORE]]
    return [rest[i] for i, _ in ranked(looks, range(len(rest), len(looks)), MORE)]


_predictors: dict[Path, tuple] = {}


def look(run: Path, name: str, data: PreparedSet) -> Look:
    """As `Look.at`, on the prepared grid."""
    if run not in _predictors:
        _predictors.clear()
        _predictors[run] = load_predictor(run)
    predictor, settings, manifest = _predictors[run]
    shape = manifest.shape
    windows = Windows(
        manifest.patch, shape.classes, settings.infer, torch.device("cpu"), with_signature=True
    )
    grid = sliding_window(predictor, data.array(name, "image"), windows)
    voxels = np.bincount(grid.prob.argmax(0).ravel(), minlength=shape.classes)
    names = data.class_names
    return Look(
        grid.signature,
        dict(zip(names[1:], class_confidence(grid.prob)[1:], strict=True)),
        {names[k]: float(n) for k, n in enumerate(voxels) if k and n},
        Trust(),
    )


def print_table(chosen) -> None:
    counts = [chosen.start + MORE * number for number in range(chosen.rounds + 1)]
    print(
        "| strategy | " + " | ".join(f"{n} labelled" for n in counts) + " | mean after the start |"
    )
    print("|---" * (len(counts) + 2) + "|")
    for strategy in chosen.strategies:
        table = np.array(
            [
                [
                    dice(chosen.output / (f"{strategy}_{s}_{r}" if r else f"start_{s}"))
                    for r in range(chosen.rounds + 1)
                ]
                for s in chosen.seeds
            ]
        )
        cells = [f"{m:.4f} ± {d:.4f}" for m, d in zip(table.mean(0), spread(table), strict=True)]
        after = table[:, 1:].mean(axis=1)
        by_seed = ", ".join(f"{value:.4f}"[1:] for value in after)
        print(f"| {strategy} | " + " | ".join(cells) + f" | {after.mean():.4f} ({by_seed}) |")


def spread(table: np.ndarray) -> np.ndarray:
    return table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])


def dice(run: Path) -> float:
    return RunFolder(run).manifest.test[FOREGROUND_MEAN]["dice"].mean


if __name__ == "__main__":
    main()
