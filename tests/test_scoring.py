"""Validation, its choice of weights and the warnings about classes, where a class is absent."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from dkuxnet.core.config import InferSettings
from dkuxnet.core.errors import DataWarning
from dkuxnet.core.types import Volume
from dkuxnet.data import formats, phantom
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.training import coarse, loop, scoring
from dkuxnet.training.advice import missing_classes

LABELS = {"background": 0, "organ": 1, "tumour": 2}


class View:
    """The labels of a prepared set: name -> (X, Y, Z)."""

    def __init__(self, **labels):
        self.labels = {name: np.array(values, np.uint8) for name, values in labels.items()}
        self.meta = SimpleNamespace(
            labels=LABELS,
            structures={name: (index,) for index, name in enumerate(LABELS) if index},
            plan=SimpleNamespace(spacing_mm=(1, 1, 1)),
        )
        self.not_labelled = lambda name: ()
        self.read = []

    def array(self, name, kind):
        self.read.append(name)
        return self.labels[name]

    def classes(self, name):
        return np.unique(self.array(name, "label"))


def job(labelled, validation) -> SimpleNamespace:
    return SimpleNamespace(
        split=SimpleNamespace(labelled=tuple(labelled.labels), validation=tuple(validation.labels)),
        training=labelled,
        validation=validation,
        shape=SimpleNamespace(classes=3),
        patch=(1,),
        settings=SimpleNamespace(infer=InferSettings()),
        data=labelled,
        device=None,
    )


def test_missing_classes_are_named_and_no_more_is_read_than_needed():
    full = View(a=[0, 1, 2], b=[0, 1, 2])
    assert missing_classes(job(full, View())) == [] and full.read == ["a"]
    told = missing_classes(job(View(a=[0, 1], b=[1, 1]), View(c=[0, 0])))
    assert told == [
        "none of the 2 labelled training cases has 'tumour': the network cannot learn it",
        "the only validation case does not have any foreground: the best weights are chosen "
        "without",
    ]


@pytest.mark.parametrize(
    "truth, predicted, expected",
    [
        ([[1, 1, 0]], [[1, 1, 0]], 1.0),  # tumour in neither: does not count
        ([[1, 1, 0], [1, 2, 0]], [[1, 1, 0], [1, 0, 0]], (1 + 0.5) / 2),
        ([[1, 1, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]], 1.0),  # nor does a case without any
        ([[1, 1, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 2]], 0.5),  # unless it is a false alarm
        ([[0, 0, 0]], [[0, 0, 0]], math.nan),
    ],
)
def test_validation_counts_what_applies(monkeypatch, truth, predicted, expected):
    names = [f"case{i}" for i in range(len(truth))]
    views = View(**dict(zip(names, truth, strict=True)))
    prob = iter(np.eye(3)[np.array(each)].T for each in predicted)
    monkeypatch.setattr(scoring, "windows_of", lambda *_: None)
    monkeypatch.setattr(coarse, "sliding_window", lambda *_: SimpleNamespace(prob=next(prob)))
    found = scoring.validation_dice(None, job(View(), views))
    assert found == pytest.approx(expected, nan_ok=True)


def test_the_best_weights_are_kept_where_validation_says_nothing():
    saved, logged, scores = [], [], [math.nan, math.nan, 0.5, 0.4, math.nan]
    run = SimpleNamespace(
        log=lambda step, values: logged.append(values), save_weights=lambda *_: saved.append(score)
    )
    method = SimpleNamespace(predictor=lambda: SimpleNamespace(eval=lambda: None), state_dict=dict)
    state = SimpleNamespace(best=-math.inf, step=1, stale=0, predicting=lambda: method)
    for score in scores:
        loop.keep_best(run, state, lambda _, score=score: score)
    np.testing.assert_equal(saved, [math.nan, math.nan, 0.5, math.nan])
    assert (state.best, state.stale) == (0.5, 1)  # what says nothing tries no patience
    assert logged == [{"validation_dice": 0.5}, {"validation_dice": 0.4}]


def relabel(scans, change) -> None:
    for path in (scans / "labelsTr").iterdir():
        label = formats.read(path, kind="label")
        formats.write(Volume(change(label.array), label.affine), path)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda a: np.where(a == 2, 1, a).astype(np.uint8), "has 'tumour';"),
        (lambda a: np.zeros_like(a), "has any foreground;"),
    ],
)
def test_prepare_warns_of_a_class_that_nobody_labelled(tmp_path, change, told):
    scans = phantom.write_dataset(tmp_path / "scans", 2, 2, size=12)
    relabel(scans, change)
    with pytest.warns(DataWarning, match=f"none of the 2 label maps for training {told}"):
        prepare_scans(scans, tmp_path / "prepared")
    notes = json.loads((tmp_path / "prepared" / "dataset.json").read_text())["notes"]
    assert any(told in note for note in notes)
