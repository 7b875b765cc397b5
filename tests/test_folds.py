"""Cross-validation: who is held out of which run, what goes on, and what its runs give together."""

import json
import math

import numpy as np
import pytest

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.schemas import Split
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.evaluate import Evaluation, Score
from dkuxnet.evaluation.stored import read_scores
from dkuxnet.prediction.segment import Segmenter
from dkuxnet.runs.folder import RunFolder
from dkuxnet.runs.folds import read_folds, runs_in
from dkuxnet.training import folds
from dkuxnet.training.loop import Interrupted
from tiny import UXNET, dotted

pytestmark = pytest.mark.filterwarnings("ignore::dkuxnet.core.errors.DataWarning")


def settings(**more):
    return load_settings(overrides=UXNET | {"train.steps": 1} | dotted(more))


def lists(folder):
    return [RunFolder(run).manifest.split.lists() for run in runs_in(folder)]


@pytest.fixture(scope="module")
def stopped(prepared, tmp_path_factory):
    """Two folds of three labelled cases, of which the first was trained."""
    folder, train = tmp_path_factory.mktemp("folds") / "cv", folds.run_training
    with pytest.MonkeyPatch.context() as patch:

        def first_alone(prepared, run, *more):
            if run.name != "fold-1":
                raise Interrupted("stopped")
            return train(prepared, run, *more)

        patch.setattr(folds, "run_training", first_alone)
        with pytest.raises(Interrupted):
            folds.run_folds(prepared, folder, settings(), 2)
    return folder


def test_a_stopped_one_goes_on_and_every_labelled_case_is_held_out_once(
    stopped, prepared, scans, monkeypatch
):
    with pytest.raises(UserError, match="fold-2 has not ended"):
        Segmenter(stopped)
    with pytest.raises(UserError, match="go on with --resume"):
        folds.run_folds(prepared, stopped, settings(), 2)
    trained, train, told = [], folds.run_training, []
    monkeypatch.setattr(
        folds, "run_training", lambda *job: trained.append(job[1].name) or train(*job)
    )
    result = folds.run_folds(
        prepared, stopped, settings(), 0, True, lambda *what: told.append(what[0])
    )
    assert trained == ["fold-2"] and "fold 2 of 2: train" in told
    labelled, data = ["phantom_000", "phantom_001", "phantom_002"], PreparedSet(prepared)
    assert [split["test"] for split in lists(stopped)] == [
        ("phantom_000", "phantom_002"),
        ("phantom_001",),
    ]
    for split in lists(stopped):
        assert {*split["labelled"], *split["test"]} == {*labelled}
        assert split["unlabelled"] == ("phantom_003", "phantom_004")
    # a table of all, as each run has it of its own
    assert list(result.files) == labelled and result.notes[0].startswith("out of 2 runs")
    evaluation = stopped / "evaluation"
    rows = read_scores(evaluation / "cases.csv")
    own = [row for run in runs_in(stopped) for row in read_scores(run / "evaluation/cases.csv")]
    np.testing.assert_equal(sorted(rows), sorted(own))
    assert [row.case for row in rows] == [name for name in labelled for _ in data.class_names[1:]]
    for name, (path, truth) in result.files.items():
        assert (evaluation / path).is_file() and truth.is_file() and name in path.name
    summary = json.loads((evaluation / "summary.json").read_text())
    assert summary["n_cases"] == 3 and read_folds(stopped).test == result.summary()
    # and they predict together
    (case, *_) = find_cases([scans / "imagesTr"])
    scan, (first, second) = read_image(case, 1), runs_in(stopped)
    together, by_hand = Segmenter(stopped), Segmenter(first, others=[second])
    assert together.name == "cv"
    ours, theirs = (each(scan, probabilities=True) for each in (together, by_hand))
    assert np.array_equal(ours.probabilities.array, theirs.probabilities.array)
    with pytest.raises(UserError, match="name one, such as"):
        RunFolder.open(stopped)
    trained.clear()  # what has ended is not trained again
    assert folds.run_folds(prepared, stopped, settings(), 0, True).summary() == result.summary()
    assert not trained


@pytest.mark.parametrize(
    "count, more, told",
    [
        (4, {}, "--folds 4: expected 2 to 3"),
        (2, {"data__labelled": 1}, "--folds 2: expected 2 to 1"),
        (3, {"data__validation_cases": 2}, "leaves none of 2 labelled cases"),
    ],
)
def test_what_is_no_cross_validation_leaves_nothing(prepared, tmp_path, count, more, told):
    with pytest.raises(UserError, match=told):
        folds.run_folds(prepared, tmp_path / "cv", settings(**more), count)
    assert not (tmp_path / "cv").exists()


def test_lists_of_the_settings_are_kept_out_of_every_run():
    whole = Split(labelled=tuple("abcdefg"), unlabelled=("u",), validation=("v",), test=("t",))
    split = [folds.fold_of(whole, 3, number) for number in (1, 2, 3)]
    assert [each.test for each in split] == [("a", "d", "g"), ("b", "e"), ("c", "f")]
    for each in split:
        assert {*each.labelled, *each.test} == {*"abcdefg"}
        assert (each.unlabelled, each.validation) == (("u",), ("v",))


def test_an_earlier_run_that_saw_a_held_out_case_is_told_of(prepared, dual_run, tmp_path):
    with pytest.warns(DataWarning, match="was trained on case 'phantom_000', which a fold holds"):
        chosen = settings(train__pretrained=str(dual_run))
        folds.begin(prepared, tmp_path / "cv", chosen, 2)


@pytest.mark.parametrize("spoil", [lambda text: text[:-30], lambda text: text.replace("dice", "x")])
def test_scores_that_are_damaged_are_one_line(stopped, tmp_path, spoil):
    path = tmp_path / "cases.csv"
    path.write_text(spoil((stopped / "fold-1" / "evaluation" / "cases.csv").read_text()))
    with pytest.raises(UserError, match=r"cases\.csv: damaged"):
        read_scores(path)


def test_a_row_of_a_class_that_nobody_outlined_is_read_back(tmp_path):
    rows = [Score("a", "enhancing", 3, *[math.nan] * (len(Score._fields) - 4), ())]
    Evaluation(rows, {}).write_csv(tmp_path / "cases.csv")
    (read,) = read_scores(tmp_path / "cases.csv")
    assert read[:3] == rows[0][:3] and math.isnan(read.n_ref)
