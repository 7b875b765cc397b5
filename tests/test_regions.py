"""Regions: classes that lie in each other, read, learnt as parts, scored and written as regions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from dkuxnet.core.confidence import structure_confidence
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.layouts import find_source
from dkuxnet.data.layouts.regions import disjoint_parts
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.evaluate import evaluate_folders
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.training.experiment import run_training
from dkuxnet.training.folds import run_folds
from dkuxnet.training.job import new_job
from test_partial_labels import AFFINE, SHAPE, write_source
from tiny import UXNET

TUMOUR = {
    "labels": {"background": 0, "whole": [1, 2, 3, 4], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}


def a_tumour(name: str, label: np.ndarray) -> np.ndarray:
    """1 around, 4 another kind of it, 2 within, 3 innermost."""
    label[:] = 0
    label[3:15, 3:15, 4:16], label[3:15, 3:6, 4:16] = 1, 4
    label[6:12, 7:13, 6:14] = 2
    label[8:11, 8:12, 7:12] = 3
    return label


def without_enhancing(name: str, label: np.ndarray) -> np.ndarray:
    return (
        np.where((a := a_tumour(name, label)) == 3, 2, a) if name == "b" else a_tumour(name, label)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions")
    left_out = {"not_labelled": {"b": ["enhancing"]}}
    write_source(folder / "source", without_enhancing, **TUMOUR, **left_out)
    prepare_scans(folder / "source", folder / "p", 2.0, processes=1)
    settings = UXNET | {"train.steps": 2, "data.test_cases": 1, "data.validation_cases": 1}
    run_training(folder / "p", folder / "run", load_settings(overrides=settings))
    return folder


def test_the_classes_are_the_parts_and_values_that_no_region_tells_apart_are_one():
    labels, regions, same = disjoint_parts(
        {"whole": (1, 2, 3, 4), "core": (2, 3), "enhancing": (3,)}, [1, 2, 3]
    )
    assert labels == {"rest of whole": 1, "rest of core": 2, "enhancing": 3}
    assert regions == {"whole": (1, 2, 3, 4), "core": (2, 3), "enhancing": (3,)}
    assert same == {4: 1}
    heart, within, _ = disjoint_parts(
        {"heart": (1, 2, 3), "RV": (1,), "Myo": (2,), "LV": (3,)}, [9, 1, 2, 3]
    )
    assert heart == {"RV": 1, "Myo": 2, "LV": 3} and within["heart"] == (9, 1, 2, 3)


BAD = {
    "no order": ({"regions_class_order": None}, "overlap"),
    "too short": ({"regions_class_order": [1, 2]}, "each of the 3 regions"),
    "twice": ({"regions_class_order": [1, 2, 2]}, "2 twice"),
    "no number": ({"regions_class_order": [1, 2, "3"]}, "each of the 3 regions"),
    "of another": ({"regions_class_order": [1, 3, 2]}, "'enhancing' 2"),
    "inside out": ({"regions_class_order": [3, 2, 1]}, "'enhancing' 1"),
    "outer last": (
        {
            "labels": {"background": 0, "core": [2, 3], "whole": [1, 2, 3]},
            "regions_class_order": [2, 1],
        },
        "means something else",
    ),
    "crossing": (
        {"labels": {"background": 0, "x": [1, 2], "y": [2, 3]}, "regions_class_order": [1, 3]},
        "means something else",
    ),
    "ignore inside": (
        {"labels": {"background": 0, "x": [1, 2], "ignore": 2}, "regions_class_order": [1]},
        "value of 'ignore'",
    ),
    "ignore below": (
        {"labels": {"background": 0, "x": [1, 3], "ignore": 2}, "regions_class_order": [1]},
        "highest",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_regions_that_cannot_be_written_are_one_line(tmp_path, kind):
    change, part = BAD[kind]
    source = write_source(tmp_path / "source", a_tumour, **TUMOUR)
    described = {key: value for key, value in (TUMOUR | change).items() if value is not None}
    (source / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(UserError) as told:
        find_source(source)
    assert str(source / "dataset.json") in str(told.value) and part in str(told.value)


def test_a_set_holds_parts_and_what_is_not_labelled_merges_those_that_differ_in_it(run):
    data = PreparedSet(run / "p")
    assert data.class_names == ["background", "rest of whole", "rest of core", "enhancing"]
    assert data.meta.structures == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    truth = data.array("a", "truth")
    label = a_tumour("a", np.zeros(SHAPE, np.uint8))
    assert np.array_equal(truth, np.where(label == 4, 1, label))
    assert data.merged == ((2, 3),)
    assert data.targets("b")[[0, 1, 2, 3]].tolist() == [0, 1, 4, 4]


def test_scores_names_and_maps_are_of_regions(run):
    evaluation = run / "run" / "evaluation"
    with (evaluation / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["value"]) for row in rows] == [
        ("whole", "1"), ("core", "2"), ("enhancing", "3")
    ]  # fmt: skip
    label = a_tumour("d", np.zeros(SHAPE, np.uint8))
    assert [int(row["n_ref"]) for row in rows] == [(label > 0).sum(), 36 * 8, (label == 3).sum()]
    found = evaluate_folders(evaluation / "predictions", run / "source")
    assert [row.n_ref for row in found.rows] == [int(row["n_ref"]) for row in rows]
    assert [row.dice for row in found.rows] == pytest.approx(
        [float(row["dice"] or "nan") for row in rows], nan_ok=True
    )
    described = json.loads((evaluation / "predictions" / "dataset.json").read_text())
    assert described == {
        "labels": TUMOUR["labels"] | {"enhancing": [3]},
        "regions_class_order": [1, 2, 3],
    }


def test_evaluate_by_hand_each_side_by_its_own_values(tmp_path):
    for name in ("predictions", "labels"):
        (tmp_path / name).mkdir()
    label = a_tumour("a", np.zeros(SHAPE, np.uint8))
    formats.write(Volume(label, AFFINE), tmp_path / "labels" / "a.nii.gz")
    other = np.select([label == 3, label == 2, label > 0], [7, 7, 5], 0).astype(np.uint8)
    formats.write(Volume(other, AFFINE), tmp_path / "predictions" / "a.nii.gz")
    (tmp_path / "labels" / "dataset.json").write_text(json.dumps(TUMOUR))
    theirs = {"background": 0, "whole": [5, 6, 7], "core": [6, 7], "enhancing": 7}
    (tmp_path / "predictions" / "dataset.json").write_text(
        json.dumps({"labels": theirs, "regions_class_order": [5, 6, 7]})
    )
    found = {
        row.class_name: row
        for row in evaluate_folders(tmp_path / "predictions", tmp_path / "labels").rows
    }
    assert found["whole"].dice == found["core"].dice == 1
    inner, core = (label == 3).sum(), ((label == 2) | (label == 3)).sum()
    assert found["enhancing"].dice == pytest.approx(2 * inner / (inner + core))
    assert (found["whole"].value, found["core"].value) == (5, 6)


def test_a_prediction_writes_a_row_for_each_region(run, tmp_path):
    predict_scans(
        run / "run", [run / "source" / "images" / "u.nii.gz"], tmp_path / "out", device="cpu"
    )
    written = formats.read(tmp_path / "out" / "u.nii.gz", kind="label").array
    assert set(np.unique(written)) <= {0, 1, 2, 3}
    with (tmp_path / "out" / "classes.csv").open(newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    expected = {
        "whole": (written > 0).sum(),
        "core": (written > 1).sum(),
        "enhancing": (written > 2).sum(),
    }
    assert {name: int(row["voxels"]) for name, row in rows.items()} == expected
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["regions_class_order"] == [
        1,
        2,
        3,
    ]


def test_a_region_is_as_sure_as_its_parts_together():
    prob = np.array([0.1, 0.4, 0.5]).reshape(3, 1, 1, 1) * np.ones((1, 2, 2, 2))
    assert structure_confidence(prob, {"both": (1, 2), "inner": (2,)}) == {
        "both": 0.9,
        "inner": 0.5,
    }


def test_a_cross_validation_is_of_regions_and_says_what_nobody_outlined(run, tmp_path):
    asked = load_settings(overrides=UXNET | {"train.steps": 1})
    result = run_folds(run / "p", tmp_path / "cv", asked, 2)
    assert {"whole", "core", "enhancing"} <= result.summary().keys()
    assert any("'enhancing' in 1 of 4 cases" in note for note in result.notes)
    path = tmp_path / "cv" / "evaluation" / "predictions" / "dataset.json"
    assert json.loads(path.read_text()) == PreparedSet(run / "p").meta.description


def test_a_tolerance_is_of_a_region(run):
    def asked(tolerance):
        nsd = {"evaluate.metrics": "nsd", "evaluate.tolerance_mm": tolerance}
        return load_settings(overrides=UXNET | nsd)

    new_job(run / "p", asked("whole=2,core=1,enhancing=1"))
    with pytest.raises(UserError, match="rest of core"):
        new_job(run / "p", asked("1,rest of core=1"))
