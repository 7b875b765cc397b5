"""A local web page that segments scans with a finished run, and the part of MONAI Label's protocol
that 3D Slicer speaks.
"""

from importlib.util import find_spec

from dkuxnet.core.errors import UserError

EXTRA = ("fastapi", "uvicorn", "python_multipart")


def require_extra() -> None:
    """Raises UserError where what `dkuxnet[serve]` brings is not installed."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise UserError(
            f"`dkuxnet serve` needs {', '.join(missing)}, which is not installed: pip install "
            "'dkuxnet[serve]'"
        )
