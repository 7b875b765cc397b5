"""What of a training follows from its number of steps."""

import pytest

from dkuxnet.core.config import load_settings
from dkuxnet.models.methods import METHODS
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.experiment import run_training
from dkuxnet.training.job import write_out_options
from tiny import UXNET

# in 800 steps, for which they were chosen
STEPS_OF_800 = {
    "mean-teacher": {"ramp_up_steps": 400},
    "ua-mt": {"ramp_up_steps": 400, "threshold_steps": 800},
    "ad-mt": {"ramp_up_steps": 400},
    "cps": {"ramp_up_steps": 400},
    "mc-net-plus": {"ramp_up_steps": 400},
    "dtc": {"ramp_up_steps": 400},
    "dual-mutual": {"pretrain_steps": 0, "ramp_up_steps": 200},
    "bcp": {"pretrain_steps": 200},
}


def written_out(preset="default", **overrides):
    """The settings that a new run gets; method__name is method.name."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return write_out_options(load_settings(preset, overrides=dotted))


@pytest.mark.parametrize("method", METHODS)
def test_ramp_ups_and_pre_trainings_are_shares_of_the_training(method):
    def steps(**overrides):
        options = written_out(method__name=method, **overrides).method.options
        return {name: value for name, value in options.items() if name.endswith("_steps")}

    expected = STEPS_OF_800.get(method, {})
    assert steps(preset="la-mini") == expected
    for length in (4000, 200, 7, 1):
        scaled = {name: round(value / 800 * length) for name, value in expected.items()}
        assert steps(train__steps=length) == scaled
    for name in expected:
        given = {f"method__{name}": 30}
        assert steps(train__steps=4000, **given)[name] == 30
        assert steps(train__steps=4000, **given).keys() == expected.keys()


def test_the_warm_up_is_at_most_an_eighth_of_a_training():
    for length, warm_up in ((4000, 50), (800, 50), (400, 50), (60, 7), (8, 1), (1, 0)):
        assert written_out(train__steps=length).train.warm_up_steps == warm_up
    assert written_out(train__steps=60, train__warm_up_steps=50).train.warm_up_steps == 50


def test_what_is_written_out_stays_in_whatever_length():
    short = written_out(train__steps=80)
    train = short.train.model_copy(update={"steps": 800})
    longer = write_out_options(short.model_copy(update={"train": train}))
    assert longer.method == short.method and longer.train.warm_up_steps == 10


def test_a_coarse_stage_of_other_steps_has_its_own_shares():
    chosen = {"train__steps": 800, "coarse__train__steps": 200}
    settings = written_out(**chosen)
    assert settings.method.options["ramp_up_steps"] == 200 and settings.train.warm_up_steps == 50
    coarse = settings.coarse_stage()
    assert coarse.method.options == settings.method.options | {"ramp_up_steps": 50}
    assert coarse.train.warm_up_steps == 25
    # the same where a run that was stopped before that stage goes on from its settings
    assert write_out_options(settings) == settings
    assert write_out_options(coarse).method == coarse.method
    other = written_out(coarse__method__name="bcp", **chosen).coarse_stage().method
    assert other.name == "bcp" and other.options["pretrain_steps"] == 50
    given = written_out(method__ramp_up_steps=30, **chosen)
    assert given.coarse_stage().method.options["ramp_up_steps"] == 30
    alike = written_out(train__steps=800)
    assert alike.coarse == load_settings().coarse
    assert alike.coarse_stage().train.warm_up_steps == 50


def test_a_run_that_is_lengthened_keeps_the_steps_of_its_ramp_up(prepared, tmp_path):
    run, chosen = tmp_path / "run", {"train.steps": 4, "method.name": "mean-teacher"}
    run_training(prepared, run, load_settings(overrides=UXNET | chosen))
    assert RunFolder(run).settings.method.options["ramp_up_steps"] == 2
    run_training(prepared, run, load_settings(), resume=True, steps=8)
    settings = RunFolder(run).settings
    assert settings.train.steps == 8 and settings.method.options["ramp_up_steps"] == 2
