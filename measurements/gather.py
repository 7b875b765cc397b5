"""The figures of every test scan of finished runs as one file, for measurements/tables.py.

    python measurements/gather.py "supervised=runs/s8_0" "two stages=runs/c8_0" > docs/measured/SET.csv

The lines are those of a benchmark's cases.csv and the minutes of the training, of both stages where
there are two. A run without "NAME=" is called as its method, or "two stages". With all labels of
the pool its `labelled` is "all". Runs are to differ in arm, labels or seed, and to have one set of test cases.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from dkuxnet.benchmark.figures import COUNTED, KEYS, read_run
from dkuxnet.core.errors import UserError
from dkuxnet.evaluation.evaluate import csv_cell
from dkuxnet.runs.folder import RunFolder

NAMES = ("arm", "network", "labelled", "seed", "case", "class", *KEYS, *COUNTED, "minutes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="[NAME=]RUN", nargs="+")
    chosen = parser.parse_args()
    try:
        lines = [line for run in chosen.runs for line in lines_of(run)]
    except UserError as error:
        parser.error(str(error))
    csv.writer(sys.stdout, lineterminator="\n").writerows([NAMES, *lines])


def lines_of(named: str) -> Iterator[list[object]]:
    """One for each test case and class. Raises UserError where the run is not finished."""
    name, _, path = named.rpartition("=")
    run = RunFolder(Path(path))
    finished = read_run(run.folder, "end its training first")
    manifest = finished.manifest
    stages = [finished.train_seconds, run.coarse.manifest.train_seconds if manifest.coarse else 0]
    labelled = len(manifest.split.labelled) if manifest.split.unlabelled else "all"
    arm = name or ("two stages" if manifest.coarse else manifest.method)
    names = [arm, manifest.network, labelled, run.settings.train.seed]
    for place, case in enumerate(finished.cases):
        for title, figures in finished.by_class.items():
            cells = [csv_cell(float(figures[key][place])) for key in (*KEYS, *COUNTED)]
            yield [*names, case, title, *cells, round(sum(stages) / 60, 1)]


if __name__ == "__main__":
    main()
