"""When not to trust a label map, and which scan to label next."""

import csv
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dkuxnet.cli.commands import app
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.schemas import HeldOut, Reference
from dkuxnet.core.types import Output
from dkuxnet.data import formats
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.prediction.signature import SignatureSums
from dkuxnet.prediction.suggest import Look, ranked, suggest_scans
from dkuxnet.prediction.trust import Estimator, Judge, Trust
from dkuxnet.report.page import write_report
from dkuxnet.runs.folder import RunFolder
from dkuxnet.runs.suggestions import read_suggestions
from dkuxnet.training.experiment import run_training
from tiny import DK_UXNET, prepared_phantoms

RNG = np.random.default_rng(0)


def held(number, confidence, dice, unlike=0.5):
    return HeldOut(
        name=f"case{number}", unlike=unlike, confidence={"organ": confidence}, dice={"organ": dice}
    )


def reference(held_out=(), scans=12):
    return Reference(
        signatures=RNG.normal(size=(scans, 6)).tolist(),
        volumes_ml={"organ": list(np.linspace(20, 40, scans))},
        held_out=list(held_out),
    )


def test_a_signature_is_mean_and_spread_of_the_features_in_each_class():
    features = torch.randn(2, 3, 4, 4, 4)
    label = torch.randint(0, 2, (2, 4, 4, 4))
    probs = torch.stack([label == 0, label == 1], dim=1).float()
    sums = SignatureSums()
    for i in range(2):  # window after window
        sums.add(probs[i : i + 1], features[i : i + 1])
    for k, got in enumerate(sums.vector().reshape(2, 2, 3)):
        voxels = features.movedim(1, -1)[label == k]
        np.testing.assert_allclose(got[0], voxels.mean(0), atol=1e-5)
        np.testing.assert_allclose(got[1], voxels.std(0, correction=0), atol=1e-5)


def test_a_network_without_features_has_no_signature_and_is_not_judged_by_it():
    sums = SignatureSums()
    sums.add(torch.ones(1, 2, 4, 4, 4), Output(torch.zeros(1)).features)
    assert sums.vector().size == 0
    bare = Reference(signatures=[[]] * 12, volumes_ml={"organ": [1.0] * 12}, held_out=[])
    assert Judge(bare)(sums.vector(), {"organ": 0.9}, {"organ": 1.0}).unlike is None


def test_scans_like_those_of_the_training_are_not_flagged_and_others_are():
    judge = Judge(reference(scans=40))
    usual = [judge(RNG.normal(size=6), {}, {}).unlike for _ in range(200)]
    assert np.mean(np.array(usual) > 1) < 0.1
    strange = judge(RNG.normal(size=6) + 4, {"organ": 0.99}, {"organ": 30.0})
    assert strange.unlike > 1 and "unlike those that the model was trained on" in strange.flags[0]


def test_too_few_scans_judge_nothing():
    few = Judge(reference(scans=7))
    assert few(np.full(6, 99.0), {"organ": 0.9}, {"organ": 1e6}) == few(None, {}, {})
    assert Judge(None)(np.zeros(6), {"organ": 0.9}, {"organ": 1.0}).flags == ()


@pytest.mark.parametrize(
    ("volume_ml", "flagged"), [(20, False), (59, False), (61, True), (12, True)]
)
def test_a_size_that_no_training_scan_has_is_told(volume_ml, flagged):
    flags = Judge(reference())(None, {"organ": 0.9}, {"organ": volume_ml}).flags
    assert bool(flags) == flagged
    if flagged:
        assert flags[0].startswith(f"organ has {volume_ml} ml, but 20 to 40 ml in the scans")


def test_the_dice_to_expect_follows_the_confidence_and_the_interval_holds_it():
    sure = RNG.uniform(0.7, 0.97, 60)
    dice = sure - 0.05 + RNG.normal(0, 0.02, 60)
    cases = [held(i, *pair) for i, pair in enumerate(zip(sure, dice, strict=True))]
    judge = Judge(reference(cases[:30]))
    found = [judge(None, {"organ": case.confidence["organ"]}, {}) for case in cases[30:]]
    estimates = [trust.dice["organ"] for trust in found]
    errors = [
        each.dice - case.dice["organ"] for each, case in zip(estimates, cases[30:], strict=True)
    ]
    assert np.mean(np.abs(errors)) < 0.03
    inside = [
        e.low <= c.dice["organ"] <= e.high for e, c in zip(estimates, cases[30:], strict=True)
    ]
    assert np.mean(inside) > 0.85
    (poor,) = judge(None, {"organ": 0.7}, {}).flags
    assert poor.startswith("the Dice of organ is estimated at 0.6")
    assert not judge(None, {"organ": 0.96}, {}).flags


def test_confidence_that_tells_nothing_gives_the_mean():
    cases = [held(i, c, d) for i, (c, d) in enumerate(RNG.uniform(0.8, 0.9, (40, 2)))]
    found = Estimator.fit("organ", cases)
    assert found.estimate(0.85, 0.5).dice == pytest.approx(0.85, abs=0.02)
    assert Estimator.fit("organ", cases[:7]) is None


def test_of_a_strange_scan_and_of_a_class_that_is_not_there_nothing_is_expected():
    cases = [held(i, 0.8 + i / 100, 0.7 + i / 100) for i in range(10)]
    judge = Judge(reference(cases))
    assert not judge(np.full(6, 50.0), {"organ": 0.9}, {}).dice
    assert not judge(None, {"organ": math.nan}, {}).dice


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust")
    prepared = prepared_phantoms(folder, cases=17, labelled=9)
    chosen = {"data.test_cases": 8, "train.steps": 2, "method.name": "supervised"}
    run_training(prepared, folder / "run", load_settings(overrides=DK_UXNET | chosen))
    return folder


def test_a_training_leaves_what_predictions_are_compared_with(trained, tmp_path):
    run = RunFolder(trained / "run")
    found, split = run.reference, run.manifest.split
    assert len(found.signatures) == 9 == len(split.labelled) + len(split.unlabelled)
    assert [case.name for case in found.held_out] == list(split.test)
    with (run.folder / "evaluation" / "cases.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["n_pred"] != "0" != row["n_ref"]]
    kept = {(case.name, each): dice for case in found.held_out for each, dice in case.dice.items()}
    assert kept == {(row["case"], row["class"]): float(row["dice"]) for row in rows}
    page = write_report(run.folder, tmp_path / "page.html").read_text()
    assert f"{run.manifest.calibration.ece:.3f} apart (expected" in page


def test_predict_flags_noise_in_words_and_in_the_table(trained, tmp_path):
    case, *_ = find_cases([trained / "scans"], None, 1, None)
    scan = read_image(case, 1)
    (tmp_path / "in").mkdir()
    formats.write(scan, tmp_path / "in" / "own.nii.gz")
    noise = RNG.normal(size=scan.array.shape).astype(np.float32)
    formats.write(type(scan)(noise, scan.affine), tmp_path / "in" / "strange.nii.gz")
    with pytest.warns(DataWarning) as told:
        predict_scans(trained / "run", [tmp_path / "in"], tmp_path / "out")
    assert any("case 'strange': this scan is unlike" in str(each.message) for each in told)
    with (tmp_path / "out" / "classes.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert float(rows["own"]["unlike"]) < 1 < float(rows["strange"]["unlike"])
    assert "unlike" in rows["strange"]["flags"] and not rows["strange"]["estimated_dice"]


# --- which scan to label next ---


def seen(place, confidence=0.8, size=10.0, spread=0.0):
    signature = np.array([*place, 0.0]) + spread
    return Look(signature, {"organ": confidence}, {"organ": size}, Trust())


def test_the_first_suggestion_stands_for_most_scans_and_the_next_for_others():
    labelled = [seen((0, 0))]
    large = [seen((10, 0.1 * i)) for i in range(5)]
    small = [seen((0, 10 + 0.1 * i)) for i in range(3)]
    odd = [seen((-30, -30))]
    looks = [*large, *small, *odd, *labelled]
    (first, why), (second, _), *_ = ranked(looks, [9], 4)
    assert first == 2 and second in range(5, 9)
    assert why.startswith("stands for 4 others that no labelled scan is like")
    assert sorted(place for place, _ in ranked(looks, [9], 99)) == list(range(9))


def test_what_the_model_is_unsure_of_is_said():
    unsure = [seen((0, 10 + 0.1 * i), 0.55) for i in range(3)]
    ((place, why),) = ranked([*unsure, seen((0, 0))], [3], 1)
    assert place == 1 and "the model is unsure of organ (0.55)" in why


def test_without_any_labelled_scan_the_middle_of_all_is_first():
    ((place, _),) = ranked([seen((i, 0)) for i in range(5)], [], 1)
    assert place == 2


def test_a_size_beyond_the_labelled_ones_and_a_missing_class_are_said():
    labelled = [seen((0, 0), size=10), seen((0, 1), size=20)]
    looks = [seen((5, 0), size=30), *labelled]
    assert "organ of 30 ml, larger than in any labelled scan" in ranked(looks, [1, 2], 1)[0][1]
    looks[0] = Look(looks[0].signature, {"organ": math.nan}, {}, Trust())
    assert "no organ is found in it" in ranked(looks, [1, 2], 1)[0][1]


def test_the_command_ranks_what_has_no_label_and_leaves_it_for_the_page(trained, tmp_path):
    run, scans = trained / "run", trained / "scans"
    got = CliRunner().invoke(app, ["suggest", str(run), str(scans), "--count", "3"])
    found = read_suggestions(run).scans
    assert got.output.splitlines()[-3:] == [
        f"{place}. {each.name}: {each.reason}" for place, each in enumerate(found, 1)
    ]
    labelled = {path.name.removesuffix(".nii.gz") for path in (scans / "labelsTr").iterdir()}
    assert len({each.name for each in found} - labelled) == 3


def test_where_every_scan_has_a_label_there_is_none_to_suggest(trained, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (scan,) = (trained / "scans" / f"{kind}Tr").glob("phantom_000*")
        (tmp_path / kind / "a.nii.gz").symlink_to(scan)
    with pytest.raises(UserError, match="every scan has a label; there is none to suggest"):
        suggest_scans(trained / "run", tmp_path)
