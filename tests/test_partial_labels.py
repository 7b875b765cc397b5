"""Labels that are not whole: voxels that nobody labelled, and classes that nobody outlined."""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dkuxnet.benchmark.figures import read_run
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import IGNORED, Batch, Group, NetworkShape, Output, Views, Volume
from dkuxnet.data import formats
from dkuxnet.data.geometry import resample_label
from dkuxnet.data.layouts import find_source
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.update import update_prepared
from dkuxnet.evaluation.evaluate import evaluate_folders, evaluate_pair
from dkuxnet.evaluation.more_metrics import parse_asked
from dkuxnet.models.build import build_method
from dkuxnet.models.methods import losses
from dkuxnet.models.methods.merging import merge_classes, said
from dkuxnet.report.page import write_report
from dkuxnet.training.experiment import patch_streams, run_training
from dkuxnet.training.job import new_job
from tiny import DK_UXNET, UXNET, dotted

SHAPE = (18, 20, 22)
AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])
LABELS = {"background": 0, "front": 1, "back": 2}
GROUPS = (Group("background", (0,), 2), Group("organ", (1, 2), 2))


def a_label(seed: int = 0) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[5 + seed % 3 : 12, 4:14, 6:11] = 1
    label[5 + seed % 3 : 12, 4:14, 11:16] = 2
    return label


def write_source(
    folder: Path,
    change: Callable[[str, np.ndarray], np.ndarray] = lambda name, label: label,
    labels: Mapping[str, Any] = LABELS,
    unlabelled: int = 1,
    **more: Any,
) -> Path:
    """Four labelled scans, a to d, and unlabelled ones; `change` gives what was labelled."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed, name in enumerate(["a", "b", "c", "d", *"uvw"[:unlabelled]]):
        label = a_label(seed)
        image = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32) + 2 * label
        formats.write(Volume(image, AFFINE), folder / "images" / f"{name}.nii.gz")
        if seed < 4:
            changed = change(name, label.copy())
            formats.write(Volume(changed, AFFINE), folder / "labels" / f"{name}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **more}))
    return folder


def every_third(name: str, label: np.ndarray) -> np.ndarray:
    """One slice of three is labelled in a and b, and in d, which tests."""
    slices = np.full_like(label, 3)
    slices[:, :, 2::3] = label[:, :, 2::3]
    return label if name == "c" else slices


def without_back(name: str, label: np.ndarray) -> np.ndarray:
    return np.where(label == 2, 0, label).astype(np.uint8) if name in "bd" else label


IGNORING = {"labels": LABELS | {"ignore": 3}}
LEFT_OUT = {"not_labelled": {"b": ["back"], "d": ["back"]}}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    prepare_scans(
        write_source(folder / "source", every_third, **IGNORING), folder / "p", 2.0, processes=1
    )
    return folder


@pytest.fixture(scope="module")
def no_back(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("no_back")
    prepare_scans(
        write_source(folder / "source", without_back, **LEFT_OUT), folder / "p", 2.0, processes=1
    )
    return folder


# --- preparing


def test_what_nobody_labelled_is_no_class_and_stays_apart_on_both_grids(slices):
    data = PreparedSet(slices / "p")
    assert data.class_names == list(LABELS) and data.meta.ignore == 3
    assert [case.partly for case in data.meta.cases] == [True, True, False, True, False]
    truth, label = (data.array("a", kind) for kind in ("truth", "label"))
    assert (truth[:, :, 2::3] == a_label()[:, :, 2::3]).all()
    assert (np.delete(truth, np.s_[2::3], axis=2) == IGNORED).all()
    assert set(np.unique(label)) == {0, 1, 2, IGNORED}
    assert 0.2 < (label != IGNORED).mean() < 0.5
    shares = data.meta.fingerprint.label_share
    assert set(shares) == {"0", "1", "2"} and sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("coarser", [1, 2, 3])
def test_a_labelled_voxel_survives_coarser_voxels_and_finer_ones_do_not_spread_it(coarser):
    label = np.full((12, 12, 12), IGNORED, np.uint8)
    label[6, 6, 6] = 1
    coarse = resample_label(label, (12 // coarser,) * 3, 3)
    assert np.argwhere(coarse == 1).tolist() == [[6 // coarser] * 3]
    assert (coarse != IGNORED).sum() == 1
    fine = resample_label(label, (24, 24, 24), 3)
    assert np.argwhere(fine != IGNORED).min() >= 12 and np.argwhere(fine != IGNORED).max() <= 13


def bad_sources() -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    everything = {"change": lambda name, label: np.full_like(label, 3) if name == "b" else label}
    return {
        "not the highest": (
            {"labels": {"background": 0, "front": 1, "ignore": 2, "back": 3}},
            ("dataset.json", "'ignore'", "highest", "'back'"),
        ),
        "everything ignored": (everything | IGNORING, ("case 'b'", "b.nii.gz", "ignore")),
        "no such class": (
            {"not_labelled": {"b": ["bakc"]}},
            ("dataset.json", "case 'b'", "'bakc'", "did you mean 'back'"),
        ),
        "no such case": ({"not_labelled": {"x": ["back"]}}, ("dataset.json", "case 'x'")),
        "no label": ({"not_labelled": {"u": ["back"]}}, ("dataset.json", "case 'u'", "no label")),
        "background": ({"not_labelled": {"b": ["background"]}}, ("case 'b'", "'background'")),
        "no list": ({"not_labelled": {"b": "back"}}, ("dataset.json", "not_labelled")),
        "all of them": ({"not_labelled": {"b": ["front", "back"]}}, ("case 'b'", "every class")),
        "it is there": (
            {"not_labelled": {"b": ["back"]}},
            ("case 'b'", "300 voxels of 'back'", "not_labelled"),
        ),
    }


@pytest.mark.parametrize("kind", bad_sources())
def test_what_cannot_be_is_one_line_and_leaves_nothing(tmp_path, kind):
    given, parts = bad_sources()[kind]
    source = write_source(tmp_path / "source", **given)
    with pytest.raises(UserError) as told:
        prepare_scans(source, tmp_path / "p", processes=1)
    assert len(told.value.lines) == 1 and all(part in str(told.value) for part in parts), told.value
    assert not (tmp_path / "p").exists()


def test_an_update_takes_what_is_not_labelled_any_more_and_refuses_another_ignore(
    no_back, tmp_path
):
    shutil.copytree(no_back, tmp_path / "copy")
    source, prepared = tmp_path / "copy" / "source", tmp_path / "copy" / "p"
    described = json.loads((source / "dataset.json").read_text())
    described["not_labelled"] = {"b": ["back"]}
    (source / "dataset.json").write_text(json.dumps(described))
    assert update_prepared(source, prepared, processes=1).labelled == ("d",)
    assert PreparedSet(prepared).not_labelled("d") == ()
    (source / "dataset.json").write_text(json.dumps(described | IGNORING))
    with pytest.raises(UserError, match="'ignore': 3"):
        update_prepared(source, prepared, processes=1)


# --- patches


def the_job(folder: Path, **settings: Any) -> Any:
    chosen = DK_UXNET | {"method.name": "mean-teacher", "data.test_cases": 1} | dotted(settings)
    return new_job(folder / "p", load_settings(overrides=chosen))


def test_patches_are_drawn_where_something_is_labelled(tmp_path):
    def scribble(name: str, label: np.ndarray) -> np.ndarray:
        drawn = np.full_like(label, 3)
        drawn[8, 5, 7], drawn[1, 18, 20] = 1, 0
        return drawn

    prepare_scans(write_source(tmp_path / "s", scribble, **IGNORING), tmp_path / "p", processes=1)
    job = the_job(tmp_path, train__patch=[16, 16, 16], data__foreground_share=0.0)
    labelled, unlabelled = patch_streams(job)
    for step in range(6):
        _, label = labelled.at(step)
        assert label is not None and set(np.unique(label)) <= {0, 1, 3}
        assert all((each < 3).any() for each in label)
    # what is not labelled of a labelled scan teaches as unlabelled
    assert set(unlabelled.cases) == {"a", "b", "c", "u"}
    assert unlabelled.at(0)[1] is None


def test_a_background_that_may_be_a_class_reads_as_both(no_back):
    job = the_job(no_back)
    assert job.shape.merged == ((0, 2),)
    stream, _ = patch_streams(job)
    seen = {name: set() for name in "abc"}
    for step in range(6):
        for name, label in zip(stream.names_at(step), stream.at(step)[1], strict=True):
            seen[name] |= set(np.unique(label).tolist())
    assert seen == {"a": {0, 1, 2}, "b": {1, 3}, "c": {0, 1, 2}}


# --- losses


def shape_of(*merged: tuple[int, ...]) -> NetworkShape:
    return NetworkShape(1, 3, GROUPS, merged=merged)


def test_classes_that_a_voxel_may_be_of_are_one_class_with_the_sum_of_their_probabilities():
    prob = torch.tensor([0.2, 0.3, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 1, 1)
    label = torch.tensor([0, 2, 3, 4]).view(1, 4, 1, 1)
    shape = shape_of((0, 2), (0, 1, 2))
    logits, plain, mask = merge_classes(prob.log(), label, shape)
    assert plain.flatten().tolist() == [0, 2, 0, 0] and mask.flatten().tolist() == [1, 1, 1, 0]
    expected = [[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.7, 0.3, 0], [1, 0, 0]]
    assert torch.allclose(logits.softmax(1)[0, :, :, 0, 0].T, torch.tensor(expected))
    loss = losses.segmentation_loss(logits, plain, mask)
    cross_entropy = -(np.log(0.2) + np.log(0.5) + np.log(0.7)) / 3
    dice = (0 + 2 * 0.5 / (0.5 + 0.5 + 1)) / 2  # class 1: predicted 0.9, nowhere true
    assert loss.item() == pytest.approx(cross_entropy + 1 - dice, abs=1e-4)


def test_the_query_loss_sums_the_groups_that_a_voxel_may_be_of():
    group_prob = torch.tensor([0.4, 0.6]).view(1, 2, 1, 1, 1).expand(1, 2, 4, 1, 1)
    label = torch.tensor([0, 1, 3, 4]).view(1, 4, 1, 1)
    shape = shape_of((1, 2), (0, 1, 2))  # of one group; of any
    output = Output(torch.zeros(1, 3, 4, 1, 1), group_prob, (group_prob[:, :, :1],))
    loss = losses.query_loss_all(output, label, GROUPS, said(label, shape), shape.merged)
    fine = -(np.log(0.4) + 2 * np.log(0.6)) / 3
    assert loss.item() == pytest.approx(2 * fine, abs=1e-4)


# the others have no supervised term but `Method.supervision`
@pytest.mark.parametrize("method", ["supervised", "bcp", "dtc", "dual-mutual"])
def test_no_term_learns_from_a_label_that_says_nothing(method):
    settings = load_settings(overrides=DK_UXNET | {"method.name": method})
    shape = NetworkShape(1, 3, GROUPS, merged=((0, 2), (0, 1, 2)))
    torch.manual_seed(0)
    image = torch.randn(2, 1, 16, 16, 16)
    unlabelled = None if method == "supervised" else Views(image, image + 0.1)
    built = build_method(settings, shape, "dk-uxnet-tiny")

    def found(label: torch.Tensor) -> dict[str, float]:
        batch = Batch(Views(image, image, label), unlabelled)
        return {name: loss.item() for name, loss in built.losses(batch, 300).items()}

    nothing = found(torch.full((2, 16, 16, 16), 4))
    supervised = {"seg", "qd", "labelled", "level"} & nothing.keys()
    assert len(supervised) >= 2
    assert all(abs(nothing[name]) < 1e-5 for name in supervised)
    some = torch.randint(0, 5, (2, 16, 16, 16))
    assert all(value > 0.01 for name, value in found(some).items() if name in {"seg", "labelled"})


def test_the_gradient_of_a_voxel_of_two_classes_leaves_open_of_which_it_is():
    built = build_method(
        load_settings(overrides=UXNET), shape_of((0, 2), (0, 1, 2)), "dk-uxnet-tiny"
    )
    logits = torch.zeros(1, 3, 4, 1, 1, requires_grad=True)
    built.segmentation(logits, torch.tensor([4, 4, 3, 1]).view(1, 4, 1, 1)).backward()
    assert (logits.grad[0, :, :2] == 0).all()
    assert logits.grad[0, 0, 2] == pytest.approx(logits.grad[0, 2, 2].item())
    assert (logits.grad[0, 1, 2:] != 0).all()


# --- scores


def row_of(rows: list[Any], name: str) -> Any:
    return next(row for row in rows if row.class_name == name)


def test_voxels_that_nobody_labelled_do_not_count_by_hand():
    truth, prediction = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[0], truth[3] = 1, 3
    prediction[0, :2], prediction[2:] = 1, 1
    asked = parse_asked("nsd,volume,lesions", "2")
    [row] = evaluate_pair(
        "x",
        Volume(prediction, np.eye(4)),
        Volume(truth, np.eye(4)),
        {"background": 0, "organ": 1},
        asked=asked,
        ignore=3,
    )
    assert (row.tp, row.fp, row.fn, row.tn) == (8, 16, 8, 16)
    assert row.dice == pytest.approx(2 * 8 / (16 + 24))
    assert np.isnan([row.hd95_mm, row.asd_mm, row.hd95_voxels, row.asd_voxels]).all()
    more = dict(zip((metric.key for metric in asked.metrics), row.more, strict=True))
    assert more["volume_error_ml"] == pytest.approx(0.008)
    assert np.isnan([more["nsd"], more["lesion_f1"], more["lesion_dice"]]).all()


def test_evaluate_reads_what_a_label_leaves_out_beside_the_labels(slices, no_back, tmp_path):
    for folder in (slices, no_back):
        target = tmp_path / folder.name
        target.mkdir()
        for seed, name in enumerate("abcd"):
            formats.write(Volume(a_label(seed), AFFINE), target / f"{name}.nii.gz")
    found = evaluate_folders(tmp_path / slices.name, slices / "source" / "labels")
    assert {row.dice for row in found.rows} == {1.0}
    assert (
        np.isnan([row.hd95_mm for row in found.rows]).tolist()
        == [True] * 4 + [False] * 2 + [True] * 2
    )
    assert "the labels of 3 of 4 cases leave voxels out (a, b, d)" in found.notes[0]
    for labels in (no_back / "source" / "labels", no_back / "source"):
        found = evaluate_folders(tmp_path / no_back.name, labels)
        back = [row.dice for row in found.rows if row.class_name == "back"]
        assert np.isnan(back).tolist() == [False, True, False, True]
        assert [row.dice for row in found.rows if row.class_name == "front"] == [1.0] * 4
        assert found.notes == ["not labelled, so that no mean counts it: 'back' in 2 of 4 cases"]
        assert found.found()["back"].scans == 2 and found.found()["back"].false_alarms == 0
        written = json.loads(found.as_json())
        assert set(written["metric_per_case"][1]["metrics"]["2"].values()) == {None}


# --- whole trainings


@pytest.mark.parametrize("which", ["slices", "no_back"])
def test_a_training_from_labels_that_are_not_whole_to_its_scores(which, request, tmp_path):
    folder = request.getfixturevalue(which)
    settings = UXNET | {"train.steps": 1, "data.test_cases": 1, "data.validation_cases": 1}
    manifest = run_training(folder / "p", tmp_path / "run", load_settings(overrides=settings))
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    [case] = summary["metric_per_case"]
    if which == "no_back":
        assert manifest.test["back"]["dice"].mean is None
        assert case["metrics"]["2"]["n_ref"] is None and case["metrics"]["1"]["n_ref"] > 0
        told = "not labelled, so that no mean counts it: 'back' in 1 of 1 cases"
    else:
        sizes = [
            sum(each[key] for key in ("TP", "FP", "FN", "TN")) for each in case["metrics"].values()
        ]
        assert sizes == [SHAPE[0] * SHAPE[1] * 7] * 2
        told = "the labels of 1 of 1 cases leave voxels out (d): figures are of the labelled ones"
    assert summary["notes"][0].startswith(told) and manifest.label_notes[0].startswith(told)
    if which == "no_back":  # a page takes its time
        page = write_report(tmp_path / "run").read_text()
        assert told in page.replace("&#39;", "'")
    figures = read_run(tmp_path / "run", "").figures["hd95_mm"]
    assert np.isnan(figures).all() == (which == "slices")
    resumed = run_training(folder / "p", tmp_path / "run", load_settings(), resume=True)
    assert resumed.arrays_sha256 == manifest.arrays_sha256


def test_a_run_is_not_gone_on_with_where_other_classes_are_not_labelled(no_back, tmp_path):
    shutil.copytree(no_back / "p", tmp_path / "p")
    run_training(
        tmp_path / "p", tmp_path / "run", load_settings(overrides=UXNET | {"train.steps": 1})
    )
    described = json.loads((tmp_path / "p" / "dataset.json").read_text())
    del described["cases"][1]["not_labelled"]
    (tmp_path / "p" / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="other scans or labels"):
        run_training(tmp_path / "p", tmp_path / "run", load_settings(), resume=True)


def test_both_stages_learn_from_slices(slices, tmp_path):
    prepare_scans(slices / "source", tmp_path / "p", 2.0, coarse_mm=4.0, processes=1)
    settings = UXNET | {"train.steps": 1, "data.test_cases": 1, "coarse.train.steps": 1}
    run_training(tmp_path / "p", tmp_path / "run", load_settings(overrides=settings))
    priors = sorted(path.stem for path in (tmp_path / "run" / "coarse" / "priors").iterdir())
    assert priors == ["a", "b"]


@pytest.mark.parametrize("more", [{}, IGNORING, LEFT_OUT])
def test_what_is_found_reaches_other_processes(tmp_path, more):
    found = find_source(write_source(tmp_path / "source", **more))
    assert pickle.loads(pickle.dumps(found)) == found
