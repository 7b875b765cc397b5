"""What is served: a run's model under a name that fits into an address."""

import re
from dataclasses import dataclass
from pathlib import Path

from dkuxnet.prediction.segment import Segmenter


@dataclass(frozen=True)
class Model:
    """name: of letters, digits, dots, dashes and underscores."""

    name: str
    segmenter: Segmenter

    @classmethod
    def of(cls, run: Path, segmenter: Segmenter) -> "Model":
        return cls(re.sub(r"[^A-Za-z0-9._-]", "_", run.resolve().name) or "model", segmenter)

    @property
    def classes(self) -> list[str]:
        return list(self.segmenter.labels)[1:]
