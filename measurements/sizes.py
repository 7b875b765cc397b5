"""Whether runs make large organs too small and small ones too large, as few labels make them.

    python measurements/sizes.py BENCHMARK --labelled 4

BENCHMARK: the folder that `dkuxnet benchmark` wrote. Prints for every arm the slope of
log(predicted volume) on log(true volume) over the test cases, the mean over its runs: 1 is no bias,
0 the same volume for everyone. Of several classes the first counts.
"""

import argparse
import csv
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("--labelled", required=True, help="a number, or all")
    chosen = parser.parse_args()
    slopes: dict[str, list[float]] = {}
    for table in sorted(
        (chosen.benchmark / "runs").glob(f"*_n{chosen.labelled}_seed*/evaluation/cases.csv")
    ):
        slopes.setdefault(table.parts[-3].split("_")[0], []).append(slope(table))
    if not slopes:
        parser.error(
            f"no finished run with {chosen.labelled} labelled in {chosen.benchmark / 'runs'}"
        )
    print("| arm | slope | by run |\n|---|---|---|")
    for arm, found in sorted(slopes.items(), key=lambda item: -np.mean(item[1])):
        print(f"| {arm} | {np.mean(found):.2f} | {', '.join(f'{each:.2f}' for each in found)} |")


def slope(table: Path) -> float:
    """Of the least squares line.

    A case without organ, or where none was found, has no logarithm and is left out.
    """
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    volumes = np.array(
        [
            (int(row["n_ref"]), int(row["n_pred"]))
            for row in rows
            if row["value"] == rows[0]["value"]
        ]
    )
    true, predicted = np.log(volumes[(volumes > 0).all(axis=1)]).T
    return float(np.polyfit(true, predicted, 1)[0])


if __name__ == "__main__":
    main()
