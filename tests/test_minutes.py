"""As many steps as fit into some minutes: measured, then a training like any other."""

import re

import pytest

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training import minutes
from dkuxnet.training.experiment import run_training
from dkuxnet.training.minutes import fitting, settings_for
from tiny import UXNET

TINY = UXNET | {
    "method.name": "bcp",
    "train.unlabelled_batch": 1,
    "train.validate_every": 10,
    "data.labelled": 2,
    "data.validation_cases": 1,
}


def test_what_is_left_is_shared_by_the_steps():
    assert fitting(2, 0.5, spent=20) == (200, "200 steps of 0.5 s fit into 2 minutes")
    assert fitting(20, 0.01, spent=0)[1] == "120,000 steps of 0.01 s fit into 20 minutes"
    assert fitting(1e30, 1e-3, spent=0)[0] == 10**9
    assert fitting(0.5, 3, spent=0)[0] == 10


@pytest.mark.parametrize("asked, spent", [(0.5, 1), (0.001, 40), (1, 31)])
def test_too_few_steps_are_a_line_that_says_how_long_it_takes(asked, spent):
    with pytest.raises(UserError, match="a training has at least 10") as told:
        fitting(asked, 3, spent)
    needed = float(re.search(r"give --minutes ([\d.]+) or more$", str(told.value))[1])
    assert needed > asked and 10 <= fitting(needed, 3, spent)[0] < 20


def test_the_time_is_that_of_steps_after_ramps_and_pre_training_with_validations(
    prepared, tmp_path, monkeypatch
):
    steps, judged = [], []

    def timed(job, state, tried, count):
        steps.append((state.step, count, job.settings.method.options["pretrain_steps"]))
        return 0.2 * count

    monkeypatch.setattr(minutes, "timed", timed)

    def validation_dice(predictor, job, coarse):
        judged.append(job.split)

    monkeypatch.setattr(minutes, "validation_dice", validation_dice)
    chosen = load_settings(overrides=TINY)
    settings, said = settings_for(1, prepared, tmp_path / "run", chosen)
    assert not (tmp_path / "run").exists()
    assert all(step > pretrain > 0 for step, _, pretrain in steps)
    assert [count for _, count, _ in steps] == [1, 1, 1, 6]
    assert len(judged) == 1 and len(judged[0].validation) == 1
    number = settings.train.steps
    assert 10 < number < 300 and said.startswith(f"{number} steps of 0.2 s fit into 1 minute")
    same = load_settings(overrides=TINY | {"train.steps": number})
    assert settings == same
    assert settings.method.options == {}  # a pre-training follows from this number


@pytest.fixture(scope="module")
def two_spacings(scans, tmp_path_factory):
    """Prepared for two stages."""
    folder = tmp_path_factory.mktemp("two") / "prepared"
    prepare_scans(scans, folder, processes=1, coarse_mm=3)
    return folder


@pytest.mark.parametrize("own", [None, 50])
def test_both_stages_share_the_minutes(two_spacings, tmp_path, monkeypatch, own):
    def timed(job, state, tried, count):
        fine = job.coarse is not None
        assert next(tried).unlabelled.weak.shape[1] == (3 if fine else 1)
        return (0.25 if fine else 0.125) * count

    monkeypatch.setattr(minutes, "timed", timed)
    monkeypatch.setattr(minutes.time, "monotonic", lambda: 0.0)
    alone = {"data.validation_cases": 0, "coarse.train": {"steps": own} if own else {}}
    chosen = load_settings(overrides=TINY | alone)
    settings, _ = settings_for(1, two_spacings, tmp_path / "run", chosen)
    assert settings.train.steps == ((60 - 50 * 0.125) / 0.25 if own else 60 / (0.25 + 0.125))
    assert settings.coarse_stage().train.steps == (own or settings.train.steps)


def test_a_run_of_minutes_is_that_of_so_many_steps(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(minutes, "fitting", lambda *given: (12, "so many"))
    timed, given, plain = tmp_path / "timed", tmp_path / "given", load_settings(overrides=TINY)
    settings, _ = settings_for(1, prepared, timed, plain)
    run_training(prepared, timed, settings)
    run_training(prepared, given, load_settings(overrides=TINY | {"train.steps": 12}))
    for name in ("settings.json", "final.safetensors", "best.safetensors"):
        assert (timed / name).read_bytes() == (given / name).read_bytes()
    run = RunFolder(timed)
    assert run.manifest.planned_steps == (12,) and run.settings.train.warm_up_steps == 1
    assert run.settings.method.options["pretrain_steps"] == 3
