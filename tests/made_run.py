"""A small finished run with its prepared set, written without training, for tests of the report."""

import json
from pathlib import Path

import numpy as np

from described import FINGERPRINT, PLAN, manifest
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.data.prepared_set import write_array
from dkuxnet.evaluation.evaluate import Evaluation, evaluate_pair
from dkuxnet.machine.files import write_json

SHAPE, GRID = (24, 20, 12), (12, 15, 18)  # of a scan, and of what the network sees
LPS = np.diag([-1.0, -1.5, 3.0, 1.0])  # x to the left, y to the back, anisotropic
SHIFTS = {
    "good": 0,
    "bad": 6,
    "middling": 1,
    "poor": 2,
}  # voxels along x between truth and prediction


def make_labels(classes: int, shift: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    for k in range(1, classes + 1):
        label[8 + shift : 16 + shift, 2 + 6 * (k - 1) : 7 + 6 * (k - 1), 4:9] = k
    return label


def make_prepared(folder: Path, names: list[str], labels: dict[str, int]) -> None:
    (folder / "cases").mkdir(parents=True)
    cases = [{"name": name, "labelled": True, "shape": GRID} for name in names]
    write_json(
        folder / "dataset.json",
        {
            "version": 1,
            "source": "somewhere",
            "layout": "nnunet",
            "channels": ["MRI"],
            "labels": labels,
            "cases": cases,
            "fingerprint": FINGERPRINT,
            "plan": PLAN,
        },
    )
    truth = make_labels(len(labels) - 1, 0)
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) + 3 * (truth > 0)
    image[0, 0, 11] = 99.0  # the corner that is right, front and top
    for name in names:
        scan = folder / f"{name}.nii.gz"
        formats.write(Volume(image, LPS), scan)
        write_array(folder / "cases" / f"{name}.truth.b2nd", truth)
        ras = to_ras(Volume(truth, LPS))
        write_array(
            folder / "cases" / f"{name}.label.b2nd", resample_label(ras.array, GRID, len(labels))
        )
        write_array(folder / "cases" / f"{name}.image.b2nd", np.zeros((1, *GRID), np.float32))
        write_json(
            folder / "cases" / f"{name}.json",
            {
                "name": name,
                "images": [str(scan)],
                "shape": SHAPE,
                "affine": LPS.tolist(),
                "spacing_mm": [1.0, 1.5, 3.0],
                "prepared_affine": np.diag([2.0, 2.0, 2.0, 1.0]).tolist(),
            },
        )


def make_run(
    root: Path,
    shifts: dict[str, int] = SHIFTS,
    classes: int = 1,
    run: str = "run",
    logged: int = 0,
    maps: bool = False,
    names: tuple[str, ...] = ("organ 1", "organ 2"),
) -> Path:
    """A finished run of `logged` steps with an evaluation of the cases in `shifts`, and its
    prepared set root/prepared.

    maps: with uncertainty and two query groups. names: of classes and groups.
    """
    labels = {"background": 0} | {name: 10 * k for k, name in enumerate(names[:classes], 1)}
    make_prepared(root / "prepared", list(shifts), labels)
    folder = root / run
    (folder / "evaluation" / "predictions").mkdir(parents=True)
    write_json(
        folder / "settings.json",
        {"train": {"steps": 40, "lr": 0.25}, "method": {"name": "dual-mutual"}},
    )
    groups = [
        {"name": "background", "classes": [0], "queries": 8},
        {"name": names[0], "classes": [*range(1, 1 + classes)], "queries": 8},
    ]
    described = manifest(
        prepared=str(root / "prepared"),
        labels=labels,
        cases=list(shifts),
        test={},
        network_shape={"in_channels": 1, "classes": 1 + classes, "groups": groups},
        split={"labelled": ["a"], "unlabelled": ["b", "c"], "validation": [], "test": list(shifts)},
        train_seconds=3723.0,
        evaluate_seconds=12.0,
        steps_done=40,
    )
    write_json(folder / "manifest.json", described.to_json())
    rows = [
        {
            "step": step,
            "seg": 1 / (step + 1),
            "qd": 0.1,
            "loss": 0.1 + 1 / (step + 1),
            "lr": 0.25,
            "seconds": step,
        }
        for step in range(logged)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "final.safetensors").write_bytes(b"")
    values, scores, files = np.array(list(labels.values()), np.uint8), [], {}
    truth = Volume(values[make_labels(classes, 0)], LPS)
    for name, shift in shifts.items():
        prediction = Volume(values[make_labels(classes, shift)], LPS)
        path = folder / "evaluation" / "predictions" / f"{name}.nii.gz"
        formats.write(prediction, path)
        scores += evaluate_pair(name, prediction, truth, labels)
        files[name] = (path.relative_to(folder / "evaluation"), Path("truth.b2nd"))
        if maps:
            write_maps(folder / "evaluation" / "maps", name)
    Evaluation(scores, files).write_json(folder / "evaluation" / "summary.json")
    Evaluation(scores, files).write_csv(folder / "evaluation" / "cases.csv")
    return folder


def write_maps(folder: Path, name: str) -> None:
    """Uncertainty is 0.4 in the half with the first six x and else 0; the share of the second
    group rises along z.
    """
    affine, uncertainty = np.diag([2.0, 2.0, 2.0, 1.0]), np.zeros(GRID, np.uint8)
    uncertainty[:6] = 102
    share = np.broadcast_to(np.linspace(0, 255, GRID[2]).astype(np.uint8), GRID)
    for kind, values in (("uncertainty", uncertainty), ("groups", np.stack([255 - share, share]))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        formats.write(Volume(values, affine), folder / kind / f"{name}.nii.gz")
