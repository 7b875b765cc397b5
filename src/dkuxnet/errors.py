"""What users meet: one exception, a clear line and never a traceback, and one kind of warning."""


MAX_LENGTH = 2000


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a name, a disk.

    The message is one line: what was expected, what came, what to do. The command line prints it and exits with 1.
    Whatever a stranger's file puts into it, it stays one printable line of moderate length.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class DataWarning(UserWarning):
    """A file is used although something about it is not as it should be.

    The message is one line: what, by how much, what follows. Told by `warnings.warn`; the command line shows each once.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """The message without line breaks, control characters and halves of characters; a very long one is cut."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(message[: 2 * MAX_LENGTH].split()))
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ..."
