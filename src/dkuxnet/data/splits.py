"""Which cases train and which evaluate: labelled, unlabelled, validation and test, disjoint."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from pydantic import BaseModel, ConfigDict, ValidationError

from dkuxnet.core.documents import read_json
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Split


class _Lists(BaseModel):
    """What the file of a split may hold."""

    model_config = ConfigDict(strict=True, extra="forbid")

    train: list[str] = []
    labelled: list[str] = []
    unlabelled: list[str] = []
    validation: list[str] = []
    test: list[str] = []


def make_split(
    cases: Sequence[str],
    with_label: Sequence[str],
    labelled: int | None = None,
    validation_cases: int = 0,
    test_cases: int = 0,
    file: Path | None = None,
    labelled_seed: int | None = None,
) -> Split:
    """Split `cases`, in the order of the data set, of which `with_label` have a label.

    The test cases are those of the file, or else the last `test_cases` that have a label. Of the
    others, the first `labelled` that have a label keep it (all of them where None), and the last
    `validation_cases` of these validate.

    labelled_seed: draws the `labelled` cases instead of taking the first: the same names for the
    same seed and pool on every machine, and those of a smaller number are among those of a larger.

    file: JSON, {"train": [..], "validation": [..], "test": [..]}, or "labelled" and "unlabelled"
    instead of "train". Cases that it does not name are left out. Raises UserError for a name that
    occurs twice or is not in the data set, and for too few labels.
    """
    if file:
        lists = _read_split(file, cases)
    else:
        test = _last(with_label, test_cases)
        kept = set(test)
        lists = _Lists(train=[name for name in cases if name not in kept], test=test)
    pool, validation = [*lists.labelled, *lists.unlabelled, *lists.train], lists.validation
    _check_names([*pool, *validation, *lists.test], cases, file)

    may_label = set(with_label) - set(lists.unlabelled)
    candidates = [name for name in pool if name in may_label]
    chosen = _keeping_labels(candidates, labelled, labelled_seed, len(pool))
    if validation_cases:
        if validation:
            raise UserError(f"{file} has a validation list: set data.validation_cases=0")
        if validation_cases >= len(chosen):
            raise UserError(
                f"data.validation_cases={validation_cases} leaves none of {len(chosen)} labelled "
                "cases to train on"
            )
        chosen, validation = chosen[:-validation_cases], chosen[-validation_cases:]
    if not chosen:
        raise UserError("no labelled case is left to train on; at least one is needed")
    _check_labels(
        (*validation, *lists.test),
        with_label,
        "validation or test list but has no label to compare with",
    )
    _check_labels(
        lists.labelled, with_label, "labelled list but has no label; add it and prepare again"
    )
    taken = {*chosen, *validation}
    return Split(
        labelled=tuple(chosen),
        unlabelled=tuple(name for name in pool if name not in taken),
        validation=tuple(validation),
        test=tuple(lists.test),
    )


def _keeping_labels(
    candidates: list[str], count: int | None, seed: int | None, pool: int
) -> list[str]:
    """Those of the candidates, `pool` cases with those without a label, that keep their label."""
    if count is None:
        if seed is not None:
            raise UserError(
                "--labelled-seed draws the cases of --labelled N: give both, or neither"
            )
        return candidates
    if count > len(candidates):
        raise UserError(
            f"--labelled {count}: the training pool has {len(candidates)} labelled cases of "
            f"{pool}; ask for fewer, or add labels and prepare again"
        )
    if seed is None:
        return candidates[:count]
    drawn = {*sorted(candidates, key=lambda name: _draw(seed, name))[:count]}
    return [name for name in candidates if name in drawn]


def _draw(seed: int, name: str) -> bytes:
    """Where a case comes in the order of a seed."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def _last(with_label: Sequence[str], count: int) -> list[str]:
    if count and count >= len(with_label):
        raise UserError(
            f"data.test_cases={count} leaves none of {len(with_label)} labelled cases to train on"
        )
    return list(with_label[len(with_label) - count :])


def _read_split(file: Path, cases: Sequence[str]) -> _Lists:
    """The lists of a file. A name may be in another form of Unicode than that of its case."""
    content = read_json(file, f"{file}: cannot read the split")
    try:
        lists = _Lists.model_validate(content)
    except ValidationError as error:
        raise UserError(
            f"{file}: a split is a JSON object of lists of case names; keys: "
            f"{', '.join(_Lists.model_fields)}"
        ) from error
    known = {normalize("NFC", name): name for name in cases}
    return _Lists(
        **{key: [known.get(normalize("NFC", name), name) for name in names] for key, names in lists}
    )


def _check_labels(names: Sequence[str], with_label: Sequence[str], what: str) -> None:
    labelled = set(with_label)
    for name in names:
        if name not in labelled:
            raise UserError(f"case '{name}' is in the {what}")


def _check_names(names: Sequence[str], cases: Sequence[str], file: Path | None) -> None:
    seen: set[str] = set()
    known = set(cases)
    for name in names:
        if name not in known:
            raise UserError(f"{file}: case '{name}' is not in the prepared data set")
        if name in seen:
            raise UserError(f"{file}: case '{name}' is in more than one list, or twice in one")
        seen.add(name)
