"""classes.csv beside label maps: how much of each class was found, and how sure that is."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from dkuxnet.core.documents import read_text
from dkuxnet.core.errors import UserError, disk_reason

CLASSES = "classes.csv"
MAX_TABLE_BYTES = 1 << 28  # of a million cases of two classes, or 20,000 of a hundred
BEFORE = ["case", "class", "value", "voxels", "volume_ml", "confidence", "unsure"]
COLUMNS = [*BEFORE, "estimated_dice", "dice_low", "dice_high", "unlike", "flags"]


def lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows as text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_rows(folder: Path, advice: str = "choose another --output") -> list[list[str]]:
    """The rows of COLUMNS that an earlier prediction wrote; none where there is no table.

    Those of earlier versions are filled up. advice: what to do about a table that is none of ours,
    in the UserError that is then raised.
    """
    path = folder / CLASSES
    try:
        if not path.exists():
            return []
        header, *rows = csv.reader(io.StringIO(read_text(path, MAX_TABLE_BYTES), newline=""))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {disk_reason(error)}; {advice}") from error
    more = [""] * (len(COLUMNS) - len(header))
    if header not in (COLUMNS, BEFORE) or any(len(row) != len(header) for row in rows):
        raise UserError(
            f"{path} is there already and was not written by `dkuxnet predict`; {advice}"
        )
    return [[*row, *more] for row in rows]
