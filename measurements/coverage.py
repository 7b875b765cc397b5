"""How often the 95 % intervals of tables and pages hold the true mean, by simulation.

    python measurements/coverage.py
    python measurements/coverage.py --repeats 300 --peers      # a minute

Draws test cases whose true mean is known, and counts. With --peers beside the interval of the
program: Student's t, scipy's percentile bootstrap (what the program had before) and its BCa
(1,000 resamples each). The distributions: Dice that is normal; skewed as of an organ that is mostly
outlined well, Beta(6, 1); more skewed, 1 - a log-normal; and 0 in one case of ten, where the object
is missed. Then gains over seeds and cases: each case, each seed and each run of a case has its own
part, and what seeds differ by is 0, 1 or 3 times the standard error over cases.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import bootstrap, t

from dkuxnet.evaluation.metrics import Array
from dkuxnet.evaluation.statistics import mean_interval

CASES, SEEDS = (5, 8, 12, 16, 30), (1, 2, 3, 5)
Draw = Callable[[np.random.Generator, int], Array]
# name -> (draws so many cases, their true mean)
DICE: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(0.8, 0.1, n), 0.8),
    "skewed": (lambda rng, n: rng.beta(6, 1, n), 6 / 7),
    "very skewed": (lambda rng, n: 1 - np.exp(rng.normal(-2.3, 0.7, n)), 1 - np.exp(-2.055)),
    "1 of 10 missed": (
        lambda rng, n: np.where(rng.random(n) < 0.1, 0, rng.normal(0.85, 0.05, n)),
        0.765,
    ),
}
Interval = Callable[[Array], tuple[float, float]]  # of a table (seeds, cases)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3000)
    parser.add_argument("--peers", action="store_true", help="slow")
    chosen = parser.parse_args()
    methods: dict[str, Interval] = {"dkuxnet": lambda table: mean_interval(table) or (0, 0)}
    if chosen.peers:
        methods |= {"t": student, "percentile": resampled("percentile"), "BCa": resampled("BCa")}
    print(f"| Dice | cases | {' | '.join(methods)} |\n|---|---|{'---|' * len(methods)}")
    for name, (draw, truth) in DICE.items():
        for cases in CASES:
            rng = np.random.default_rng(0)
            tables = [draw(rng, cases)[np.newaxis] for _ in range(chosen.repeats)]
            shares = [coverage(method, tables, truth) for method in methods.values()]
            print(f"| {name} | {cases} | {' | '.join(shares)} |", flush=True)
    print("\n| seeds | cases | seeds differ by 0 | 1 | 3 standard errors |\n|---|---|---|---|---|")
    for seeds in SEEDS:
        for cases in (8, 16, 30):
            shares = [
                coverage(mean_interval, over_seeds(seeds, cases, apart, chosen.repeats), 0.0)
                for apart in (0, 1, 3)
            ]
            print(f"| {seeds} | {cases} | {' | '.join(shares)} |", flush=True)


def coverage(method: Interval, tables: list[Array] | Iterator[Array], truth: float) -> str:
    """Per cent of the intervals that hold `truth`."""
    ends = np.array([method(table) for table in tables])
    inside = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    return f"{100 * inside.mean():.1f}"


def over_seeds(seeds: int, cases: int, apart: float, repeats: int) -> Iterator[Array]:
    """Tables of gains whose true mean is 0."""
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        of_seeds = rng.normal(0, apart * np.sqrt(seeds / cases), (seeds, 1))
        yield rng.normal(size=cases) + rng.normal(size=(seeds, cases)) + of_seeds


def student(table: Array) -> tuple[float, float]:
    n = table.shape[1]
    half = t.ppf(0.975, n - 1) * table[0].std(ddof=1) / np.sqrt(n)
    return table.mean() - half, table.mean() + half


def resampled(kind: str) -> Interval:
    def interval(table: Array) -> tuple[float, float]:
        rng = np.random.default_rng(0)
        found = bootstrap(table, np.mean, n_resamples=1000, method=kind, rng=rng)
        return found.confidence_interval

    return interval


if __name__ == "__main__":
    main()
