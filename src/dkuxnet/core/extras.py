"""Optional parts of the package: what they need, and one clear line where it is missing."""

from importlib.util import find_spec

from dkuxnet.core.errors import UserError


def require(extra: str, *modules: str) -> None:
    """Raise UserError where a module that `dkuxnet[extra]` installs is missing."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UserError(f"this needs {', '.join(missing)}: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """The command; the package is on no registry."""
    return f"pip install '.[{extra}]' in a clone of the repository of dkuxnet"
