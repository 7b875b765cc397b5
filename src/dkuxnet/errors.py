"""The one exception that users meet: a clear line, never a traceback."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a name, a disk.

    The message is one line: what was expected, what came, what to do. The command line prints it and exits with 1.
    """
