"""Names from outside: the format they name, how they are shown, and no paths in messages."""

import re
from pathlib import Path

from dkuxnet.data.formats import DICOM, FORMATS, longest_suffix
from dkuxnet.serve.limits import Refused

ACCEPTED = (*FORMATS, *DICOM)
FILE = "scan"  # every scan is stored under this name, in a folder named by a token
NO_NAME = "scan"


def scan_suffix(name: str) -> str:
    """The suffix under which a file of this name is stored. Raises Refused where none is known."""
    found = longest_suffix(name, ACCEPTED)
    if found is None:
        raise Refused(
            415,
            f"“{shown(name)}” does not end with {', '.join(ACCEPTED)}. Export the scan as one of "
            "these.",
        )
    return found


def shown(name: str) -> str:
    """A name as the page shows it: the last part of a path, printable, of moderate length.

    It never names a file.
    """
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in last if c.isprintable())[-120:].strip() or NO_NAME


def signature(text: str) -> str:
    """Who somebody says that they are: printable, of moderate length, possibly empty."""
    return "".join(c for c in text if c.isprintable())[:100].strip()


def label_name(name: str, ending: str) -> str:
    """The name under which the label map of scan `name` is offered."""
    stem = shown(name)
    stem = stem[: len(stem) - len(longest_suffix(stem, ACCEPTED) or "")]
    stem = re.sub(r"[^\w .()+=-]", "_", stem).strip(" .")
    return f"{stem or NO_NAME}_segmentation{ending}"


def label_ending(suffix: str) -> str:
    """The suffix of the scan, or NIfTI's where viewers open no label maps of that format."""
    return suffix if suffix in FORMATS and suffix != ".h5" else ".nii.gz"


def without_paths(message: str, stored: Path, name: str) -> str:
    """A message on one line, with the user's name for the scan and no folder of this machine."""
    text = without_folders(" ".join(message.split()).replace(str(stored), shown(name)))
    text = text.replace(stored.name, shown(name))
    return re.sub(rf"case '{FILE}'(: )?", lambda match: "this scan" + (match[1] or ""), text)


def without_folders(text: str) -> str:
    """The text with every path of this machine cut down to its last part."""
    return re.sub(r"(?<![\w.])(?:/[^\s/:;,'\"()\[\]]+)+/", "", text)
