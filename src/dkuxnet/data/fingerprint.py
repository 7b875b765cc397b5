"""What scans are like: the figures of a case, and the fingerprint that the plan follows from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Fingerprint
from dkuxnet.core.types import IGNORE, Case, Source
from dkuxnet.data.geometry import to_ras
from dkuxnet.data.images import read_image
from dkuxnet.data.labels import read_label
from dkuxnet.data.plan import is_ct
from dkuxnet.data.values import check_modality, every_nth

SAMPLE = 20_000  # voxels of a channel that its figures are taken from
AIR = -500  # Hounsfield units: below is air, and most of a lung


@dataclass(frozen=True)
class CaseFigures:
    """A case's numbers for the fingerprint, its grid in RAS order.

    percentiles (0.5, 50 and 99.5 %), mean, std: of each channel. label_counts: value -> voxels of
    the label map, without those that nobody labelled; None for an unlabelled case.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    percentiles: list[list[float]]
    mean: list[float]
    std: list[float]
    label_counts: dict[int, int] | None


def check_case(source: Source, case: Case) -> CaseFigures:
    """Read and verify one case; its numbers for the fingerprint. Raises UserError."""
    image = read_image(case, len(source.channels))
    check_modality(f"case '{case.name}': {case.images[0]}", image.modality, source.channels)
    sampled = [every_nth(channel, channel.size // SAMPLE) for channel in image.array]
    samples = [
        without_air(values) if is_ct(name) else values
        for name, values in zip(source.channels, sampled, strict=True)
    ]
    counts = None
    if case.label is not None:
        scan = f"the image {case.images[0].name}", image
        named = source.named_values
        label = read_label(case.name, case.label, scan, named).array
        counts = _joined(count_values(label), source.same)
        for other in case.raters:
            if other != case.label:
                label = read_label(case.name, other, scan, named).array
                counts |= {value: 0 for value in count_values(label) if value not in counts}
        if source.ignore is not None and counts.pop(source.ignore, 0) and not counts:
            raise UserError(
                f"case '{case.name}': {case.label} has '{IGNORE}' in every voxel: nothing to "
                "learn; label some, or take the file away"
            )
    ras = to_ras(image)
    return CaseFigures(
        name=case.name,
        shape=ras.shape,
        spacing_mm=ras.spacing_mm,
        percentiles=[np.percentile(values, (0.5, 50, 99.5)).tolist() for values in samples],
        mean=[float(values.mean()) for values in samples],
        std=[float(values.std()) for values in samples],
        label_counts=counts,
    )


def _joined(counts: dict[int, int], same: Mapping[int, int]) -> dict[int, int]:
    """Counts of values, those of one class together."""
    joined: dict[int, int] = {}
    for value, count in counts.items():
        of = same.get(value, value)
        joined[of] = joined.get(of, 0) + count
    return joined


def count_values(label: np.ndarray) -> dict[int, int]:
    """Which integers there are, ascending, and how often.

    Bytes are counted where they stand, all else has to be sorted.
    """
    if label.dtype == np.uint8:
        counts = np.bincount(label.ravel(order="K"), minlength=1)
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    values, counts = np.unique(label, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True)}


def without_air(values: np.ndarray) -> np.ndarray:
    """The CT values (n,) of the body.

    The air around it would set the scale, and tissues would all look alike.
    """
    body = values[values > AIR]
    return body if len(body) else values


def take_fingerprint(checks: Sequence[CaseFigures]) -> Fingerprint:
    """Sizes, spacings and intensities of all cases, label shares of the labelled ones."""
    shares: dict[int, list[float]] = {}
    labelled = [check.label_counts for check in checks if check.label_counts is not None]
    for counts in labelled:
        for value, n in counts.items():
            shares.setdefault(value, []).append(n / sum(counts.values()))
    shapes, spacings = [c.shape for c in checks], [c.spacing_mm for c in checks]
    return Fingerprint(
        cases=len(checks),
        labelled=len(labelled),
        shape_median=np.median(shapes, axis=0).tolist(),
        shape_max=np.max(shapes, axis=0).tolist(),
        spacing_mm_median=np.median(spacings, axis=0).tolist(),
        extent_mm_median=np.median(np.multiply(shapes, spacings), axis=0).tolist(),
        percentiles_median=np.median([c.percentiles for c in checks], axis=0).tolist(),
        mean=np.mean([c.mean for c in checks], axis=0).tolist(),
        std=np.mean([c.std for c in checks], axis=0).tolist(),
        label_share={
            str(value): float(np.sum(s) / len(labelled)) for value, s in sorted(shares.items())
        },
    )
