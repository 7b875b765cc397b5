"""What users meet: one exception, a clear line and never a traceback, and one kind of warning."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a name, a disk.

    The message is one line: what was expected, what came, what to do. The command line prints it and exits with 1.
    """


class DataWarning(UserWarning):
    """A file is used although something about it is not as it should be.

    The message is one line: what, by how much, what follows. Told by `warnings.warn`; the command line shows each once.
    """
