"""New scans and labels into a prepared set, and rounds of labelling on one folder."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from dkuxnet.cli.commands import app
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.data import formats, phantom
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.update import update_prepared
from dkuxnet.runs.folder import RunFolder
from tiny import UXNET


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Nine scans in images/, all of their labels in truth/."""
    folder = tmp_path_factory.mktemp("loop")
    made = phantom.write_dataset(folder / "made", cases=9, labelled=9, size=16)
    shutil.move(made / "imagesTr", folder / "images")
    shutil.move(made / "labelsTr", folder / "truth")
    for scan in (folder / "images").iterdir():
        scan.rename(scan.with_name(scan.name.replace("_0000", "")))
    return folder


def scans(phantoms, target, images, labels):
    """A plain folder with some of the scans, and some of the labels."""
    for kind, source, numbers in (("images", "images", images), ("labels", "truth", labels)):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            name = f"phantom_{number:03}.nii.gz"
            shutil.copy(phantoms / source / name, target / kind / name)
    (target / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "organ": 1, "tumour": 2}})
    )
    return target


def content(folder):
    return {path.name: path.read_bytes() for path in (folder / "cases").iterdir()}


def test_an_update_adds_what_is_new_and_leaves_the_rest_as_it_is(phantoms, tmp_path):
    source = scans(phantoms, tmp_path / "scans", range(3), [0])
    prepare_scans(source, tmp_path / "set", spacing_mm=4, processes=1)
    before, plan = content(tmp_path / "set"), PreparedSet(tmp_path / "set").meta.plan
    done = update_prepared(source, tmp_path / "set", processes=1)
    assert (done.added, done.labelled) == ((), ()) and content(tmp_path / "set") == before
    scans(phantoms, source, [3, 4], [2, 3])
    done = update_prepared(source, tmp_path / "set", processes=1)
    assert done.added == ("phantom_003", "phantom_004") and done.labelled == ("phantom_002",)
    after, data = content(tmp_path / "set"), PreparedSet(tmp_path / "set")
    assert all(after[name] == held for name, held in before.items() if "002" not in name)
    assert data.names_with_label == ["phantom_000", "phantom_002", "phantom_003"]
    assert data.meta.plan == plan
    anew = prepare_scans(source, tmp_path / "anew", spacing_mm=4, processes=1)
    for case in anew.cases:
        for kind in ("image", "label") if case.labelled else ("image",):
            np.testing.assert_array_equal(
                data.array(case.name, kind), PreparedSet(tmp_path / "anew").array(case.name, kind)
            )


def test_a_corrected_label_is_taken_and_one_that_says_the_same_is_not(phantoms, tmp_path):
    source = scans(phantoms, tmp_path / "scans", range(2), [0, 1])
    prepare_scans(source, tmp_path / "set", spacing_mm=4, processes=1)
    path = source / "labels" / "phantom_001.nii.gz"
    label = formats.read(path)
    formats.write(label, path)  # newer, and the same
    assert update_prepared(source, tmp_path / "set", processes=1).labelled == ()
    label.array[:4] = 2
    formats.write(label, path)
    assert update_prepared(source, tmp_path / "set", processes=1).labelled == ("phantom_001",)
    assert (PreparedSet(tmp_path / "set").array("phantom_001", "truth")[:4] == 2).all()


def test_test_cases_stay_those_for_testing(phantoms, tmp_path):
    source = scans(phantoms, tmp_path / "scans", range(4), [0, 1, 2])
    prepare_scans(source, tmp_path / "set", spacing_mm=4, processes=1, test_cases=1)
    scans(phantoms, source, [5], [3, 5])
    update_prepared(source, tmp_path / "set", processes=1)
    data = PreparedSet(tmp_path / "set")
    assert data.meta.held_back == ("phantom_002",) and data.names_with_label[-1] == "phantom_002"


def test_an_update_that_does_not_fit_is_one_line_and_changes_nothing(phantoms, tmp_path):
    source = scans(phantoms, tmp_path / "scans", range(2), [0])
    prepare_scans(source, tmp_path / "set", spacing_mm=4, processes=1)
    before = content(tmp_path / "set")
    scans(phantoms, source, [2], [1])
    label = formats.read(source / "labels" / "phantom_001.nii.gz")
    label.array[0] = 9
    formats.write(label, source / "labels" / "phantom_001.nii.gz")
    with pytest.raises(UserError, match="have the label value 9"):
        update_prepared(source, tmp_path / "set", processes=1)
    assert content(tmp_path / "set") == before
    (source / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}}))
    with pytest.raises(UserError, match=r"has the labels .* but .* was prepared with"):
        update_prepared(source, tmp_path / "set", processes=1)
    (source / "labels" / "phantom_001.nii.gz").unlink()
    (source / "images" / "phantom_001.nii.gz").unlink()
    (source / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "organ": 1, "tumour": 2}})
    )
    with pytest.warns(DataWarning, match="has no case 'phantom_001' any more"):
        assert update_prepared(source, tmp_path / "set", processes=1).added == ("phantom_002",)


def test_the_command_refuses_what_an_update_keeps(phantoms, tmp_path):
    got = CliRunner().invoke(app, ["prepare", "a", "b", "--update", "--spacing-mm", "2"])
    assert got.exit_code == 2 and "--update keeps plan" in got.output


def test_two_rounds_each_begin_where_the_last_one_ended(phantoms, tmp_path):
    source = scans(phantoms, tmp_path / "scans", range(9), [0, 1])
    settings = UXNET | {"train.lr": 1e-9, "train.weight_decay": 0.0, "infer.batch": 4}
    command = ["loop", str(source), "--steps", "1", "--count", "2"]
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    work = tmp_path / "scans-loop"
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    place, name = first.output.splitlines()[-3].split(":")[0].split(". ")
    assert place == "1" and (work / "predictions" / f"{name}.nii.gz").exists()
    again = CliRunner().invoke(app, command)
    assert "0 cases added, 0 cases with a new label" in again.output
    assert not (work / "round-2").exists()
    scans(phantoms, source, [], [int(name[-3:])])
    second = CliRunner().invoke(app, command)
    assert f"1 case ({name}) with a new label" in second.output
    assert name in RunFolder(work / "round-2").manifest.split.labelled
    old, new = (load_file(work / f"round-{i}" / "final.safetensors") for i in (1, 2))
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in old)
    assert f". {name}:" not in second.output


def test_a_round_that_was_stopped_goes_on_without_measuring_its_steps_again(
    phantoms, tmp_path, monkeypatch
):
    source = scans(phantoms, tmp_path / "scans", range(3), [0])
    command = ["loop", str(source)]
    for key, value in UXNET.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    assert CliRunner().invoke(app, [*command, "--steps", "1"]).exit_code == 0
    (tmp_path / "scans-loop" / "round-1" / "final.safetensors").unlink()  # as if before its end
    monkeypatch.setattr("dkuxnet.cli.launch.settings_for", None)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert RunFolder(tmp_path / "scans-loop" / "round-1").is_finished
