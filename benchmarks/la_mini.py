"""la-mini: what unlabelled scans are worth on the left atrium at 2.5 mm, on a CPU. Makes the table of docs/results.md.

    python benchmarks/la_mini.py SOURCE WORK [--seeds 3] [--steps N] [--labelled 8]

SOURCE is the field's h5 copy (80 scans with train.list). The first 64 cases are the training pool, the last 16 the
development test. For every seed: `dual-mutual` with N labelled, `supervised` with N and with all 64, the same preset, the
same steps. A run that is done is not made again and one that was stopped goes on, so the command can be repeated.
"""

import argparse
import platform
import statistics
import subprocess
from pathlib import Path

from dkuxnet import load_settings, prepare_scans, run_training
from dkuxnet.run import read_json

POOL = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--labelled", type=int, default=8)
    chosen = parser.parse_args()
    prepared = chosen.work / "prepared"
    if not prepared.exists():
        prepare_scans(chosen.source, prepared, spacing_mm=2.5)
    arms = [("dual-mutual", chosen.labelled), ("supervised", chosen.labelled), ("supervised", POOL)]
    done: dict[tuple[str, int], list[dict]] = {arm: [] for arm in arms}
    for seed in range(chosen.seeds):
        for method, labelled in arms:
            run = chosen.work / f"{method}_{labelled}_seed{seed}"
            done[method, labelled].append(train_once(prepared, run, method, labelled, seed, chosen.steps))
            print(f"{run.name}: {describe(done[method, labelled][-1])}", flush=True)
    print(table(done, arms, chosen.labelled))


def train_once(prepared: Path, run: Path, method: str, labelled: int, seed: int, steps: int | None) -> dict:
    """The manifest of a finished run, which is made or gone on with where it is not there yet."""
    if (run / "manifest.json").exists() and "test" in read_json(run / "manifest.json"):
        return read_json(run / "manifest.json")
    overrides = {"method.name": method, "data.labelled": labelled, "train.seed": seed}
    settings = load_settings("la-mini", overrides=overrides | ({"train.steps": steps} if steps else {}))
    return run_training(prepared, run, settings, resume=(run / "checkpoint.pt").exists())


def figures(manifest: dict) -> dict[str, float]:
    return {metric: manifest["test"]["LA"][metric]["mean"] for metric in ("dice", "jaccard", "hd95_voxels", "asd_voxels")}


def describe(manifest: dict) -> str:
    return ", ".join(f"{k} {v:.4f}" for k, v in figures(manifest).items()) + f", {manifest['train_seconds'] / 60:.1f} min"


def table(done: dict, arms: list, labelled: int) -> str:
    """Markdown: mean and standard deviation over seeds, then the share of the gap closed, a seed at a time and in the mean."""
    one = next(iter(done.values()))[0]
    revision = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    lines = [
        f"{len(next(iter(done.values())))} seeds, {one['steps_done']} steps, {one['network']}, patch {one['patch']}, "
        f"torch {one['machine']['torch']}, {one['machine']['cpu_threads']} threads, {platform.machine()}, "
        f"revision {revision.stdout.strip()}",
        "",
        "| method | labelled | Dice | Jaccard | 95HD (voxels) | ASD (voxels) | training, minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        rows = [figures(manifest) for manifest in done[arm]]
        cells = [spread([row[metric] for row in rows], 4 if metric in ("dice", "jaccard") else 2) for metric in rows[0]]
        minutes = spread([manifest["train_seconds"] / 60 for manifest in done[arm]], 1)
        lines.append(f"| {arm[0]} | {arm[1]} | {' | '.join(cells)} | {minutes} |")
    dice = {arm: [figures(manifest)["dice"] for manifest in done[arm]] for arm in arms}
    method, low, high = (statistics.mean(dice[arm]) for arm in arms)
    shares = [f"{(m - a) / (b - a):.0%}" for m, a, b in zip(*(dice[arm] for arm in arms), strict=True)]
    lines += ["", f"Share of the gap closed with {labelled} labelled: {(method - low) / (high - low):.0%} in the mean "
              f"(a seed at a time: {', '.join(shares)})."]
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    std = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{std}"


if __name__ == "__main__":
    main()
