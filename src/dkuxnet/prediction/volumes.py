"""A table of volumes, a row a case: what `predict --volumes` writes, from the rows of CLASSES."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dkuxnet.core.classes_table import COLUMNS, lines, read_rows
from dkuxnet.core.documents import MAX_BYTES, StrPath, read_text
from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.machine.files import write_text

CASE, CLASS, ML = (COLUMNS.index(name) for name in ("case", "class", "volume_ml"))


@contextmanager
def volumes_written(
    path: StrPath | None, folder: Path, cases: Sequence[str], classes: Sequence[str], shared: bool
) -> Iterator[None]:
    """Write `path`, where there is one, after the block, whatever was done in it.

    Raises UserError before the block, see `check_volumes`, and where other processes segment scans
    of the same table (`shared`).
    """
    if path is None:
        yield
        return
    if shared:
        raise UserError(
            "--volumes is a table of all scans, and a shard has some: ask for it when all are "
            "done, with --skip-existing and without --shard"
        )
    check_volumes(Path(path), classes)
    try:
        yield
    finally:
        write_volumes(Path(path), folder, cases, classes)


def check_volumes(path: Path, classes: Sequence[str]) -> None:
    """Before the work: raises UserError where `path` is another file, or cannot be written."""
    try:
        if not path.exists():
            if not path.absolute().parent.is_dir():
                raise UserError(f"{path}: its folder does not exist; make it")
        elif not read_text(path, MAX_BYTES).startswith(lines([["case", *classes]])):
            raise UserError(
                f"{path} is there already and no table of these classes; choose another --volumes"
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {disk_reason(error)}") from error


def write_volumes(path: Path, folder: Path, cases: Iterable[str], classes: Sequence[str]) -> None:
    """The ml of each class in those of the cases whose label maps are in `folder`, anew."""
    found: dict[str, dict[str, str]] = {}
    for row in read_rows(folder):
        found.setdefault(row[CASE], {})[row[CLASS]] = row[ML]
    rows = (
        [case, *(found[case].get(name, "") for name in classes)] for case in cases if case in found
    )
    write_text(path, lines([["case", *classes], *rows]))
