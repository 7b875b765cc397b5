"""Names from outside: what they say of a format, how they are shown, and how paths stay out of
messages.
"""

import re
from pathlib import Path

from dkuxnet.data.formats import FORMATS
from dkuxnet.serve.limits import Refused

PACKED = (".zip", ".dcm")  # DICOM: a zip of a series, or one file
ACCEPTED = (*FORMATS, *PACKED)
FILE = "scan"  # every scan is stored under this name, in a folder named by a token
NO_NAME = "scan"


def scan_suffix(name: str) -> str:
    """The ending that a file of this name is stored with. Raises Refused where no format has it."""
    fits = [known for known in ACCEPTED if name.lower().endswith(known)]
    if not fits:
        raise Refused(
            415,
            f"“{shown(name)}” does not end with {', '.join(ACCEPTED)}. Export the scan as one of "
            "these.",
        )
    return max(fits, key=len)


def shown(name: str) -> str:
    """A name as the page shows it: the last part of a path, printable, of moderate length.

    It never names a file.
    """
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in last if c.isprintable())[-120:].strip() or NO_NAME


def label_name(name: str, ending: str) -> str:
    """The name under which the label map of scan `name` is offered."""
    stem = shown(name)
    stem = stem[: -len(scan_suffix(stem))] if stem.lower().endswith(ACCEPTED) else stem
    stem = re.sub(r"[^\w .()+=-]", "_", stem).strip(" .")
    return f"{stem or NO_NAME}_segmentation{ending}"


def label_ending(suffix: str) -> str:
    """The format of the scan; NIfTI for those that no viewer of label maps opens."""
    return suffix if suffix in FORMATS and suffix != ".h5" else ".nii.gz"


def without_paths(message: str, stored: Path, name: str) -> str:
    """An error's text on one line, with the user's name for the scan and no folder of this machine
    in it.
    """
    text = " ".join(message.split()).replace(str(stored), shown(name))
    text = re.sub(r"(?<![\w.])(?:/[^\s/:;,'\"()\[\]]+)+/", "", text)
    text = text.replace(stored.name, shown(name))
    return re.sub(rf"case '{FILE}'(: )?", lambda match: "this scan" + (match[1] or ""), text)
