"""Curves for Weights & Biases and MLflow: what they are told, and what becomes of one that fails.

Stand-ins record what is called; the programs themselves are tested where they are installed.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

import described
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.schemas import Statistic
from dkuxnet.runs.folder import RunFolder
from dkuxnet.runs.trackers import check_trackers

DICE = Statistic(mean=0.8, std=None, ci95=None)
NONE = Statistic(mean=None, std=None, ci95=None)


def a_run(folder, **settings):
    test = {"left organ (a)": {"dice": DICE, "asd_mm": NONE}}
    chosen = load_settings(overrides={f"train.{key}": value for key, value in settings.items()})
    return RunFolder.create(folder, chosen, described.manifest(test=test))


def stand_in(monkeypatch, name, **attributes):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    """What was called: (what, how)."""
    called = []

    class Run:
        summary = SimpleNamespace(update=lambda figures: called.append(("summary", figures)))

        def log(self, values, step):
            if "broken" in values:
                raise ConnectionError("no route\nto host")
            called.append(("log", step, values))

        def finish(self, exit_code):
            called.append(("finish", exit_code))

    def init(**how):
        called.append(("init", how))
        return Run()

    stand_in(monkeypatch, "wandb", init=init, Settings=lambda **how: how)
    return called


def test_wandb_gets_settings_curves_and_scores(tmp_path, wandb):
    run = a_run(tmp_path / "first", wandb="livers")
    with run.tracked():
        run.log(3, {"loss": 0.5})
    (_, how), *rest = wandb
    assert (how["project"], how["resume"]) == ("livers", "allow")
    assert how["name"].endswith("first") and how["config"]["train.wandb"] == "livers"
    assert rest == [
        ("log", 3, {"loss": 0.5}),
        ("summary", {"test/left organ (a)/dice": 0.8}),
        ("finish", 0),
    ]
    wandb.clear()
    with pytest.raises(KeyboardInterrupt), run.tracked():
        raise KeyboardInterrupt
    assert wandb[0][1]["id"] == how["id"] and wandb[-1] == ("finish", 1)  # the same run there
    run.log(4, {"loss": 0.5})
    assert len(wandb) == 3 and len(run.metrics()) == 2


def test_a_page_that_cannot_be_reached_ends_no_training(tmp_path, wandb):
    run = a_run(tmp_path / "run", wandb="livers")
    with run.tracked():
        with pytest.warns(DataWarning, match="Weights & Biases takes no more figures: no route$"):
            run.log(3, {"broken": 1.0})
        run.log(4, {"loss": 1.0})
    assert len(run.metrics()) == 2 and [each[0] for each in wandb] == ["init"]


def test_one_that_cannot_begin_is_one_line(tmp_path, monkeypatch, wandb):
    def fail(**how):
        raise ValueError("api_key not configured\nUse wandb login")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with (
        pytest.raises(UserError, match=r"train\.wandb=x: cannot begin: api_key not configured$"),
        a_run(tmp_path / "run", wandb="x").tracked(),
    ):
        pass


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_one_line(monkeypatch, name):
    monkeypatch.setattr("dkuxnet.core.extras.find_spec", lambda name: None)
    settings = load_settings(overrides={f"train.{name}": "x"}).train
    with pytest.raises(UserError, match=rf"needs {name}: pip install '\.\[{name}\]' in a clone"):
        check_trackers(settings)


class Client:
    """Of MLflow, as far as it is called."""

    called: ClassVar[list] = []

    def __init__(self, tracking_uri):
        self.called.append(("uri", tracking_uri))

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return name

    def search_runs(self, places, where):
        return []

    def create_run(self, place, run_name, tags):
        return SimpleNamespace(info=SimpleNamespace(run_id="7"))

    def log_batch(self, run_id, metrics=(), params=()):
        self.called.append((run_id, list(metrics), list(params)))

    def set_terminated(self, run_id, status):
        self.called.append(status)


def test_mlflow_gets_them_in_names_that_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(Client, "called", [])
    stand_in(monkeypatch, "mlflow", MlflowClient=Client)
    stand_in(monkeypatch, "mlflow.entities", Metric=lambda *each: each, Param=lambda *each: each)
    run = a_run(tmp_path / "run", mlflow=str(tmp_path / "store"))
    with run.tracked():
        run.log(3, {"loss": 0.5})
    address, *batches, status = Client.called
    assert address == ("uri", (tmp_path / "store").as_uri()) and status == "FINISHED"
    params = [each for _, _, params in batches for each in params]
    assert all(len(params) <= 100 for _, _, params in batches) and len(params) > 60
    (loss,), (score,) = (metrics for _, metrics, _ in batches if metrics)
    assert (loss[0], loss[1], loss[3]) == ("loss", 0.5, 3)
    assert score[:2] == ("test/left organ _a_/dice", 0.8)


def test_mlflow_itself_keeps_a_run_that_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones ask for a database
    run = a_run(tmp_path / "run", mlflow=str(tmp_path / "store"))
    for step in (3, 4):
        with run.tracked():
            run.log(step, {"loss": step / 10})
    client = mlflow.MlflowClient((tmp_path / "store").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'dkuxnet'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["train.lr"] == "0.002"
    curve = client.get_metric_history(found.info.run_id, "loss")
    assert [(each.step, each.value) for each in curve] == [(3, 0.3), (4, 0.4)]
    assert found.data.metrics["test/left organ _a_/dice"] == 0.8


def test_wandb_itself_takes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = a_run(tmp_path / "run", wandb="livers")
    with run.tracked():
        run.log(3, {"loss": 0.5})
    assert [*tmp_path.glob("wandb/offline-run-*/*.wandb")]
    run.check_own()  # none of its links in the run folder
