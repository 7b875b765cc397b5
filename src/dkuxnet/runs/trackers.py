"""The curves of a run for Weights & Biases and for MLflow, each where a setting asks for it.

`train.wandb` names a project, `train.mlflow` a folder or an address. What else these programs are
told, where to send things or to stay offline, stands in their own variables (WANDB_*, MLFLOW_*). A
run that goes on goes on there too: it is known by its folder.
"""

import hashlib
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dkuxnet.core.config import TrainSettings
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.extras import require

EXPERIMENT = "dkuxnet"  # in MLflow, where its variable names no other
TAG = "dkuxnet.run"
MOST_AT_ONCE = 100  # that MLflow takes
LONGEST = 500  # characters of a value that every version of MLflow takes


class Tracker(Protocol):
    """Where figures go, beside the run folder."""

    name: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of a step."""
        ...

    def end(self, finished: bool, figures: Mapping[str, float]) -> None:
        """The end of the training. figures: of the test list."""
        ...


def check_trackers(settings: TrainSettings) -> None:
    """Raises UserError where a program that the settings ask for is not installed."""
    if settings.wandb:
        require("wandb", "wandb")
    if settings.mlflow:
        require("mlflow", "mlflow")


def start_trackers(
    settings: TrainSettings, folder: Path, described: Mapping[str, Any]
) -> "list[Tracker]":
    """Those that the settings ask for. described: the settings of the run, flat.

    Raises UserError where one cannot be reached.
    """
    check_trackers(settings)
    wanted: list[tuple[str, Callable[..., Tracker]]] = [
        (settings.wandb, Wandb),
        (settings.mlflow, MLflow),
    ]
    path = folder.resolve()
    name = "/".join(path.parts[-2:]) if path.parent.name else path.name
    known_by = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    started: list[Tracker] = []
    for where, kind in wanted:
        if where:
            try:
                started.append(kind(where, name, known_by, described))
            except Exception as error:  # each has errors of its own
                first = (str(error).strip() or repr(error)).splitlines()[0]
                key = kind.__name__.lower()
                raise UserError(f"train.{key}={where}: cannot begin: {first}") from error
    return started


def carefully(trackers: list[Tracker], tell: Callable[[Tracker], None]) -> None:
    """Tell each of them; one that fails is warned of and left out from then on.

    A page that cannot be reached ends no training.
    """
    for tracker in [*trackers]:
        try:
            tell(tracker)
        except Exception as error:  # each has errors of its own
            trackers.remove(tracker)
            first = (str(error).strip() or repr(error)).splitlines()[0]
            warnings.warn(
                f"{tracker.name} takes no more figures: {first}", DataWarning, stacklevel=2
            )


class Wandb:
    """A run on Weights & Biases."""

    name = "Weights & Biases"

    def __init__(self, project: str, name: str, known_by: str, described: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(
            project=project,
            name=name,
            id=known_by,
            resume="allow",
            config=dict(described),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def end(self, finished: bool, figures: Mapping[str, float]) -> None:
        self._run.summary.update(dict(figures))
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run in MLflow."""

    name = "MLflow"

    def __init__(self, where: str, name: str, known_by: str, described: Mapping[str, Any]):
        from os import environ

        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        uri = where if re.match(r"[\w+-]+:|databricks$", where) else Path(where).resolve().as_uri()
        self._client, self._metric = MlflowClient(tracking_uri=uri), Metric
        experiment = environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        there = self._client.get_experiment_by_name(experiment)
        place = there.experiment_id if there else self._client.create_experiment(experiment)
        runs = self._client.search_runs([place], f"tags.`{TAG}` = '{known_by}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
            return
        run = self._client.create_run(place, run_name=name, tags={TAG: known_by})
        self._id = run.info.run_id
        params = [Param(key, str(value)[:LONGEST]) for key, value in described.items()]
        for first in range(0, len(params), MOST_AT_ONCE):
            self._client.log_batch(self._id, params=params[first : first + MOST_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        named = ((re.sub(r"[^\w\-. :/]", "_", key), value) for key, value in values.items())
        metrics = [self._metric(key, value, now, step) for key, value in named]
        for first in range(0, len(metrics), MOST_AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[first : first + MOST_AT_ONCE])

    def end(self, finished: bool, figures: Mapping[str, float]) -> None:
        self.log(0, figures)
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
