"""What users meet: one exception, a clear line and never a traceback, and one kind of warning."""

import errno
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_RIGHT = (errno.EROFS, errno.EACCES, errno.EPERM)
WHAT_TO_DO = dict.fromkeys(NO_ROOM, "make room there and do it again (a training: with --resume)")
WHAT_TO_DO |= dict.fromkeys(NO_RIGHT, "choose a folder that can be written to")
MAX_LENGTH = 2000
TOLD = "DKUXNET_TOLD"  # names the folder where each of several processes leaves its error
MAX_TOLD = 20  # faults of one kind of work


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a name, a disk.

    The message is one line: what was expected, what came, what to do. The command line prints it
    and exits with 1. Whatever a stranger's file puts into it, it stays one printable line of
    moderate length. lines: what is told, a fault a line. table: what the command line shows above
    them. told_elsewhere: another process of the same training tells it.
    """

    told_elsewhere = False

    def __init__(self, message: str, table: Sequence[str] = ()):
        super().__init__(one_line(message))
        self.lines = [str(self)]
        self.table = table


class UserErrors(UserError):
    """Several things are wrong: a line for each of the first, and how many more there are."""

    def __init__(self, messages: Sequence[str], table: Sequence[str] = ()):
        more = len(messages) - MAX_TOLD
        lines = [one_line(message) for message in messages[:MAX_TOLD]]
        lines += [f"and {more} more"] if more > 0 else []
        super().__init__("; ".join(lines), table)
        self.lines = lines


class Faults:
    """Collects what is wrong, so that a user is told all of it at once."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.table: list[str] = []

    def add(self, message: str) -> None:
        """Note a fault."""
        self.messages.append(message)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A UserError in the block is noted, and the work goes on behind it."""
        try:
            yield
        except UserError as error:
            self.messages += error.lines
            self.table += error.table

    def tell(self) -> None:
        """Raise UserError for what was noted, if anything."""
        if len(self.messages) > 1:
            raise UserErrors(self.messages, self.table)
        if self.messages:
            raise UserError(self.messages[0], self.table)


class DataWarning(UserWarning):
    """A file is used although something about it is not as it should be.

    The message is one line: what, by how much, what follows. Told by `warnings.warn`; the command
    line shows each once.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


@contextmanager
def data_warnings(kind: type[DataWarning] = DataWarning) -> Iterator[list[str]]:
    """A list that holds, once the block has ended, what its DataWarnings of a `kind` say.

    Also where it has ended with an error. Nobody else is told.
    """
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        try:
            yield found
        finally:
            found += [str(each.message) for each in caught if issubclass(each.category, kind)]


def one_line(message: str) -> str:
    """The message without line breaks, control and broken characters; a very long one is cut."""
    words = " ".join(message[: 2 * MAX_LENGTH].split())
    text = "".join(c if c.isprintable() else "?" for c in words)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ..."


def disk_reason(error: BaseException) -> str:
    """What the system said of a file, and what to do about it.

    Also where a library put an error of its own in front.
    """
    number: int | None = None
    last: BaseException | None = error
    while last is not None and number is None:
        of_rust = re.search(r"\(os error (\d+)\)", str(last))  # how safetensors tells it
        number = getattr(last, "errno", None) or (int(of_rust[1]) if of_rust else None)
        last = last.__cause__ or last.__context__
    if number is None:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return "; ".join(filter(None, (os.strerror(number), WHAT_TO_DO.get(number))))


@contextmanager
def telling_disk_errors() -> Iterator[None]:
    """An error of the system about a file, where nobody else told it, is a UserError."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{disk_reason(error)}") from error
