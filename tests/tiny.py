"""A training as small as one can be, and scans for it: what tests of whole trainings share, each
with its own laid over.
"""

from pathlib import Path
from typing import Any

PATCHES = {"train.patch": [16, 16, 16], "train.device": "cpu", "train.log_every": 1}
# with queries, and thus fit for every method
DK_UXNET = PATCHES | {
    "network.name": "dk-uxnet-tiny",
    "network.widths": [8, 8, 8, 8],
    "network.query_channels": 16,
    "network.depths": [1, 1, 1, 1],
}
# the least that learns at all: its steps take no time
UXNET = PATCHES | {
    "network.name": "uxnet-tiny",
    "network.widths": [4, 4, 4, 4],
    "network.depths": [1, 0, 0, 0],
    "method.name": "supervised",
    "train.labelled_batch": 1,
}


def dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments as settings: train__steps=2 is train.steps."""
    return {key.replace("__", "."): value for key, value in settings.items()}


def prepared_phantoms(folder: Path, cases: int, labelled: int, **options: Any) -> Path:
    """Synthetic scans of about 20 voxels an edge in folder/scans, the first `labelled` with a
    label file, prepared in folder/prepared, which is returned.
    """
    from dkuxnet.data import phantom
    from dkuxnet.data.prepare import prepare_scans

    scans = phantom.write_dataset(folder / "scans", cases=cases, labelled=labelled, size=20)
    prepare_scans(scans, folder / "prepared", processes=1, **options)
    return folder / "prepared"
