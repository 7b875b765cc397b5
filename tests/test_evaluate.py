"""Evaluation of small files: pairing, figures, statistics, what is written, and every error."""

import csv
import json
import math
import os
import re
import warnings

import numpy as np
import pytest

from dkuxnet.cli.console import show_evaluation
from dkuxnet.core.errors import DataWarning, UserError, UserErrors
from dkuxnet.core.types import Volume
from dkuxnet.data.formats import write
from dkuxnet.evaluation.evaluate import (
    COLUMNS,
    KEYS,
    Evaluation,
    Score,
    evaluate_folders,
    evaluate_pair,
)
from dkuxnet.evaluation.metrics import SHOWN
from dkuxnet.evaluation.statistics import FOREGROUND_MEAN, statistic

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
LABELS = {"background": 0, "organ": 1, "tumour": 2}


def label_map(organ, tumour=1, shape=(10, 8, 6)):
    """`organ` slices of organ along x, then `tumour` slices of tumour."""
    array = np.zeros(shape, np.uint8)
    array[:organ] = 1
    array[organ : organ + tumour] = 2
    return array


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(Volume(array, affine), path)


def describe(folder, labels, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **fields}))


@pytest.fixture
def folders(tmp_path):
    """Three cases: the prediction's organ has 2, 3 and 4 slices, the truth's always 4; the classes
    are named.
    """
    predictions, labels = tmp_path / "predictions", tmp_path / "labelsTr"
    for case, organ in (("a", 2), ("b", 3), ("c", 4)):
        save(predictions / f"{case}.nii.gz", label_map(organ))
        save(labels / f"{case}.nii.gz", label_map(4))
    describe(predictions, LABELS)
    return predictions, labels


def test_rows_of_a_pair_by_hand():
    """Organ: 2 of 4 slices of 48 voxels.

    Tumour: one slice each, two apart along x, where a voxel is 1 mm.
    """
    organ, tumour = evaluate_pair(
        "a", Volume(label_map(2), AFFINE), Volume(label_map(4), AFFINE), LABELS
    )
    assert (organ.case, organ.class_name, organ.value) == ("a", "organ", 1)
    assert (organ.dice, organ.jaccard) == (pytest.approx(2 / 3), 0.5)
    assert [*organ[9:15]] == [96, 0, 96, 288, 96, 192]
    assert (organ.pred_ml, organ.ref_ml) == pytest.approx((0.576, 1.152))  # 6 mm3 a voxel
    assert math.isnan(organ.confidence)
    assert [tumour.dice, *tumour[5:9]] == [0, 2, 2, 2, 2]
    assert [*tumour[9:15]] == [0, 48, 48, 384, 48, 48]


def test_a_row_has_a_column_for_every_metric_and_count():
    assert Score._fields[3:-1] == tuple(KEYS) and COLUMNS[:3] == ("case", "class", "value")
    assert {metric.title: metric.better for metric in SHOWN} == {
        "Dice": "higher is better",
        "Jaccard": "higher is better",
        "95HD (mm)": "lower is better",
        "ASD (mm)": "lower is better",
    }


def test_spacing_of_the_affine_is_used():
    turned = np.array([[0, 0, -3.0, 0], [0, 2.0, 0, 0], [4.0, 0, 0, 5], [0, 0, 0, 1]])
    rows = evaluate_pair("a", Volume(label_map(2), turned), Volume(label_map(4), turned), LABELS)
    assert (rows[1].hd95_mm, rows[1].hd95_voxels) == (8, 2)


def test_folders_pair_by_name_across_formats(folders):
    predictions, labels = folders
    (labels / "b.nii.gz").unlink()
    save(labels / "b.nrrd", label_map(4))
    (predictions / "._a.nii.gz").write_bytes(b"left by macOS")
    done = []
    evaluation = evaluate_folders(predictions, labels, progress=lambda *args: done.append(args))
    assert [(row.case, row.class_name) for row in evaluation.rows] == [
        (case, name) for case in "abc" for name in ("organ", "tumour")
    ]
    assert evaluation.files["b"] == (predictions / "b.nii.gz", labels / "b.nrrd")
    assert evaluation.notes == []
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_summary_by_hand(folders):
    summary = evaluate_folders(*folders).summary()
    organ, tumour = np.array([2 / 3, 6 / 7, 1]), np.array([0, 0, 1])
    for name, dice in (
        ("organ", organ),
        ("tumour", tumour),
        (FOREGROUND_MEAN, (organ + tumour) / 2),
    ):
        assert summary[name]["dice"].mean == pytest.approx(dice.mean())
        assert summary[name]["dice"].std == pytest.approx(
            np.sqrt(((dice - dice.mean()) ** 2).sum() / 2)
        )
    assert summary["tumour"]["hd95_mm"].mean == pytest.approx((2 + 1 + 0) / 3)
    assert summary["organ"]["dice"].ci95 is None, "three cases cannot say"


def test_interval_is_that_of_the_mean():
    """For many cases it comes to the normal interval, mean +- 1.96 std / sqrt(n)."""
    values = np.random.default_rng(1).normal(0.8, 0.1, 200)
    rows = [Score(str(i), "organ", 1, v, *[0] * 11) for i, v in enumerate(values)]
    evaluation = Evaluation(rows, {row.case: ("", "") for row in rows})
    dice = evaluation.summary()["organ"]["dice"]
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert dice.ci95 == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)
    assert evaluation.summary()["organ"]["dice"] == dice, "the same figures give the same interval"


def test_one_case_has_no_spread(folders, tmp_path):
    predictions, labels = folders
    for case in "bc":
        (predictions / f"{case}.nii.gz").unlink()
    evaluation = evaluate_folders(predictions, labels)
    assert evaluation.summary()["organ"]["dice"].to_json() == {
        "mean": pytest.approx(2 / 3),
        "std": None,
        "ci95": None,
        "cases": 1,
    }
    assert evaluation.notes == ["2 of 3 labelled cases have no prediction"]
    evaluation.write_json(tmp_path / "summary.json")
    assert (
        json.loads((tmp_path / "summary.json").read_text())["statistics"]["organ"]["Dice"]["ci95"]
        is None
    )


def test_json_has_the_keys_of_nnunet(folders, tmp_path):
    evaluation = evaluate_folders(*folders)
    evaluation.write_json(tmp_path / "out" / "summary.json")
    summary = json.loads(
        (tmp_path / "out" / "summary.json").read_text(), parse_constant=pytest.fail
    )
    first = summary["metric_per_case"][0]
    assert first["prediction_file"].endswith("predictions/a.nii.gz")
    assert first["reference_file"].endswith("labelsTr/a.nii.gz")
    assert first["metrics"].keys() == {"1", "2"}
    keys = {"Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"}
    keys |= {"HD95_mm", "ASD_mm", "HD95_voxels", "ASD_voxels"}
    keys |= {"pred_ml", "ref_ml", "confidence"}
    assert (
        first["metrics"]["1"].keys()
        == summary["mean"]["2"].keys()
        == summary["foreground_mean"].keys()
        == keys
    )
    assert (first["metrics"]["1"]["Dice"], first["metrics"]["1"]["FN"]) == (
        pytest.approx(2 / 3),
        96,
    )
    organ, tumour = summary["mean"]["1"], summary["mean"]["2"]
    assert organ["Dice"] == pytest.approx((2 / 3 + 6 / 7 + 1) / 3)
    assert summary["foreground_mean"]["FP"] == pytest.approx((organ["FP"] + tumour["FP"]) / 2)
    assert summary["statistics"]["organ"]["Dice"] == evaluation.summary()["organ"]["dice"].to_json()
    assert summary["statistics"][FOREGROUND_MEAN]["Dice"]["mean"] == pytest.approx(
        summary["foreground_mean"]["Dice"]
    )
    assert (summary["n_cases"], summary["labels"]) == (3, {"organ": 1, "tumour": 2})


def test_csv_has_a_line_for_every_case_and_class(folders, tmp_path):
    evaluate_folders(*folders).write_csv(tmp_path / "cases.csv")
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows[:3]] == [
        ("a", "organ"),
        ("a", "tumour"),
        ("b", "organ"),
    ]
    assert (float(rows[0]["jaccard"]), rows[0]["fn"]) == (0.5, "96")


def test_what_cannot_be_written_leaves_nothing_behind(folders, tmp_path, monkeypatch):
    evaluation = evaluate_folders(*folders)
    (tmp_path / "file").write_text("in the way")
    for write_to in (evaluation.write_json, evaluation.write_csv):
        with pytest.raises(UserError, match="cannot be written"):
            write_to(tmp_path / "file" / "summary")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text("before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        evaluation.write_json(tmp_path / "out" / "summary.json")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.json"]
    assert (tmp_path / "out" / "summary.json").read_text() == "before"


def test_empty_predictions_have_no_distance_and_are_noted(folders, tmp_path, capsys):
    predictions, labels = folders
    save(predictions / "a.nii.gz", label_map(0, 0))
    evaluation = evaluate_folders(predictions, labels)
    assert math.isnan(evaluation.rows[0].hd95_mm)
    organ = evaluation.summary()["organ"]["hd95_mm"]  # 1 and 0 mm in the other two
    assert (organ.mean, organ.cases) == (pytest.approx(0.5), 2)
    show_evaluation(evaluation)
    assert re.search(r"organ +0\.\d+ .* 0\.50 .* 1 of 3", capsys.readouterr().out)
    evaluation.write_csv(tmp_path / "cases.csv")
    line = (tmp_path / "cases.csv").read_text().splitlines()[1]
    assert line.startswith("a,organ,1,0.0,0.0,,,,,0,")
    assert evaluation.notes == [
        "missed where it is: 'organ' in 1 of 3, 'tumour' in 1 of 3 scans; that is Dice 0, and no "
        "distance"
    ]


@pytest.mark.parametrize(
    "labels", [LABELS, {"0": "background", "1": "organ", "2": "tumour"}], ids=["nnunet", "msd"]
)
@pytest.mark.parametrize("above", [True, False])
def test_classes_come_from_the_labels_where_predictions_name_none(folders, labels, above):
    (folders[0] / "dataset.json").unlink()
    describe(folders[1].parent if above else folders[1], labels)
    assert evaluate_folders(*folders).classes == {"organ": 1, "tumour": 2}


def test_classes_without_any_names_are_the_values_found(folders):
    (folders[0] / "dataset.json").unlink()
    assert evaluate_folders(*folders).classes == {"class_1": 1, "class_2": 2}


def test_each_side_is_read_by_its_own_values(folders):
    predictions, labels = folders
    for case in "abc":
        save(labels / f"{case}.nii.gz", np.array([0, 255, 7], np.uint8)[label_map(4)])
    describe(labels, {"nothing": 0, "organ": 255, "tumour": 7})
    evaluation = evaluate_folders(predictions, labels)
    assert evaluation.classes == {"organ": 1, "tumour": 2}
    assert evaluation.rows[0].jaccard == 0.5


def test_other_names_for_the_same_values_are_those_of_the_prediction(folders):
    describe(folders[1], {"background": 0, "liver": 1, "lesion": 2})
    assert evaluate_folders(*folders).classes == {"organ": 1, "tumour": 2}


def test_labels_of_a_source_folder(tmp_path):
    """The challenge's layout: a folder a patient, 255 for the left atrium; one patient has no
    label.
    """
    save(tmp_path / "predictions" / "p1.nii.gz", label_map(2, 0))
    describe(tmp_path / "predictions", {"background": 0, "LA": 1})
    for patient in ("p1", "p2"):
        save(tmp_path / "source" / patient / "lgemri.nrrd", np.zeros((10, 8, 6), np.float32))
    save(tmp_path / "source" / "p1" / "laendo.nrrd", label_map(4, 0) * np.uint8(255))
    evaluation = evaluate_folders(tmp_path / "predictions", tmp_path / "source")
    assert evaluation.rows[0].jaccard == 0.5
    assert evaluation.notes == []


def test_labels_of_the_benchmark_include_its_test_cases(tmp_path):
    """The layout keeps the cases of test.list away from training; scoring them is what the
    benchmark is for.
    """
    affine = np.diag([0.625, 0.625, 0.625, 1])
    scans = tmp_path / "source" / "2018LA_Seg_Training Set"
    for name in ("train1", "test1"):
        save(scans / name / "mri_norm2.h5", label_map(4, 0), affine)
    (tmp_path / "source" / "train.list").write_text("train1\n")
    (tmp_path / "source" / "test.list").write_text("test1\n")
    save(tmp_path / "predictions" / "test1.nii.gz", label_map(2, 0), affine)
    evaluation = evaluate_folders(tmp_path / "predictions", tmp_path / "source")
    assert (evaluation.rows[0].case, evaluation.rows[0].jaccard) == ("test1", 0.5)
    assert evaluation.notes == ["1 of 2 labelled cases have no prediction"]


def test_a_list_chooses_the_cases_and_each_must_be_predicted(folders, tmp_path):
    (tmp_path / "some.list").write_text("c\na\n")
    evaluation = evaluate_folders(*folders, cases=tmp_path / "some.list")
    assert list(evaluation.files) == ["a", "c"] and not evaluation.notes
    (tmp_path / "some.list").write_text("a\nz\n")
    with pytest.raises(UserError, match=r"a prediction of every case in the list, none.*z"):
        evaluate_folders(*folders, cases=tmp_path / "some.list")


def test_all_pairs_that_cannot_be_scored_are_told_at_once(folders):
    for name in "ac":
        (folders[0] / f"{name}.nii.gz").write_bytes(b"no NIfTI")
    save(folders[0] / "b.nii.gz", label_map(3, shape=(10, 8, 5)))
    with pytest.raises(UserErrors) as caught:
        evaluate_folders(*folders)
    for line, name in zip(caught.value.lines, ("a.nii.gz", "case 'b'", "c.nii.gz"), strict=True):
        assert name in line


def refused(folders, match):
    with pytest.raises(UserError, match=match) as error:
        evaluate_folders(*folders)
    assert "\n" not in str(error.value)


def test_different_shape_is_refused(folders):
    save(folders[0] / "b.nii.gz", label_map(3, shape=(10, 8, 5)))
    refused(folders, r"case 'b'.*shape \(10, 8, 5\).*shape \(10, 8, 6\).*resample")


@pytest.mark.parametrize(("shift_mm", "outcome"), [(5e-4, "fits"), (0.7, "told"), (2.5, "refused")])
def test_a_different_affine_is_told_within_rounding_and_refused_beyond(folders, shift_mm, outcome):
    moved = AFFINE.copy()
    moved[2, 3] += shift_mm
    save(folders[0] / "b.nii.gz", label_map(3), moved)
    if outcome == "refused":
        refused(folders, r"case 'b': prediction and label lie 2\.5 mm apart.*resample")
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        evaluate_folders(*folders)
    assert ["0.7 mm apart by their headers" in str(each.message) for each in told] == [True] * (
        outcome == "told"
    )


def test_prediction_without_label_is_refused(folders):
    save(folders[0] / "d.nii.gz", label_map(3))
    refused(folders, r"label for every prediction, none for d;")


def test_nothing_that_pairs_is_refused(folders):
    for case in "abc":
        (folders[1] / f"{case}.nii.gz").rename(folders[1] / f"other_{case}.nii.gz")
    refused(folders, "same names, got a, b, c in .* and other_a, other_b, other_c in")


def test_folder_without_predictions_is_refused(folders, tmp_path):
    refused((tmp_path / "nowhere", folders[1]), "nowhere: expected a folder of label maps")


def test_folder_without_labels_is_refused(folders, tmp_path):
    refused((folders[0], tmp_path / "nowhere"), "nowhere: expected a folder")


@pytest.mark.parametrize(("side", "what"), [(0, "the prediction"), (1, "the label file")])
def test_value_outside_the_label_map_is_refused(folders, side, what):
    array = label_map(3)
    array[9, :2, :3] = 5
    save(folders[side] / "b.nii.gz", array)
    refused(folders, f"case 'b': {what} holds value 5 in 6 voxels")


def test_no_class_at_all_is_refused(folders):
    describe(folders[0], {"background": 0})
    refused(folders, "at least one class")


def test_label_map_that_is_not_one_is_refused(folders):
    describe(folders[0], {"background": 0, "whole": [1, 2.5]})
    refused(folders, "dataset.json")


# --- a class that is not there ---


def test_a_class_in_neither_label_nor_prediction_enters_no_mean(folders, tmp_path):
    predictions, labels = folders
    for case in "bc":
        save(labels / f"{case}.nii.gz", label_map(4, 0))
        save(predictions / f"{case}.nii.gz", label_map(2, 0))
    evaluation = evaluate_folders(predictions, labels)
    summary = evaluation.summary()
    assert (summary["tumour"]["dice"].mean, summary["tumour"]["dice"].cases) == (0, 1)
    means = [(2 / 3 + 0) / 2, 2 / 3, 2 / 3]  # of the classes of each case
    assert summary[FOREGROUND_MEAN]["dice"].mean == pytest.approx(np.mean(means))
    assert evaluation.found()["tumour"].to_json() == {
        "scans": 3, "present": 1, "missed": 0, "false_alarms": 0, "false_alarm_ml": 0,
    }  # fmt: skip
    [note] = evaluation.notes
    assert note.startswith("not in every scan: 'tumour' in 1 of 3;")
    evaluation.write_json(tmp_path / "summary.json")
    text = (tmp_path / "summary.json").read_text()
    stored = json.loads(text, parse_constant=pytest.fail)
    assert stored["metric_per_case"][1]["metrics"]["2"]["Dice"] is None
    assert stored["mean"]["2"]["Dice"] == 0 and stored["found"]["tumour"]["present"] == 1
    assert stored["foreground_mean"]["Dice"] == pytest.approx((2 / 3 + 0) / 2)  # nnU-Net's
    evaluation.write_csv(tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [rows[3][key] for key in ("dice", "hd95_mm", "n_ref", "confidence")] == ["", "", "0", ""]


def test_four_empty_label_maps_are_no_success(folders, tmp_path):
    predictions, labels = folders
    for case in "abc":
        for folder in folders:
            save(folder / f"{case}.nii.gz", label_map(0, 0))
    evaluation = evaluate_folders(predictions, labels)
    assert {s.mean for each in evaluation.summary().values() for s in each.values()} == {None}
    assert evaluation.notes == ["no label has any foreground: there is nothing that could be found"]
    evaluation.write_json(tmp_path / "summary.json")
    stored = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert stored["foreground_mean"]["Dice"] is None


def test_a_false_alarm_is_counted_with_its_volume(folders):
    predictions, labels = folders
    save(labels / "a.nii.gz", label_map(4, 0))
    evaluation = evaluate_folders(predictions, labels)
    found = evaluation.found()["tumour"]
    assert (found.present, found.missed, found.false_alarms) == (2, 0, 1)
    assert found.false_alarm_ml == pytest.approx(48 * 6 / 1000)
    assert evaluation.rows[1].dice == 0
    assert "'tumour' in 1 of 1 (0.29 ml) scans" in evaluation.notes[-1]


def test_what_is_missed_everywhere_has_no_distance(folders):
    for case in "abc":
        save(folders[0] / f"{case}.nii.gz", label_map(4, 0))
    evaluation = evaluate_folders(*folders)
    tumour = evaluation.summary()["tumour"]
    assert (tumour["dice"].mean, tumour["hd95_mm"].mean, tumour["asd_mm"].mean) == (0, None, None)
    assert evaluation.found()["tumour"].missed == 3
    organ_alone = evaluation.summary()[FOREGROUND_MEAN]["hd95_mm"]
    assert (organ_alone.mean, organ_alone.cases) == (0, 3)


def test_a_statistic_is_of_the_cases_that_apply_and_stays_within_bounds():
    values = np.array([1, 1, 0.9, 0.2, 1, np.nan])
    found = statistic(values)
    assert found == statistic(values[:5]) and found.cases == 5 and found.ci95[1] > 1
    assert statistic(values, (-1, 1)).ci95 == (found.ci95[0], 1)
    nothing = statistic(values[5:])
    assert (nothing.mean, nothing.std, nothing.ci95, nothing.cases) == (None, None, None, 0)


def test_thirty_classes_are_a_dozen_rows_on_the_console(capsys):
    rows = [
        Score(case, f"class {k}", k, k / 40, *[0.5] * 5, 1, 1, 1, 1, 2, 2, 1.0, 1.0)
        for case in ("a", "b")
        for k in range(1, 34)
    ]
    show_evaluation(Evaluation(rows, dict.fromkeys("ab", ("", ""))))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 60 and sum("class " in line for line in lines) <= 13
    assert any("class 1 " in line for line in lines)
    assert not any("class 30" in line for line in lines)
    assert "The 12 classes with the lowest Dice of 33" in " ".join(lines)
