"""RUN/suggestions.json: which unlabelled scans to label next, in order, and why."""

from pathlib import Path

from dkuxnet.core.schemas import Suggestions, read_document
from dkuxnet.machine.files import inside, write_json

FILE = "suggestions.json"


def read_suggestions(run: Path) -> Suggestions:
    """What `dkuxnet suggest` wrote last; none where it was never asked."""
    path = inside(run, FILE)
    if not path.exists():
        return Suggestions(scans=[])
    return read_document(path, Suggestions, "make it again with `dkuxnet suggest`")


def write_suggestions(run: Path, suggestions: Suggestions) -> None:
    """Write them, whole or not at all."""
    write_json(inside(run, FILE), suggestions.to_json())
