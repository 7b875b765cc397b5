"""The documents of a prepared set and of a run, whole and as small as they can be."""

from typing import Any

from dkuxnet.core.schemas import Fingerprint, Manifest, Plan

FINGERPRINT: dict[str, Any] = {
    "cases": 7,
    "labelled": 5,
    "shape_median": [24, 20, 12],
    "shape_max": [24, 20, 12],
    "spacing_mm_median": [1.0, 1.5, 3.0],
    "extent_mm_median": [24.0, 30.0, 36.0],
    "percentiles_median": [[-100.0, 0.0, 300.0]],
    "mean": [20.0],
    "std": [40.0],
    "label_share": {},
}
PLAN: dict[str, Any] = {
    "spacing_mm": [2.0, 2.0, 2.0],
    "normalisation": [{"kind": "z-score"}],
    "patch": [16, 16, 16],
    "network": "dk-uxnet-tiny",
}
MANIFEST: dict[str, Any] = {
    "prepared": "nowhere",
    "labels": {"background": 0, "organ": 1},
    "channels": ["MRI"],
    "cases": ["a", "b"],
    "split": {"labelled": ["a"], "unlabelled": ["b"], "validation": [], "test": []},
    "plan": PLAN,
    "fingerprint": FINGERPRINT,
    "network_shape": {
        "in_channels": 1,
        "classes": 2,
        "groups": [
            {"name": "background", "classes": [0], "queries": 8},
            {"name": "organ", "classes": [1], "queries": 8},
        ],
    },
    "network": "dk-uxnet-tiny",
    "method": "dual-mutual",
    "patch": [16, 16, 16],
    "parameters": 1_700_000,
    "machine": {"dkuxnet": "9.8.7"},
}


def fingerprint(**changes: Any) -> Fingerprint:
    return Fingerprint.model_validate(FINGERPRINT | changes)


def plan(**changes: Any) -> Plan:
    return Plan.model_validate(PLAN | changes)


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(MANIFEST | changes)
