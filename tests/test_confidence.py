"""One confidence for every output: a class that is unsure everywhere is called so, whatever the
number of classes; a sure one with its blurred border is not.
"""

import csv
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dkuxnet.core import classes_table
from dkuxnet.core.confidence import UNSURE_BELOW, class_confidence, unsure
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Case, Volume
from dkuxnet.prediction.outputs import Outputs
from dkuxnet.prediction.segment import Segmentation
from dkuxnet.prediction.trust import Estimate, Trust
from dkuxnet.prediction.volumes import check_volumes, volumes_written, write_volumes


def ball(radius: float) -> np.ndarray:
    """Probabilities (2, 32, 32, 32) of a ball with the blurred border that networks give."""
    away = np.linalg.norm(np.indices((32, 32, 32)) - 15.5, axis=0)
    inside = gaussian_filter((away < radius).astype(float), 1)
    return np.stack([1 - inside, inside])


@pytest.mark.parametrize("radius", [4, 6, 12])
def test_a_sure_class_with_a_blurred_border_is_sure(radius):
    background, organ = class_confidence(ball(radius))
    assert background > 0.95 and organ > UNSURE_BELOW + 0.05
    assert unsure({"organ": organ}) == ""


@pytest.mark.parametrize("classes", [2, 3, 33])
def test_a_class_that_is_unsure_everywhere_reaches_the_threshold(classes):
    """The organ is a little more probable than the background in twice its volume."""
    prob = np.full((classes, 32, 32, 32), 0.04 / max(classes - 2, 1))
    prob[0], prob[1] = 0.94, 0.02
    wide = ball(12)[1] > 0.5
    prob[0, wide], prob[1, wide] = 0.42, 0.56
    prob /= prob.sum(axis=0)
    _, organ, *others = class_confidence(prob)
    assert 1 / classes <= organ < 0.6
    assert all(map(math.isnan, others))
    assert unsure({"organ": organ}).startswith("the model is unsure of organ (confidence 0.5")


def test_two_networks_that_contradict_each_other_are_unsure():
    one, other = np.zeros((2, 4, 4, 4)), np.zeros((2, 4, 4, 4))
    one[1], other[0] = 1, 0.98
    other[1] = 0.02
    _, organ = class_confidence((one + other) / 2)
    assert organ == pytest.approx(0.51, abs=1e-3) and unsure({"organ": organ})


def test_a_prediction_writes_it_and_keeps_the_rows_of_other_cases(tmp_path):
    labels = {"background": 0, "organ": 255, "tumour": 7}
    scored = {"organ": (255,), "tumour": (7,)}
    label = np.zeros((4, 4, 4), np.uint8)
    label[:2] = 255
    result = Segmentation(
        Volume(label, np.diag([5.0, 5, 10, 1])),
        confidence={"organ": 0.61, "tumour": math.nan},
        trust=Trust(0.5, {"organ": Estimate(0.8, 0.7, 0.9)}, ("look here",)),
    )
    for name in ("a", "b", "a"):
        case = Case(name, (tmp_path / f"{name}.nrrd",))
        outputs = Outputs(tmp_path / "out", [case])
        outputs.check()
        outputs.make_folder(labels)
        outputs.write(case, result, outputs.writers(case, labels), scored)
    table = tmp_path / "out" / "classes.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [
        ("b", "organ"), ("b", "tumour"), ("a", "organ"), ("a", "tumour")
    ]  # fmt: skip
    assert rows[2] == {
        "case": "a", "class": "organ", "value": "255", "voxels": "32", "volume_ml": "8.000",
        "confidence": "0.61", "unsure": "yes", "estimated_dice": "0.800", "dice_low": "0.700",
        "dice_high": "0.900", "unlike": "0.50", "flags": "look here",
    }  # fmt: skip
    assert (rows[3]["estimated_dice"], rows[3]["unlike"]) == ("", "0.50")
    assert (rows[3]["voxels"], rows[3]["confidence"], rows[3]["unsure"]) == ("0", "", "")


def test_a_table_of_volumes_is_written_anew_and_replaces_nothing_else(tmp_path):
    classes, path, folder = ["a, b", "c"], tmp_path / "ml.csv", tmp_path / "out"
    rows = [["x", "a, b", "1.500"], ["x", "c", "0.000"], ["y", "c", "2.000"], ["z", "c", "9.000"]]
    folder.mkdir()
    lines = [[case, name, "1", "9", ml, *[""] * 7] for case, name, ml in rows]
    (folder / "classes.csv").write_text(classes_table.lines([classes_table.COLUMNS, *lines]))
    for cases in (["z"], ["y", "x", "not done"]):
        check_volumes(path, classes)
        write_volumes(path, folder, cases, classes)
    assert path.read_text() == 'case,"a, b",c\ny,,2.000\nx,1.500,0.000\n'
    path.write_text("mine")
    for place, told in ((path, "no table of these classes"), (tmp_path / "no/x.csv", "make it")):
        with pytest.raises(UserError, match=told):
            check_volumes(place, classes)
    with pytest.raises(UserError, match="--shard"), volumes_written("v", folder, [], [], True):
        pass


def test_rows_of_an_earlier_version_stay(tmp_path):
    (tmp_path / "classes.csv").write_text(
        "case,class,value,voxels,volume_ml,confidence,unsure\nold,organ,1,9,0.009,0.9,no\n"
    )
    outputs = Outputs(tmp_path, [Case("new", (tmp_path / "in" / "new.nrrd",))])
    outputs.check()
    outputs.make_folder({"background": 0, "organ": 1})
    with (tmp_path / "classes.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["case"], row["unsure"], row["flags"]) == ("old", "no", "")
