"""The model that is served, under a name that fits into an address."""

import re
from dataclasses import dataclass
from pathlib import Path

from dkuxnet.prediction.segment import Segmenter


@dataclass(frozen=True)
class Model:
    """A loaded model. name: letters, digits, dots, dashes and underscores only."""

    name: str
    segmenter: Segmenter

    @classmethod
    def of(cls, run: Path, segmenter: Segmenter) -> "Model":
        """The model of a run, named after its folder."""
        return cls(re.sub(r"[^A-Za-z0-9._-]", "_", run.resolve().name) or "model", segmenter)

    @property
    def classes(self) -> list[str]:
        """Names of the classes except the background."""
        return list(self.segmenter.labels)[1:]
