"""A local web page that segments scans with a finished run, and the part of MONAI Label's protocol
that 3D Slicer uses.
"""

from dkuxnet.core import extras

EXTRA = ("fastapi", "uvicorn", "python_multipart")


def require_extra() -> None:
    """Raise UserError where what `dkuxnet[serve]` installs is missing."""
    extras.require("serve", *EXTRA)
