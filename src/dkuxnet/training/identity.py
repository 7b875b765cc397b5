"""By what a data set is known again, when a run goes on or is compared."""

import hashlib
import json
from typing import Any

from dkuxnet.core.schemas import Split
from dkuxnet.data.prepared_set import Kind, PreparedSet


def data_identity(data: PreparedSet) -> dict[str, Any]:
    """What a resumed run must find unchanged in its data set, beside `arrays_sha256`."""
    meta = data.meta
    return {
        "cases": data.names,
        "labels": meta.labels,
        "ignore": meta.ignore,
        "regions": meta.regions,
        "channels": meta.channels,
        "plan": meta.plan,
    }


def arrays_sha256(data: PreparedSet, split: Split) -> str:
    """One checksum over all arrays that a run with this split opens, see `views`.

    By the checksums that the set keeps. Labels that the split holds back may change.
    """
    opened: dict[Kind, tuple[str, ...]] = {
        "image": (*split.labelled, *split.unlabelled, *split.validation, *split.test),
        "label": (*split.labelled, *split.validation),
        "truth": split.test,
    }
    sums = [data.sha256(name, kind) for kind, names in opened.items() for name in names]
    sums += [
        data.sha256(name, f"rater{each}")
        for name in split.labelled
        for each in range(data.raters(name)[0])
    ]
    judged = (*split.labelled, *split.validation, *split.test)
    sums += [f"{name} {data.not_labelled(name)}" for name in judged if data.not_labelled(name)]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def identity_sha256(data: PreparedSet, split: Split) -> str:
    """A short checksum over all that a run with this split takes from its data set."""
    taken = data_identity(data), split.lists(), arrays_sha256(data, split)
    return hashlib.sha256(repr(taken).encode()).hexdigest()[:12]
