"""Labels that are held back stay shut, and test cases until the end: asked of the kernel, not of
the program.
"""

import json
import shutil
from itertools import product

import numpy as np
import pytest

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.data import formats
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.training.experiment import run_training
from dkuxnet.training.job import new_job
from dkuxnet.training.patches import PatchStream
from opened import Watch
from tiny import DK_UXNET, prepared_phantoms

TINY = DK_UXNET | {
    "train.labelled_batch": 1,
    "train.unlabelled_batch": 2,
    "train.steps": 8,
    "train.validate_every": 4,
    "train.log_every": 4,
    "train.save_every": 4,
    "data.labelled": 2,
    "data.validation_cases": 1,
    "data.test_cases": 1,
}
KINDS = ("image", "label", "truth")
# Of seven scans the first six have a label. The first keeps it, the second validates, the sixth
# tests.
LABELLED, VALIDATION, TEST = ("phantom_000",), ("phantom_001",), ("phantom_005",)
UNLABELLED = ("phantom_002", "phantom_003", "phantom_004", "phantom_006")
SPLIT = {
    "labelled": [*LABELLED],
    "unlabelled": [*UNLABELLED],
    "validation": [*VALIDATION],
    "test": [*TEST],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepared_phantoms(tmp_path_factory.mktemp("phantoms"), cases=7, labelled=6, test_cases=1)


@pytest.fixture(scope="module")
def scans(prepared):
    return prepared.parent / "scans"


def files(names, *kinds) -> set[str]:
    return {f"{name}.{kind}.b2nd" for name, kind in product(names, kinds)}


@pytest.mark.parametrize(
    "method, cache_gib", [("dual-mutual", 4.0), ("dual-mutual", 0.0), ("bcp", 4.0)]
)
def test_a_training_opens_no_label_but_its_own_and_no_test_case_before_its_end(
    prepared, tmp_path, method, cache_gib
):
    """With the cache and without, validation in the middle of it and at its end."""
    run = tmp_path / "run"
    run.mkdir()
    watch = Watch(prepared / "cases", run)
    more = {"method.name": method, "data.cache_gib": cache_gib}
    manifest = run_training(prepared, run, load_settings(overrides=TINY | more))
    assert manifest.to_json()["split"] == SPLIT
    names = watch.names()
    watch.close()
    end = names.index("final.safetensors")
    during, after = (
        {name for name in part if name.endswith(".b2nd")} for part in (names[:end], names[end:])
    )
    assert during == files((*LABELLED, *VALIDATION), "image", "label") | files(UNLABELLED, "image")
    # pieces are chosen on the validation cases once the weights are there, by what was open before
    assert after - during == files(TEST, "image", "truth")


def test_each_part_of_a_job_opens_what_the_split_gives_it_and_nothing_else(prepared):
    job = new_job(prepared, load_settings(overrides=TINY))
    assert job.split.labelled == LABELLED and job.split.unlabelled == UNLABELLED
    allowed = {
        "data": set(),
        "training": files((*LABELLED, *UNLABELLED), "image") | files(LABELLED, "label"),
        "validation": files(VALIDATION, "image", "label"),
        "test": files(TEST, "image", "truth"),
    }
    watch = Watch(prepared / "cases")
    for (part, given), name, kind in product(allowed.items(), job.data.names, KINDS):
        view, file = getattr(job, part), f"{name}.{kind}.b2nd"
        if file in given:
            assert view.array(name, kind).any()  # and keeps it in memory, which all parts share
            continue
        watch.names()
        with pytest.raises(UserError, match=f"the {kind} of case '{name}' is closed here"):
            view.array(name, kind)
        with pytest.raises(UserError, match=f"the {kind} of case '{name}' is closed here"):
            view.crop(name, kind, (0, 0, 0), (2, 2, 2))
        assert file not in watch.names()
    watch.close()
    again = job.training.only(image=job.data.names, label=job.data.names)  # a view of a view
    with pytest.raises(UserError, match="closed here"):
        again.array(VALIDATION[0], "label")
    assert again.array(LABELLED[0], "label").any()


def test_a_loader_that_asks_for_a_label_held_back_gets_an_error(prepared):
    job = new_job(prepared, load_settings(overrides=TINY))
    wrong = PatchStream(job.training, job.split.unlabelled, job.patch, 1, 0, with_label=True)
    with pytest.raises(UserError, match="is closed here"):
        wrong.at(0)


# --- preparing ---


@pytest.fixture(scope="module")
def odd(scans, tmp_path_factory):
    """The same scans; the test case has voxels three times as long, and other intensities."""
    folder = shutil.copytree(scans, tmp_path_factory.mktemp("odd") / "scans")
    for path in (
        folder / "imagesTr" / "phantom_005_0000.nii.gz",
        folder / "labelsTr" / "phantom_005.nii.gz",
    ):
        volume = formats.read(path, "label" if "labels" in str(path) else "image")
        volume.affine[:3, :3] *= 3
        if "images" in str(path):
            volume.array[...] = 100 * volume.array + 7
        formats.write(volume, path)
    return folder


@pytest.mark.parametrize("named", ["number", "file"])
def test_what_is_held_back_for_testing_has_no_say_in_the_plan_nor_in_any_other_case(
    prepared, odd, tmp_path, named
):
    split = tmp_path / "split.json"
    split.write_text(json.dumps(SPLIT))
    how = {"test_cases": 1} if named == "number" else {"split": split}
    meta = prepare_scans(odd, tmp_path / "prepared", processes=1, **how)
    one, two = PreparedSet(prepared), PreparedSet(tmp_path / "prepared")
    assert meta.held_back == (*TEST,) and meta.fingerprint.cases == 6
    for key in ("fingerprint", "plan", "labels"):
        assert getattr(one.meta, key) == getattr(two.meta, key)
    for name in (*LABELLED, *VALIDATION, *UNLABELLED):
        assert np.array_equal(one.array(name, "image"), two.array(name, "image"))
    assert one.shape(TEST[0]) != two.shape(TEST[0])


def test_without_a_word_on_test_cases_all_images_are_measured(prepared, odd, tmp_path):
    meta = prepare_scans(odd, tmp_path / "prepared", processes=1)
    assert meta.held_back == () and meta.fingerprint.cases == 7
    assert meta.fingerprint.mean != PreparedSet(prepared).meta.fingerprint.mean


def test_a_case_held_back_for_testing_is_taken_for_nothing_else(prepared):
    for wrong in ({"data.test_cases": 0}, {"data.test_cases": 0, "data.labelled": None}):
        with pytest.raises(
            UserError,
            match=r"case 'phantom_005' was held back for testing .*set data\.test_cases=1",
        ):
            new_job(prepared, load_settings(overrides=TINY | wrong))
