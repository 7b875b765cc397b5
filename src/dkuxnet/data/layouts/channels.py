"""NAME_0000, NAME_0001, ...: the channels of one case, or patients with numbers in their names."""

import itertools
import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

from dkuxnet.core.errors import DataWarning, Faults, UserError
from dkuxnet.data.formats import is_dicom, peek, stem, suffix
from dkuxnet.data.layouts.files import named_twice

Group = dict[int, Path]  # number -> file


def group_channels(
    files: Iterable[Path], channels: int, alone: Collection[str] = ()
) -> dict[str, tuple[Path, ...]]:
    """Case -> its files, one a channel or one of all channels: the rule of `prepare` and `predict`.

    channels: how many a case has, which decides between channels and patients; 0: as many as are
    numbered from 0000 on. alone: names (`formats.stem`) that are cases in spite of a number. Raises
    UserError for each case that misses a file or has too many, and each name of two cases.
    """
    faults, patients = Faults(), []
    cases: dict[str, tuple[Path, ...]] = {}
    groups: dict[tuple[str, str], Group] = {}
    found: list[dict[str, tuple[Path, ...]]] = []
    for path in files:
        name = stem(path)
        match = None if name in alone or is_dicom(path) else re.fullmatch(r"(.+)_(\d{4})", name)
        if match:
            groups.setdefault((match[1], suffix(path)), {})[int(match[2])] = path
        else:
            found.append({name: (path,)})
    for (name, _), group in groups.items():
        with faults.noting():
            found.append(_cases_of(name, group, channels))
            if channels == 1 and len(group) > 1 and sorted(group) == list(range(len(group))):
                patients.append(name)
    for name, paths in itertools.chain.from_iterable(each.items() for each in found):
        if name in cases:
            faults.add(named_twice(name, cases[name][0], paths[0]))
        cases[name] = paths
    faults.tell()
    if patients:
        warnings.warn(
            f"files with numbers like those of channels ({patients[0]}_0000, {patients[0]}_0001, "
            "...) are taken for a case each, since a case has one channel here",
            DataWarning,
            stacklevel=2,
        )
    return cases


def _cases_of(name: str, group: Group, channels: int) -> dict[str, tuple[Path, ...]]:
    """The cases of the files NAME_number. Raises UserError where channels are missing."""
    run = list(itertools.takewhile(group.__contains__, itertools.count()))
    whole = channels > 1 and all(map(_has_channels, group.values()))
    if not channels or (sorted(group) == list(range(channels)) and not whole):
        one = {name: tuple(group[i] for i in run)} if run else {}
        return one | {stem(path): (path,) for i, path in group.items() if i not in run}
    if channels == 1 or whole:
        alone = {name: tuple(group.values())}
        return alone if list(group) == [0] else {stem(path): (path,) for path in group.values()}
    raise channels_wrong(name, group, channels, "")


def channels_wrong(name: str, group: Group, channels: int, by: str) -> UserError:
    """The error for a case whose files are not numbered as `channels` are; by: who says so."""
    path = next(iter(group.values()))
    wrong = min(set(group) ^ set(range(channels)))
    state = "is too many" if wrong in group else "is missing"
    return UserError(
        f"{path.parent}: case '{name}': expected {channels} channel files{by}, but "
        f"{name}_{wrong:04d}{suffix(path)} {state}; correct one or the other"
    )


def _has_channels(path: Path) -> bool:
    """Whether a file holds several channels. False where it cannot be read: reading will tell."""
    try:
        return len(peek(path).shape) > 3
    except UserError:
        return False
