"""A local page that segments scans with a finished run, also by MONAI Label's protocol."""

from dkuxnet.core import extras

EXTRA = ("fastapi", "uvicorn", "python_multipart")


def require_extra() -> None:
    """Raise UserError where what `dkuxnet[serve]` installs is missing."""
    extras.require("serve", *EXTRA)
