"""Which unlabelled scans to label next: those that stand for most others without a label.

Every scan has a signature (`prediction.signature`). A label of a scan teaches about the scans near
it, so the first suggestion is the scan that brings the others nearest to a labelled one in the
mean, the next the same with the first taken as labelled: greedy facility location. Five suggestions
are thus not five times the same scan, and no scan is suggested because it is odd alone. Counting
each scan by the doubt of the model about it was worse (`measurements/suggesting.py`).

Source of the idea: Wei, Iyer, Bilmes, Submodularity in data subset selection and active learning,
ICML 2015. The distances and the words are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dkuxnet.core.confidence import UNSURE_BELOW
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Suggestion, Suggestions
from dkuxnet.core.types import Case, CaseProgress
from dkuxnet.data.images import read_image
from dkuxnet.data.layouts import find_source
from dkuxnet.prediction.segment import Segmenter
from dkuxnet.prediction.trust import Trust
from dkuxnet.runs.folder import RunFolder
from dkuxnet.runs.suggestions import write_suggestions


@dataclass(frozen=True)
class Look:
    """What the model makes of a scan: see `Segmentation`. signature: see `prediction.signature`."""

    signature: np.ndarray
    confidence: dict[str, float]
    volumes_ml: dict[str, float]
    trust: Trust

    @classmethod
    def at(cls, segmenter: Segmenter, case: Case) -> "Look":
        """Raises UserError that names the case or its file."""
        scan = read_image(case, len(segmenter.channels))
        try:
            found = segmenter(scan)
        except UserError as error:
            raise UserError(f"case '{case.name}': {error}") from error
        signature = np.zeros(0) if found.signature is None else found.signature
        return cls(signature, found.confidence, found.volumes_ml, found.trust)


def suggest_scans(
    run: StrPath,
    scans: StrPath,
    count: int = 5,
    device: str = "auto",
    progress: CaseProgress | None = None,
) -> Suggestions:
    """Rank the scans of a folder that have no label; also written to RUN/suggestions.json.

    scans: in any layout that `prepare` reads; its labelled scans are looked at too, since what is
    near them is known already. count: of suggestions. Raises UserError where every scan has a
    label.
    """
    run, folder = Path(run), RunFolder.open(Path(run))
    cases = find_source(Path(scans), "auto").cases
    known = {case.name for case in cases if case.label} | set(folder.manifest.split.labelled)
    unlabelled = [case for case in cases if case.name not in known]
    if not unlabelled:
        raise UserError(f"{scans}: every scan has a label; there is none to suggest")
    segmenter = Segmenter(run, device=device)
    ordered = [*unlabelled, *(case for case in cases if case.name in known)]
    looks = []
    for done, case in enumerate(ordered):
        if progress:
            progress(case.name, done, len(ordered))
        looks.append(Look.at(segmenter, case))
    if progress:
        progress("done", len(ordered), len(ordered))
    labelled = list(range(len(unlabelled), len(ordered)))
    found = Suggestions(
        scans=[
            Suggestion(name=ordered[i].name, path=str(ordered[i].images[0]), reason=reason)
            for i, reason in ranked(looks, labelled, count)
        ]
    )
    write_suggestions(run, found)
    return found


def ranked(looks: Sequence[Look], labelled: Sequence[int], count: int) -> list[tuple[int, str]]:
    """Places of the `count` scans to label next, the best first, each with the reason in words.

    labelled: places of those that have a label.
    """
    far = distances(looks)
    known = list(labelled)
    most = far.max() or 1.0
    nearest = far[:, known].min(axis=1) if known else np.full(len(looks), most)
    chosen: list[tuple[int, str]] = []
    for _ in range(min(count, len(looks) - len(known))):
        nearer = np.maximum(nearest[:, None] - far, 0)  # of scan i, were scan j labelled
        gain = nearer.sum(axis=0)
        gain[known] = -1
        best = int(gain.argmax())
        chosen.append((best, _reason(best, looks, labelled, nearer[:, best], nearest)))
        known.append(best)
        nearest = np.minimum(nearest, far[:, best])
    return chosen


def distances(looks: Sequence[Look]) -> np.ndarray:
    """(N, N): root mean square over signature and sizes, in standard deviations of these scans."""
    names = list(looks[0].volumes_ml | looks[0].confidence)
    sizes = [[math.log(look.volumes_ml.get(name, 0) + 1e-3) for name in names] for look in looks]
    table = np.hstack([np.array([look.signature for look in looks]), np.array(sizes)])
    table = (table - table.mean(axis=0)) / (table.std(axis=0) + 1e-6)
    apart = table[:, None] - table[None]
    far: np.ndarray = np.sqrt(np.mean(apart**2, axis=2))
    return far


def _reason(
    place: int,
    looks: Sequence[Look],
    labelled: Sequence[int],
    nearer: np.ndarray,
    nearest: np.ndarray,
) -> str:
    """In words. nearer: how much nearer a scan gets to a labelled one, nearest: how far it is."""
    look, said = looks[place], list[str]()
    alike = int(np.count_nonzero(nearer > 0.1 * nearest)) - 1
    if alike > 0:
        said.append(
            f"stands for {alike} other{'s' if alike > 1 else ''} that no labelled scan is like"
        )
    doubted = [f"{name} ({v:.2f})" for name, v in look.confidence.items() if v < UNSURE_BELOW]
    if doubted:
        said.append(f"the model is unsure of {', '.join(doubted)}")
    for name in look.confidence:
        known = [v for i in labelled if (v := looks[i].volumes_ml.get(name)) is not None]
        volume = look.volumes_ml.get(name)
        if volume is None:
            said.append(f"no {name} is found in it")
        elif known and not min(known) <= volume <= max(known):
            than = "larger" if volume > max(known) else "smaller"
            said.append(f"{name} of {volume:.3g} ml, {than} than in any labelled scan")
    if look.trust.unlike is not None and look.trust.unlike > 1:
        said.append("unlike the training scans: check that it belongs to them")
    return "; ".join(said) or "unlike the labelled scans"
