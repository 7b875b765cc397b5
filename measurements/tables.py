"""The tables of docs/results.md from figures that were kept, without a training.

    python measurements/tables.py docs/measured/la_mini_16.csv --labelled 16 --reference dual-mutual

A file is what `dkuxnet benchmark` writes as cases.csv, of one network (with a line for each class,
or for each case as before there was a column for it); several are joined, as where
the seeds of a grid were made on different days. Prints each arm's mean and standard deviation over
seeds, its gain in Dice over `supervised` with its interval over cases and seeds, and the p of
Wilcoxon's test against the reference with Holm's correction; where a file counts voxels, how often a
class was missed. An arm of other seeds than
`supervised` has no gain, one of other seeds than the reference no p.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dkuxnet.benchmark.grid import BOUND
from dkuxnet.benchmark.significance import against_reference, gain, spread
from dkuxnet.benchmark.text import MISSED, plain, show_gain, show_p, show_spread, table_lines
from dkuxnet.evaluation.metrics import DICE, NOTHING, SHOWN
from dkuxnet.evaluation.statistics import known_mean

OTHERS = [metric.title for metric in SHOWN if metric is not DICE]
HEADINGS = ("arm", DICE.title, "by seed", *OTHERS, MISSED, "gain in Dice", "p (Holm)")
KEYS = [metric.key for metric in SHOWN]
Runs = dict[str, dict[int, dict[str, np.ndarray]]]  # arm -> seed -> metric -> (cases,)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--labelled", required=True)
    parser.add_argument("--reference", default=BOUND)
    chosen = parser.parse_args()
    try:
        lines = table(read(chosen.files), chosen.labelled, chosen.reference)
    except KeyError as error:
        parser.error(f"a file has no column {error}: it is no cases.csv of dkuxnet benchmark")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print("\n".join(lines))


def read(files: Iterable[Path]) -> dict[str, Runs]:
    """By labelled count, "all" among them.

    Raises ValueError for several networks, a run that stands twice or lacks a case.
    """
    networks: set[str] = set()
    rows: dict[tuple[str, str, int], dict[str, dict[str, list[float]]]] = {}
    for file in files:
        with file.open(newline="", encoding="utf-8") as content:
            for row in csv.DictReader(content):
                networks.add(row["network"])
                run = rows.setdefault((row["labelled"], row["arm"], int(row["seed"])), {})
                classes = run.setdefault(row["case"], {})
                if row.get("class", "") in classes:
                    raise ValueError(
                        f"{file}: {row['arm']} with {row['labelled']} labelled, seed "
                        f"{row['seed']}, stands twice"
                    )
                classes[row.get("class", "")] = figures_of(row)
    if len(networks) > 1:
        raise ValueError(
            f"these runs are of several networks, {' and '.join(sorted(networks))}: give those of "
            "one"
        )
    cases = sorted({case for run in rows.values() for case in run})
    found: dict[str, Runs] = {}
    for (labelled, arm, seed), run in rows.items():
        if len(run) < len(cases):
            raise ValueError(
                f"{arm} with {labelled} labelled, seed {seed}, has {len(run)} of {len(cases)} cases"
            )
        by_class = [np.array([*run[case].values()]) for case in cases]
        columns = np.array([known_mean(each[:, : len(KEYS)], axis=0) for each in by_class]).T
        figures = dict(zip(KEYS, columns, strict=True))
        figures[MISSED] = np.concatenate([each[:, len(KEYS)] for each in by_class])
        found.setdefault(labelled, {}).setdefault(arm, {})[seed] = figures
    return found


def figures_of(row: dict[str, str]) -> list[float]:
    """KEYS, then whether the class was missed; NaN where that is not known, or there is none."""
    counts = {key: float(row.get(key) or "nan") for key in ("n_pred", "n_ref")}
    figures = [
        float(row[metric.key] or "nan") if 0 not in counts.values() or not metric.unit else np.nan
        for metric in SHOWN
    ]
    return [*figures, float(counts["n_pred"] == 0) if counts["n_ref"] > 0 else np.nan]


def table(found: dict[str, Runs], labelled: str, reference: str) -> list[str]:
    """Its lines: `supervised`, the other arms by their Dice, `supervised` with all labels.

    Raises ValueError for what is not there.
    """
    arms = found.get(labelled, {})
    for name in (BOUND, reference):
        if name not in arms:
            raise ValueError(
                f"no run of {name} with {labelled} labelled; there are: {', '.join(arms) or 'none'}"
            )
    dice = {arm: {seed: run["dice"] for seed, run in runs.items()} for arm, runs in arms.items()}
    tests = against_reference(
        {arm: runs for arm, runs in dice.items() if runs.keys() == dice[reference].keys()},
        reference,
    )
    ranked = sorted(arms, key=lambda arm: (arm != BOUND, -np.mean([*dice[arm].values()])))
    rows, counted = [], any(np.isfinite(_missed(runs)).any() for runs in arms.values())
    for arm in ranked:
        last = [NOTHING, plain(show_p(tests.get(arm)))]
        if arm != BOUND and arms[arm].keys() == arms[BOUND].keys():
            last[0] = plain(show_gain(gain(dice[arm], dice[BOUND])))
        rows.append([arm, *_figures(arms[arm], counted), *last])
    if BOUND in found.get("all", {}) and labelled != "all":
        figures = _figures(found["all"][BOUND], counted)
        rows.append([f"{BOUND}, all labels", *figures, NOTHING, NOTHING])
    return table_lines([h for h in HEADINGS if counted or h != MISSED], rows)


def _missed(runs: dict[int, dict[str, np.ndarray]]) -> np.ndarray:
    return np.concatenate([run[MISSED] for run in runs.values()])


def _figures(runs: dict[int, dict[str, np.ndarray]], counted: bool) -> Iterator[str]:
    """counted: whether there is a column of what was missed."""
    for metric in SHOWN:
        yield plain(
            show_spread(metric, *spread([known_mean(run[metric.key], 0) for run in runs.values()]))
        )
        if metric is DICE:
            yield ", ".join(
                DICE.show(run["dice"].mean(), compared=True).removeprefix("0")
                for _, run in sorted(runs.items())
            )
    if counted:
        known = np.isfinite(missed := _missed(runs))
        yield f"{int(missed[known].sum())} of {known.sum()}"


if __name__ == "__main__":
    main()
