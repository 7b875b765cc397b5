"""Pieces of a class that go, and their choice on validation cases."""

import math

import numpy as np
import pytest

from dkuxnet.core.config import InferSettings, load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Postprocessing
from dkuxnet.evaluation.metrics import dice
from dkuxnet.models.components import Cleaning
from dkuxnet.prediction.predictor import predicting
from dkuxnet.training.postprocessing import Pieces, candidates, chosen

NAMES = ["background", "organ", "lesion"]


def label():
    found = np.zeros((12, 12, 12), np.uint8)
    found[1:5, 1:5, 1:5], found[8:10, 8:10, 8], found[11, 11, 11] = 1, 1, 1  # 64, 4, 1 voxels
    found[1:3, 8:10, 1:3], found[1, 11, 11] = 2, 2  # 8, 1 voxels
    return found


def cleaned(**settings):
    return Cleaning.of(InferSettings(**settings), NAMES)(label(), 0.5)


def counts(found):
    return [int((found == k).sum()) for k in (1, 2)]


def test_pieces_go_by_class_and_volume():
    assert counts(cleaned()) == [69, 9]
    assert counts(cleaned(largest_component=True)) == [64, 8]
    assert counts(cleaned(largest_component=("lesion",))) == [69, 8]
    assert counts(cleaned(min_ml=2.0)) == [68, 8]  # four voxels of 0.5 ml are 2 ml
    assert counts(cleaned(min_ml=2.01)) == [64, 8]
    assert counts(cleaned(min_ml={"lesion": 5.0})) == [69, 0]
    assert counts(cleaned(min_ml={"organ": 1.0}, largest_component=("lesion",))) == [68, 8]


def test_a_larger_piece_elsewhere_does_not_win_over_the_one_that_touches_the_other_classes():
    found = np.zeros((12, 6, 6), np.uint8)
    found[:2, :2, :2], found[2:4, :2, :2], found[8:11, :2, :2] = 1, 2, 1  # 8 beside 8, 12 apart
    asked = {"largest_component": True, "largest_foreground": True}
    by_class = Cleaning.of(InferSettings(largest_component=True), NAMES)(found, 1.0)
    together = Cleaning.of(InferSettings(**asked), NAMES)(found, 1.0)
    assert counts(by_class) == [12, 8] and not by_class[0].any()
    assert counts(together) == [8, 8] and together[0].any()
    assert together.dtype == found.dtype


@pytest.mark.parametrize("asked", [{"min_ml": {"liver": 1}}, {"largest_component": ("liver",)}])
def test_a_class_that_there_is_not_is_refused(asked):
    with pytest.raises(UserError, match=r"unknown class in infer.*'liver'"):
        Cleaning.of(InferSettings(**asked), NAMES)


@pytest.mark.parametrize(
    "key, value",
    [
        ("min_ml", -1),
        ("min_ml", {"organ": -1}),
        ("min_ml", "x"),
        ("largest_component", "organ"),
        ("largest_component", [1]),
        ("tta", ["turn"]),
    ],
)
def test_settings_that_are_none_are_one_line(key, value):
    with pytest.raises(UserError, match=rf"setting infer\.{key}.*got"):
        load_settings(overrides={f"infer.{key}": value})


def test_dice_of_pieces_is_that_of_the_cleaned_mask():
    predicted, truth = label() == 1, np.zeros((12, 12, 12), bool)
    truth[2:6, 1:5, 1:5] = True
    pieces = Pieces.of(predicted, truth)
    for largest in (False, True):
        for least in (0, 2, 5, 100):
            by = InferSettings(largest_component=largest, min_ml=float(least))
            mask = Cleaning.of(by, NAMES)(np.where(predicted, 1, 0), 1.0) == 1
            assert pieces.dice(largest, least) == pytest.approx(dice(mask, truth))
    nothing = Pieces.of(predicted & False, truth & False)
    assert math.isnan(nothing.dice(True, 0))


def pieces(sizes, shared, truth):
    return Pieces(np.array(sizes), np.array(shared), truth)


def test_what_raises_dice_is_chosen_and_nothing_else():
    tables = {
        "one": [pieces([50, 45], [50, 0], 50)] * 5,  # a second piece that is wrong, and large
        "several": [pieces([40, 40, 2], [40, 40, 0], 80)] * 5,  # two are right, a speck is wrong
        "well": [pieces([40, 40], [40, 40], 80)] * 5,
        "hardly": [pieces([100000, 1], [90000, 0], 100000)] * 5,
        "few": [pieces([50, 45], [50, 0], 50)] * 4 + [pieces([], [], 0)],
        "one loses": [pieces([50, 45], [50, 0], 50)] * 9 + [pieces([50, 45], [0, 45], 50)],
        "alarms": [pieces([50], [50], 50)] * 5 + [pieces([3], [0], 0)],
    }
    found = chosen(tables, dict.fromkeys(tables, 40.0), voxel_ml=1.0)
    assert found.largest_component == ("one",) and found.min_ml == {"several": 5.0, "alarms": 5.0}
    assert found.dice_after == {"one": 1.0, "several": 1.0, "alarms": 1.0}
    assert found.dice_before["one"] == pytest.approx(100 / 145, abs=1e-4)
    assert "several: no piece below 5 ml (Dice 0.988 to 1.000 there)" in found.in_words


def test_no_volume_is_chosen_that_would_take_a_whole_structure():
    lone = {"a": [pieces([3], [0], 40)] * 5 + [pieces([30], [30], 30)]}
    assert max(ml for _, ml in candidates(4.0)) == 2.0
    assert chosen(lone, {"a": 4.0}, 1.0).min_ml == {}
    assert candidates(0.0) == [(False, 0.0), (True, 0.0)]
    nowhere = {"a": [pieces([], [], 0)] * 6}
    assert chosen(nowhere, {"a": 0.0}, 1.0).dice_after == {}


def test_what_was_chosen_stands_beside_what_is_set_and_below_what_is_asked():
    gained = Postprocessing(
        largest_component=("organ",),
        min_ml={"lesion": 2.0, "organ": 1.0},
        dice_before={},
        dice_after={},
    )

    def now(infer=None, **settings):
        return predicting(load_settings(overrides=settings), NAMES, gained, infer).infer

    assert now().largest_component == ("organ",)
    assert now().min_ml == {"organ": 1.0, "lesion": 2.0}
    assert now(**{"infer.min_ml": 1.5}).min_ml == {"organ": 1.5, "lesion": 2.0}
    assert now(**{"infer.largest_component": True}).largest_component is True
    assert now(**{"infer.largest_component": ["lesion"]}).largest_component == ("organ", "lesion")
    asked = now({"largest_component": False, "min_ml": 0.0})
    assert (asked.largest_component, asked.min_ml) == (False, 0.0)
    assert now({"postprocessing": "set"}).largest_component is False
    with pytest.raises(UserError, match=r"infer\.overlop"):
        now({"overlop": 1})
