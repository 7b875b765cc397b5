"""What there is, by name, without importing any of it."""

from importlib import metadata

from dkuxnet.config import presets
from dkuxnet.data.layouts import LAYOUTS
from dkuxnet.formats import FORMATS
from dkuxnet.methods import METHODS
from dkuxnet.networks import NETWORKS


def catalogue() -> dict[str, str | list[str]]:
    """Version and the names of every table."""
    return {
        "version": metadata.version("dkuxnet"),
        "networks": list(NETWORKS),
        "methods": list(METHODS),
        "formats": list(FORMATS),
        "layouts": list(LAYOUTS),
        "presets": presets(),
    }
