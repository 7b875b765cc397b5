"""Which structures nobody outlined in a case, and between which classes its label cannot tell then.

A structure is a class, or a region where there are some. `not_labelled` of a dataset.json names, by
case, those that nobody outlined: {"case_07": ["Posterior"]}.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from dkuxnet.core.errors import Faults, UserError
from dkuxnet.core.lookup import unknown
from dkuxnet.core.types import Source, structures_of
from dkuxnet.data.fingerprint import CaseFigures
from dkuxnet.data.labels import MAX_CLASSES

KEY = "not_labelled"
Structures = Mapping[str, Collection[int]]  # name -> indices of classes


def not_labelled(folder: Path, fields: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Case -> the structures that its label leaves out, by a dataset.json.

    Raises UserError where these are no lists of names.
    """
    table = fields.get(KEY, {})
    lists = isinstance(table, dict) and all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        for names in table.values()
    )
    if not lists:
        raise UserError(
            f"{folder / 'dataset.json'}: expected '{KEY}' to list classes by case, as in "
            f'{{"case_07": ["LA"]}}, got {str(table)[:80]}; correct it'
        )
    return {normalize("NFC", case): tuple(dict.fromkeys(names)) for case, names in table.items()}


def check_cases(source: Source) -> None:
    """Raise UserError for each case of `not_labelled` that there is not, or that has no label."""
    labelled = {case.name: case.label is not None for case in source.cases}
    faults = Faults()
    for name in source.not_labelled:
        where = f"{source.folder / 'dataset.json'}: case '{name}' in '{KEY}'"
        with faults.noting():
            if name not in labelled:
                raise UserError(f"{where}: {unknown('case', name, [*labelled])}")
        if labelled.get(name) is False:
            faults.add(f"{where} has no label at all; take it off the list")
    faults.tell()


def check_outlined(
    checks: Sequence[CaseFigures], source: Source, labels: Mapping[str, int]
) -> None:
    """Raise UserError where `not_labelled` does not go with the classes, or with what is there."""
    faults = Faults()
    for fault in wrong_names(source, labels) or contradictions(checks, source, labels):
        faults.add(fault)
    faults.tell()
    merged = {
        each
        for left_out in source.not_labelled.values()
        for each in indistinct(structures_of(labels, source.regions), len(labels), left_out)
        if len(each) > 1
    }
    if len(labels) + len(merged) + (source.ignore is not None) > MAX_CLASSES:
        raise UserError(
            f"{source.folder / 'dataset.json'}: {len(labels)} classes and {len(merged)} mixtures "
            f"of them by '{KEY}' are more than the {MAX_CLASSES} that can be told apart; name fewer"
        )


def wrong_names(source: Source, labels: Mapping[str, int]) -> list[str]:
    """A sentence for each case whose `not_labelled` names no class, or all of them."""
    names, told = [*structures_of(labels, source.regions)], []
    where = f"{source.folder / 'dataset.json'}: case"
    for case, left_out in source.not_labelled.items():
        strange = [name for name in left_out if name not in names]
        told += [f"{where} '{case}': {unknown(f'class in {KEY}', each, names)}" for each in strange]
        if set(left_out) == set(names):
            told.append(
                f"{where} '{case}': '{KEY}' names every class: nothing to learn; take its label "
                "file away"
            )
    return told


def contradictions(
    checks: Sequence[CaseFigures], source: Source, labels: Mapping[str, int]
) -> list[str]:
    """A sentence for each class that a case shows although nobody outlined it."""
    names, structures = [*labels], structures_of(labels, source.regions)
    told = []
    for check in checks:
        left_out = source.not_labelled.get(check.name, ())
        for index, classes in enumerate(indistinct(structures, len(labels), left_out)):
            voxels = (check.label_counts or {}).get(labels[names[index]], 0)
            smaller = any(_within(structures, other, index) for other in classes)
            if voxels and smaller:
                told.append(
                    f"case '{check.name}': its label has {voxels} voxels of '{names[index]}', but "
                    f"dataset.json has that in '{KEY}'; correct one of the two"
                )
    return told


def indistinct(
    structures: Structures, classes: int, left_out: Collection[str]
) -> list[tuple[int, ...]]:
    """For each class those that it cannot be told from in a label that leaves structures out.

    These are the classes in the same structures, but for those; each class itself among them.
    """
    shown = [
        {name for name, within in structures.items() if index in within and name not in left_out}
        for index in range(classes)
    ]
    return [tuple(i for i in range(classes) if shown[i] == each) for each in shown]


def _within(structures: Structures, one: int, other: int) -> bool:
    """Whether class `one` is in fewer structures than `other`, and in no others."""
    of_one, of_other = (
        {name for name, within in structures.items() if index in within} for index in (one, other)
    )
    return of_one < of_other
