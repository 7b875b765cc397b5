"""What only some users need and installs as an extra of the package."""

from importlib.util import find_spec

from dkuxnet.core.errors import UserError


def require(extra: str, *modules: str) -> None:
    """Raise UserError for the first of `modules` that is not installed: it names the extra."""
    for module in modules:
        if find_spec(module) is None:
            raise UserError(f"this needs {module}: pip install 'dkuxnet[{extra}]'")
