"""Several labels of one scan: whose are taken, what their mean teaches, how far they agree."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import DataWarning, UserError, data_warnings
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.layouts import find_source
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.raters import agreement, majority, with_raters
from dkuxnet.data.update import update_prepared
from dkuxnet.training.experiment import patch_streams, run_training
from dkuxnet.training.job import new_job
from test_partial_labels import AFFINE, a_label, write_source
from tiny import UXNET


def shifted(seed: int, voxels: int) -> np.ndarray:
    return np.roll(a_label(seed), voxels, axis=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels without a name; rater B has a, b and d, one voxel further; C has a, two further."""
    folder = write_source(tmp_path_factory.mktemp("raters") / "source")
    for rater, names, voxels in (("B", "abd", 1), ("C", "a", 2)):
        (folder / f"labels_{rater}").mkdir()
        for name in names:
            label = Volume(shifted("abcd".index(name), voxels), AFFINE)
            formats.write(label, folder / f"labels_{rater}" / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def mean(source: Path) -> Path:
    prepare_scans(source, source.parent / "mean", 2.0, processes=1, rater="mean")
    return source.parent / "mean"


def test_whose_labels_are_taken(source, tmp_path):
    by_default = with_raters(find_source(source))
    assert [case.label and case.label.parent.name for case in by_default.cases] == [
        *["labels"] * 4, None
    ]  # fmt: skip
    with pytest.warns(DataWarning, match="1 cases that others labelled have no label of 'B'.*: c"):
        of_b = with_raters(find_source(source), "B")
    assert [case.name for case in of_b.cases if case.label] == ["a", "b", "d"]
    assert [len(case.raters) for case in of_b.cases] == [3, 2, 0, 2, 0]
    with pytest.raises(UserError, match=r"unknown rater 'b'.*labels, B, C, mean"):
        with_raters(find_source(source), "b")
    lone = write_source(tmp_path / "lone")
    with pytest.raises(UserError, match="--rater A: expected folders such as"):
        with_raters(find_source(lone), "A")
    (lone / "labels").rename(lone / "labels_A")
    with pytest.raises(UserError, match="choose whose are taken with --rater A, or all with"):
        with_raters(find_source(lone))


def test_nnunet_s_folders_have_raters_too(tmp_path):
    source = write_source(tmp_path / "source", unlabelled=0)
    (source / "labels").rename(source / "labelsTr")
    (source / "images").rename(source / "imagesTr")
    for path in (source / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    described = json.loads((source / "dataset.json").read_text())
    described |= {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz", "numTraining": 4}
    (source / "dataset.json").write_text(json.dumps(described))
    shutil.copytree(source / "labelsTr", source / "labelsTr_B")
    with data_warnings() as notes:
        found = with_raters(find_source(source), "B")
    assert not notes and {case.label.parent.name for case in found.cases} == {"labelsTr_B"}


def test_a_label_on_another_grid_and_a_value_that_nobody_knows_name_case_and_file(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "source")
    formats.write(Volume(a_label()[:-1], AFFINE), copy / "labels_B" / "b.nii.gz")
    with pytest.raises(UserError) as told:
        prepare_scans(copy, tmp_path / "p", processes=1)
    assert len(told.value.lines) == 1 and "case 'b'" in str(told.value)
    assert "b.nii.gz" in str(told.value) and "shape" in str(told.value)
    formats.write(Volume(a_label() * 3, AFFINE), copy / "labels_B" / "b.nii.gz")
    with pytest.raises(UserError, match=r"case 'b': .*label value 6"):
        prepare_scans(copy, tmp_path / "p", processes=1)


def test_majority_and_agreement_by_hand():
    labels = [np.array([[each]], np.uint8).T for each in ([1, 1, 0, 2], [1, 0, 0, 1], [0, 0, 2, 1])]
    labels = [label.reshape(4, 1, 1) for label in labels]
    assert majority(labels).ravel().tolist() == [1, 0, 0, 1]
    assert majority(labels[:2]).ravel().tolist() == [1, 1, 0, 2]  # the first rater decides
    found = agreement(labels, {"one": (1,), "any": (1, 2), "nobody": (3,)})
    assert found["one"] == pytest.approx((2 / 4 + 0 / 3 + 2 / 3) / 3)
    assert found["any"] == pytest.approx((4 / 5 + 2 / 5 + 2 / 4) / 3) and "nobody" not in found


def test_each_patch_has_the_label_of_one_rater(mean):
    data = PreparedSet(mean)
    assert [data.raters(name)[0] for name in "abcd"] == [3, 2, 0, 2]
    assert np.array_equal(data.array("a", "truth"), shifted(0, 1))  # two of three agree at least
    overrides = UXNET | {"data.test_cases": 1, "train.patch": [32, 32, 32]}
    [stream] = patch_streams(new_job(mean, load_settings(overrides=overrides)))
    seen: dict[str, set[bytes]] = {name: set() for name in "abc"}
    for step in range(40):
        seen[stream.names_at(step)[0]].add(stream.at(step)[1].tobytes())
    assert [len(seen[name]) for name in "abc"] == [3, 2, 1]


def test_scores_say_how_far_the_raters_agree(mean, tmp_path):
    settings = UXNET | {"data.test_cases": 1, "train.steps": 1}
    run_training(mean, tmp_path / "run", load_settings(overrides=settings))
    notes = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())["notes"]
    assert notes[-1] == (  # of six or seven voxels along x all but one are in both
        "raters agree with each other by a Dice of 0.857 on 'front', 0.857 on 'back' (1 scans): "
        "what a model can reach"
    )


def test_an_update_takes_the_same_rater_and_sees_a_new_label_of_any(source, mean, tmp_path):
    copy = shutil.copytree(source.parent, tmp_path / "copy")
    assert update_prepared(copy / "source", copy / "mean", processes=1).labelled == ()
    formats.write(Volume(shifted(2, 1), AFFINE), copy / "source" / "labels_C" / "c.nii.gz")
    assert update_prepared(copy / "source", copy / "mean", processes=1).labelled == ("c",)
    assert PreparedSet(copy / "mean").raters("c")[0] == 2
