"""Optional parts of the package: what they need, and one clear line where it is missing."""

from importlib.util import find_spec

from dkuxnet.core.errors import UserError


def require(extra: str, *modules: str) -> None:
    """Raise UserError where a module that `dkuxnet[extra]` installs is missing."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UserError(f"this needs {', '.join(missing)}: pip install 'dkuxnet[{extra}]'")
