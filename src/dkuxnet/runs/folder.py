"""A run folder: settings, manifest, metrics, checkpoints, weights.

Files are written whole or not at all; metrics and TensorBoard events are appended, and a last line
that a kill cut off is ignored.

RUN/settings.json        the settings as used
RUN/manifest.json        data, split, versions, machine
RUN/metrics.jsonl        one JSON object a logged step
RUN/tensorboard/         the same, for TensorBoard
RUN/checkpoints/         the last two states to resume
RUN/final.safetensors    weights; best.safetensors where validated
RUN/reference.json       what later predictions are compared with
RUN/coarse/              the run of the coarse stage, and priors/, what it says of unlabelled cases
RUN/evaluation/          test cases: summary.json, cases.csv, predictions/, maps/ of the network
"""

import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkuxnet.core.config import Settings, flatten, validate
from dkuxnet.core.documents import parse_json, read_json, read_text, reason
from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.lookup import unknown
from dkuxnet.core.regular import check_regular
from dkuxnet.core.schemas import Machine, Manifest, Reference, read_document
from dkuxnet.machine.files import (
    append,
    inside,
    missing_parents,
    refuse_links,
    remove_empty,
    remove_parts,
    write_bytes,
    write_json,
    write_text,
)
from dkuxnet.runs import checkpoints
from dkuxnet.runs.events import EventFile
from dkuxnet.runs.trackers import Tracker, carefully, start_trackers

if TYPE_CHECKING:
    import torch

MAX_METRICS_BYTES = 1 << 28  # of a million logged steps
MADE_EARLY = ("settings.json", "manifest.json", "metrics.jsonl", "best.safetensors", ".lock")
DAMAGED = "it is damaged, or not of a run"


class RunFolder:
    """A run on disk. `create` makes a new one, `open` takes one that is there."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._states = self.folder / "checkpoints"
        self._events: EventFile | None = None
        self._trackers: list[Tracker] = []

    @classmethod
    def create(cls, folder: Path, settings: Settings, manifest: Manifest) -> "RunFolder":
        """Make a run; see `make`."""
        cls.make(folder, settings, manifest)
        return cls(folder)

    @staticmethod
    def make(folder: Path, settings: Settings, manifest: Manifest) -> None:
        """Raises UserError where the folder exists and is not empty, or cannot be written."""
        folder = Path(folder)
        RunFolder.check_new(folder)
        parents = missing_parents(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # settings.json makes it a run that --resume takes, so it comes last
            write_json(folder / "manifest.json", manifest.to_json())
            write_json(folder / "settings.json", settings.model_dump(mode="json"))
        except BaseException as error:
            RunFolder(folder).discard_unless_saved()
            remove_empty(parents)
            if isinstance(error, OSError):
                raise UserError(f"{folder}: cannot write there: {disk_reason(error)}") from error
            raise

    @staticmethod
    def check_new(folder: Path) -> None:
        """Raises UserError where the folder exists and is not empty."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            there = RunFolder(folder)
            several = (folder / "folds.json").is_file()
            go_on = ", or go on with --resume" if there.is_run or several else ""
            if there.is_run and not there.has_saved:
                go_on += " (nothing is saved in it yet: it can be deleted as well)"
            raise UserError(f"{folder} exists already; choose another run folder{go_on}")

    @classmethod
    def open(cls, folder: Path) -> "RunFolder":
        """Raises UserError where `folder` holds no run."""
        run = cls(folder)
        if not run.is_run:
            if (folder / "folds.json").is_file():
                raise UserError(f"{folder} holds several runs; name one, such as {folder}/fold-1")
            raise UserError(
                f"{folder} is not a run folder (no settings.json); dkuxnet train makes one"
            )
        return run

    @property
    def coarse(self) -> "RunFolder":
        """The run of the coarse stage, whether or not it was made."""
        return type(self)(inside(self.folder, "coarse"))

    @property
    def is_run(self) -> bool:
        """Whether a run was made in the folder, whole."""
        return (self.folder / "settings.json").is_file()

    def check_own(self) -> None:
        """Raises UserError where something in the folder is a link.

        A run that goes on would write through it, somewhere else.
        """
        refuse_links(self.folder)

    @property
    def settings(self) -> Settings:
        """The settings as used; `model_dump(exclude_unset=True)` has those of the file alone."""
        path = self.folder / "settings.json"
        content = read_json(path)
        try:
            if not isinstance(content, dict):
                raise UserError("expected a JSON object")
            return validate(content)
        except UserError as error:
            raise UserError(f"{path}: {error}; {DAMAGED}") from error

    @property
    def manifest(self) -> Manifest:
        """What the run says of itself. Raises UserError where it is missing or damaged."""
        return read_document(self.folder / "manifest.json", Manifest, DAMAGED)

    def discard_unless_saved(self) -> None:
        """Remove what a run that saved nothing has written, and free its name.

        Anything else in the folder stays, and then the folder does.
        """
        if self.has_saved:
            return
        if self.coarse.is_run:
            self.coarse.discard_unless_saved()
        for folder in ("checkpoints", "tensorboard"):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        with suppress(OSError):
            remove_parts(self.folder, alone=True)
            for name in MADE_EARLY:
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    def update_manifest(self, **entries: Any) -> None:
        """Add to the manifest, or replace what stands there."""
        updated = Manifest.model_validate(self.manifest.to_json() | entries)
        write_json(self.folder / "manifest.json", updated.to_json())

    def lengthen(self, settings: Settings, planned_steps: tuple[int, ...]) -> None:
        """Take the settings with other steps, and forget the end that the run has come to."""
        ended = ("steps_done", "weights", "test", "evaluate_seconds", "postprocessing")
        kept = {key: value for key, value in self.manifest.to_json().items() if key not in ended}
        updated = Manifest.model_validate(kept | {"planned_steps": planned_steps})
        write_json(self.folder / "settings.json", settings.model_dump(mode="json"))
        write_json(self.folder / "manifest.json", updated.to_json())

    @property
    def reference(self) -> Reference | None:
        """What predictions are compared with, None where the training left nothing."""
        path = inside(self.folder, "reference.json")
        return read_document(path, Reference, DAMAGED) if path.exists() else None

    def write_reference(self, reference: Reference) -> None:
        """Write it, whole or not at all."""
        write_json(inside(self.folder, "reference.json"), reference.to_json())

    # --- metrics ---

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and the same to TensorBoard.

        Raises UserError where the disk does not take it.
        """
        append(
            self.folder / "metrics.jsonl", (json.dumps({"step": step, **values}) + "\n").encode()
        )
        if self._events is None:
            self._events = EventFile(inside(self.folder, "tensorboard"), step)
        append(self._events.path, self._events.records(step, values))
        carefully(self._trackers, lambda tracker: tracker.log(step, values))

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Tell other programs what is logged in the block, where the settings ask for it."""
        settings = self.settings
        described = dict(flatten(settings.model_dump(mode="json")))
        self._trackers = start_trackers(settings.train, self.folder, described)
        finished = False
        try:
            yield
            finished = True
        finally:
            test = (self.manifest.test or {}) if self._trackers and finished else {}
            figures = {
                f"test/{name}/{key}": statistic.mean
                for name, metrics in test.items()
                for key, statistic in metrics.items()
                if statistic.mean is not None
            }
            carefully(self._trackers, lambda tracker: tracker.end(finished, figures))
            self._trackers = []

    def metrics(self) -> list[dict[str, float]]:
        """What has been logged, oldest first.

        A last line that a kill cut off is ignored; a damaged line anywhere else is a UserError with
        its number.
        """
        path = self.folder / "metrics.jsonl"
        try:
            lines = (
                read_text(path, MAX_METRICS_BYTES, errors="replace").splitlines()
                if path.exists()
                else []
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {reason(error)}") from error
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line)
                figures = {key: float(value) for key, value in row.items() if key != "step"}
                rows.append({"step": int(row["step"]), **figures})
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if number < len(lines):
                    raise UserError(
                        f"{path}: line {number} is damaged ({type(error).__name__}); delete it"
                    ) from error
        return rows

    def rewind_metrics(self, step: int) -> None:
        """Forget what was logged at `step` and after: a resumed run logs it again."""
        kept = [f"{json.dumps(row)}\n" for row in self.metrics() if row["step"] < step]
        write_text(self.folder / "metrics.jsonl", "".join(kept))

    # --- state and weights ---

    def choose_weights(self, asked: str | None = None) -> str:
        """The name of the weights to use: what was asked for, or else the run's own.

        That is `best` where validation cases chose it, and `final` where there were none or the
        training has not ended. Evaluation, report, prediction, server and exports all ask here.
        Raises UserError for any other name.
        """
        if asked is not None and asked not in ("final", "best"):
            raise unknown("weights", asked, ("final", "best"))
        files = (self.folder / f"{name}.safetensors" for name in ("final", "best"))
        validated = all(file.exists() for file in files) and self.manifest.split.validation
        return asked or ("best" if validated else "final")

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save the state of a training, see `checkpoints.save`."""
        checkpoints.save(inside(self.folder, "checkpoints"), state)

    def load_checkpoint(self) -> dict[str, Any]:
        """The last saved state that is whole, on the CPU. Raises UserError where there is none."""
        return checkpoints.load(self._states)

    @property
    def is_finished(self) -> bool:
        """Whether the training has come to its end, the evaluation of its test list included."""
        if not (self.is_run and (self.folder / "final.safetensors").exists()):
            return False
        manifest = self.manifest
        return manifest.steps_done is not None and (
            manifest.test is not None or not manifest.split.test
        )

    @property
    def has_checkpoint(self) -> bool:
        """Whether a state was saved."""
        return bool(checkpoints.listed(self._states))

    @property
    def has_progress(self) -> bool:
        """Whether there is a state of any version, or the final weights."""
        final = self.folder / "final.safetensors"
        return self.has_checkpoint or final.exists() or any(self._states.glob("*.pt"))

    @property
    def has_saved(self) -> bool:
        """The same, of either stage."""
        return self.has_progress or (self.coarse.is_run and self.coarse.has_saved)

    def forget_checkpoints(self) -> None:
        """Remove all saved states."""
        shutil.rmtree(self._states, ignore_errors=True)

    def save_weights(self, name: str, state_dict: dict[str, Any]) -> None:
        """Write `name`.safetensors."""
        from safetensors.torch import save

        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state_dict.items()}
        write_bytes(self.folder / f"{name}.safetensors", save(tensors))

    def load_weights(self, name: str) -> dict[str, Any]:
        """Read `name`.safetensors onto the CPU. Raises UserError where it is missing or damaged."""
        from safetensors.torch import load_file

        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            raise UserError(
                f"{path} is missing: `final` comes at the end of a training (dkuxnet train ... "
                "--resume goes on), `best` from a training with validation cases"
            )
        try:
            check_regular(path)
            return load_file(str(path))
        except Exception as error:  # safetensors raises its own Rust error type
            raise UserError(f"{path}: damaged or not a safetensors file ({error})") from error


class MutedRun(RunFolder):
    """The run folder of the other processes of a distributed training: they write nothing."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    @contextmanager
    def tracked(self) -> Iterator[None]:
        yield

    def rewind_metrics(self, step: int) -> None: ...

    def save_checkpoint(self, state: dict[str, Any]) -> None: ...

    def save_weights(self, name: str, state_dict: dict[str, Any]) -> None: ...

    def update_manifest(self, **entries: Any) -> None: ...

    def discard_unless_saved(self) -> None: ...


def machine(device: "torch.device") -> Machine:
    """Versions and the hardware that is used, for the manifest."""
    import torch

    return Machine(
        dkuxnet=metadata.version("dkuxnet"),
        python=platform.python_version(),
        torch=torch.__version__,
        platform=platform.platform(),
        cpu_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
