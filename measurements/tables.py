"""The tables of the results from figures that were kept, without a training.

    python measurements/tables.py docs/measured/acdc.csv
    python measurements/tables.py docs/measured/la_mini_16.csv --labelled 16 --reference dual-mutual

The first has every arm with every number of labels, as in docs/results.md: its mean and standard
deviation over seeds, 95HD in voxels, its gain in Dice over `supervised`, the median minutes of a
training. The second has one number of labels, as in docs/results-la-mini.md: more figures, and the
p of Wilcoxon's test against the reference with Holm's correction.

A file is what measurements/gather.py makes of runs, or what `dkuxnet benchmark` writes as
cases.csv, of one network (with a line for each class, or for each case as before there was a column
for it); several are joined, as where the seeds of a grid were made on different days. Gains have
their intervals over cases and seeds. Where a file counts voxels, it is told how often a class was
missed. An arm of other seeds than `supervised` has no gain, one of other seeds than the reference
no p.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dkuxnet.benchmark.grid import BOUND
from dkuxnet.benchmark.significance import against_reference, gain, spread
from dkuxnet.benchmark.text import (
    GAIN,
    MINUTES,
    MISSED,
    P,
    plain,
    show_gain,
    show_p,
    show_spread,
    table_lines,
)
from dkuxnet.evaluation.metrics import DICE, METRICS, NOTHING, SHOWN, Metric
from dkuxnet.evaluation.statistics import known_mean

VOXELS = [metric for metric in METRICS if metric.key in ("dice", "hd95_voxels")]
KEYS = [metric.key for metric in METRICS]
Runs = dict[str, dict[int, dict[str, np.ndarray]]]  # arm -> seed -> metric -> (cases,)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--labelled", help="a number, or all; without it one table of every number")
    parser.add_argument("--reference", default=BOUND, help="of the p, with --labelled")
    chosen = parser.parse_args()
    try:
        found = read(chosen.files)
        if chosen.labelled:
            lines = table(found, chosen.labelled, chosen.reference)
        else:
            lines = overview(found)
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
        missed, minutes = np.concatenate(by_class)[:, len(KEYS) :].T
        figures |= {MISSED: missed, MINUTES: minutes[:1]}
        found.setdefault(labelled, {}).setdefault(arm, {})[seed] = figures
    return found


def figures_of(row: dict[str, str]) -> list[float]:
    """KEYS, then whether the class was missed, and the minutes of the training.

    NaN where that is not known, or there is none.
    """
    counts = {key: float(row.get(key) or "nan") for key in ("n_pred", "n_ref")}
    figures = [
        float(row[metric.key] or "nan") if 0 not in counts.values() or not metric.unit else np.nan
        for metric in METRICS
    ]
    missed = float(counts["n_pred"] == 0) if counts["n_ref"] > 0 else np.nan
    return [*figures, missed, float(row.get(MINUTES) or "nan")]


def overview(found: dict[str, Runs]) -> list[str]:
    """Its lines: of each number of labels `supervised`, then the other arms by their Dice."""
    counted = any(np.nansum(_missed(runs)) for arms in found.values() for runs in arms.values())
    rows = []
    for labelled in sorted(found, key=lambda count: float("inf" if count == "all" else count)):
        arms = found[labelled]
        for arm in _ranked(arms):
            minutes = np.median([run[MINUTES][0] for run in arms[arm].values()])
            figures = _figures(arms[arm], VOXELS, counted)
            took = NOTHING if np.isnan(minutes) else f"{minutes:.1f}"
            rows.append([arm, labelled, *figures, _gain(arms, arm), took])
    return table_lines(["arm", "labelled", *_headings(VOXELS, counted), GAIN, MINUTES], rows)


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
    rows, counted = [], any(np.isfinite(_missed(runs)).any() for runs in arms.values())
    for arm in _ranked(arms):
        figures = _figures(arms[arm], SHOWN, counted)
        rows.append([arm, *figures, _gain(arms, arm), plain(show_p(tests.get(arm)))])
    if BOUND in found.get("all", {}) and labelled != "all":
        figures = _figures(found["all"][BOUND], SHOWN, counted)
        rows.append([f"{BOUND}, all labels", *figures, NOTHING, NOTHING])
    return table_lines(["arm", *_headings(SHOWN, counted), GAIN, P], rows)


def _ranked(arms: Runs) -> list[str]:
    dice = {arm: [run["dice"] for run in runs.values()] for arm, runs in arms.items()}
    return sorted(arms, key=lambda arm: (arm != BOUND, -np.mean(dice[arm])))


def _gain(arms: Runs, arm: str) -> str:
    """Over the bound with as many labels, where that has the same seeds."""
    if arm == BOUND or BOUND not in arms or arms[arm].keys() != arms[BOUND].keys():
        return NOTHING
    ours, bound = ({s: run["dice"] for s, run in arms[name].items()} for name in (arm, BOUND))
    return plain(show_gain(gain(ours, bound)))


def _missed(runs: dict[int, dict[str, np.ndarray]]) -> np.ndarray:
    return np.concatenate([run[MISSED] for run in runs.values()])


def _headings(metrics: Sequence[Metric], counted: bool) -> list[str]:
    """Above `_figures`."""
    first, *others = (metric.title for metric in metrics)
    return [first, "by seed", *others, *([MISSED] if counted else [])]


def _figures(
    runs: dict[int, dict[str, np.ndarray]], metrics: Sequence[Metric], counted: bool
) -> Iterator[str]:
    """metrics: DICE first. counted: whether there is a column of what was missed."""
    for metric in metrics:
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
