"""Scores that were written, as the rows that they were."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from dkuxnet.core.documents import MAX_BYTES, read_text
from dkuxnet.core.errors import UserError
from dkuxnet.evaluation.evaluate import COLUMNS, COUNTS, Score
from dkuxnet.evaluation.metrics import Metric


def read_scores(path: Path, asked: Sequence[Metric] = ()) -> list[Score]:
    """The rows of a cases.csv of this version. asked: the metrics that it has beside the others.

    Raises UserError where it is damaged.
    """
    try:
        header, *rows = csv.reader(io.StringIO(read_text(path, MAX_BYTES), newline=""))
        if tuple(header) != (*COLUMNS, *(metric.key for metric in asked)):
            raise ValueError("its columns are others")
        return [_score(row) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: damaged, or of another version ({error})") from error


def _score(row: Sequence[str]) -> Score:
    if len(row) < len(COLUMNS):
        raise ValueError("a line is cut off")
    # a class that nobody outlined has no counts either
    figures = [
        int(cell) if cell and name in {"value", *COUNTS} else float(cell or math.nan)
        for name, cell in zip(COLUMNS[2:], row[2:], strict=False)
    ]
    more = tuple(float(cell or math.nan) for cell in row[len(COLUMNS) :])
    return Score._make((*row[:2], *figures, more))
