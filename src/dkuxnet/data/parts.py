"""What the processes of one preparation have done so far, in a folder beside the one to come.

PREPARED.parts/asked.json             what was asked for; other processes must ask for the same
PREPARED.parts/shard-1-of-8/*.jsonl   a line for each case of the share that was checked, or stored
PREPARED.parts/cases, coarse          what will be PREPARED

A preparation that was stopped goes on from these lines, and the shards of one are joined by them:
no voxel is read again. A case whose files have changed since is done again.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from dkuxnet.core.documents import MAX_BYTES, parse_json, read_json, reason
from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.regular import open_regular
from dkuxnet.core.schemas import Prepared, PreparedCase
from dkuxnet.core.types import Case
from dkuxnet.data.fingerprint import CaseFigures
from dkuxnet.machine.files import (
    append,
    inside,
    missing_parents,
    remove_empty,
    remove_parts,
    write_json,
)
from dkuxnet.machine.lock import locked

Shard = tuple[int, int]  # number from 1, and how many there are
Each = Callable[[Callable[[Case], Any], Sequence[Case], str], Iterator[Any]]
ALONE: Shard = (1, 1)
ASKED = "asked.json"
PATIENCE_S = 60.0  # in which another shard must get something done, so that it is waited for
POLL_S = 0.5


class _Joined(Exception):
    """Another shard has had all that it needs, and has given the folder its name."""


@dataclass(frozen=True)
class Form:
    """How a result is written down, and read."""

    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


class Parts:
    """The folder PREPARED.parts, for one of its shards."""

    def __init__(self, prepared: Path, shard: Shard):
        self.prepared, self.shard = prepared, shard
        self.folder = prepared.with_name(f"{prepared.name}.parts")
        # of each journal the bytes that were read, and what they say
        self._known: dict[Path, tuple[int, dict[str, tuple[Any, Any]]]] = {}

    def each(
        self,
        what: str,
        run: Each,
        job: Callable[[Case], Any],
        cases: Sequence[Case],
        form: Form,
        key: Any = None,
    ) -> list[Any]:
        """The results of `job` for all cases, in their order.

        Those of this shard that are not there yet are computed; the others' are waited for. key:
        what else the results depend on. Raises UserError where another shard lacks some and gets
        nothing done.
        """
        number, count = self.shard
        told = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        stamps = [[told, *_stamp(case)] for case in cases]
        names = [case.name for case in cases]
        mine = slice(number - 1, None, count)
        done = self._read(what, number)
        if (path := self._journal(what, number)) in self._known:
            os.truncate(path, self._known[path][0])  # a line that a killed process left half
        todo = [
            (case, stamp)
            for case, stamp in zip(cases[mine], stamps[mine], strict=True)
            if done.get(case.name, (None,))[0] != stamp
        ]
        results = run(job, [case for case, _ in todo], what)
        for (case, stamp), result in zip(todo, results, strict=True):
            line = json.dumps([case.name, stamp, form.to_json(result)], allow_nan=False)
            append(self._journal(what, number), f"{line}\n".encode())
        lines = self._wait(what, dict(zip(names, stamps, strict=True)))
        try:
            return [form.from_json(lines[name]) for name in names]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(self._journal(what, number), error) from error

    def _wait(self, what: str, stamps: dict[str, Any]) -> dict[str, Any]:
        """The lines of all shards, once they are there: name of a case -> result."""
        known, since = -1, time.monotonic()
        while True:
            lines: dict[str, Any] = {}
            for number in range(1, self.shard[1] + 1):
                lines |= self._read(what, number)
            found = {name: line[1] for name, line in lines.items() if line[0] == stamps.get(name)}
            if len(found) == len(stamps):
                return found
            if not self.folder.exists() and self.prepared.exists():
                raise _Joined
            if len(found) > known:
                known, since = len(found), time.monotonic()
            if time.monotonic() - since > PATIENCE_S:
                raise self._alone(what, [name for name in stamps if name not in found], stamps)
            time.sleep(POLL_S)

    def _alone(self, what: str, missing: list[str], stamps: dict[str, Any]) -> UserError:
        number, count = self.shard
        at = {name: index for index, name in enumerate(stamps)}
        shards = sorted({at[name] % count + 1 for name in missing})
        return UserError(
            f"shard {number} of {count} has done its share ({what}), but {len(missing)} cases of "
            f"the shards {', '.join(map(str, shards))} are missing, and nothing came for "
            f"{PATIENCE_S:g} s: start these, and then this one again; it goes on"
        )

    def _journal(self, what: str, number: int) -> Path:
        return inside(self.folder, f"shard-{number}-of-{self.shard[1]}", f"{what}.jsonl")

    def _read(self, what: str, number: int) -> dict[str, tuple[Any, Any]]:
        """Name of a case -> stamp and result; the last line may be half written."""
        path = self._journal(what, number)
        read, found = self._known.get(path, (0, {}))
        try:
            with open_regular(path) as file:
                file.seek(read)
                # a line at a time: the whole grows with the cases
                while (line := file.readline(MAX_BYTES)).endswith(b"\n"):
                    name, stamp, result = parse_json(line.decode())
                    found[name] = stamp, result
                    read += len(line)
            self._known[path] = read, found
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> UserError:
        return UserError(f"{path}: it is damaged ({reason(error)}); delete {self.folder}")

    def finish(self, described: Mapping[Path, Prepared]) -> None:
        """Describe the folders and give the whole its name.

        Where several shards have waited for this, the first does it.
        """
        with FileLock(self.folder.with_name(f".{self.folder.name}.lock"), timeout=600) as lock:
            if self.folder.exists():
                for at, content in described.items():
                    write_json(at / "dataset.json", content.to_json())
                for each in self.folder.glob("shard-*"):
                    shutil.rmtree(each)
                (self.folder / ASKED).unlink()
                os.replace(self.folder, self.prepared)
            Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def parts_of(prepared: Path, shard: Shard | None, asked: dict[str, Any]) -> Iterator[Parts]:
    """Where the shards of a preparation meet; without shards, where a stopped one goes on.

    asked: what all processes must agree on. Without shards, what was begun for anything else is
    removed, and an error leaves nothing behind.
    """
    parts, alone = Parts(prepared, shard or ALONE), shard is None
    parents = missing_parents(prepared)
    asked = asked | {"shards": parts.shard[1]}
    try:
        try:
            prepared.parent.mkdir(parents=True, exist_ok=True)
            remove_parts(prepared.parent)
            _agree(parts, asked, alone)
            own = parts._journal("", parts.shard[0]).parent
            own.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{prepared}: cannot write there: {disk_reason(error)}") from error
        with locked(own, f"`prepare` of shard {parts.shard[0]}"):
            yield parts
    except _Joined:
        return
    except Exception as error:
        if alone:
            shutil.rmtree(parts.folder, ignore_errors=True)
            remove_empty(parents)
        if isinstance(error, OSError):
            raise UserError(f"{prepared}: cannot write: {disk_reason(error)}") from error
        raise


def _agree(parts: Parts, asked: dict[str, Any], alone: bool) -> None:
    """Make the folder, or see that the one that is there is of the same preparation."""
    path = parts.folder / ASKED
    asked = parse_json(json.dumps(asked))
    before = None
    if path.exists():
        before = read_json(path, f"{path}: it is damaged; delete {parts.folder}")
    if before not in (None, asked):
        if not alone:
            differing = [key for key in asked if before.get(key) != asked[key]]
            raise UserError(
                f"{parts.folder} was begun with another {', '.join(differing)}; give all shards "
                "the same, or delete it"
            )
        before = None
    if before is None and alone:
        shutil.rmtree(parts.folder, ignore_errors=True)
    parts.folder.mkdir(exist_ok=True)
    write_json(path, asked)


def _stamp(case: Case) -> list[Any]:
    """What changes with the files of a case: sizes and times."""
    files = [*case.images, *([case.label] if case.label else []), *case.raters]
    states = [path.stat() for path in files]
    return [[state.st_size, state.st_mtime_ns] for state in states]


def _figures(stored: Any) -> tuple[CaseFigures | None, list[str], str | None]:
    figures, notes, fault = stored
    if figures is None:
        return None, notes, fault
    counts = figures.pop("label_counts")
    for name in ("shape", "spacing_mm"):
        figures[name] = tuple(figures[name])
    known = None if counts is None else {int(value): n for value, n in counts.items()}
    return CaseFigures(**figures, label_counts=known), notes, fault


# (figures, notes, fault) of `storing.check_noting`
CHECKED = Form(lambda done: [None if done[0] is None else asdict(done[0]), *done[1:]], _figures)


def stored_in(folder: Path) -> Form:
    """(cases by folder, notes) of `storing.store_noting`, in and below `folder`."""

    def to_json(done: tuple[dict[Path, PreparedCase], list[str]]) -> Any:
        cases, notes = done
        return [{str(at.relative_to(folder)): case.to_json() for at, case in cases.items()}, notes]

    def from_json(stored: Any) -> tuple[dict[Path, PreparedCase], list[str]]:
        cases, notes = stored
        return {folder / at: PreparedCase.model_validate(case) for at, case in cases.items()}, notes

    return Form(to_json, from_json)
