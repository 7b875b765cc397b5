"""A run folder: settings, manifest, metrics, checkpoints, weights.

Every file appears whole or not at all.

RUN/settings.json        the settings as used             RUN/metrics.jsonl      one JSON object a logged step
RUN/manifest.json        data, split, versions, machine   RUN/tensorboard/       the same, for TensorBoard
RUN/checkpoints/         the last two states to resume    RUN/final.safetensors  weights; best.safetensors where validated
RUN/evaluation/          test cases: summary.json, cases.csv, predictions/, maps/ (uncertainty, groups)
"""

import json
import platform
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkuxnet.core.documents import parse_json, read_json, read_text, reason
from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.schemas import Manifest, SettingsOfRun, check_described
from dkuxnet.core.types import Group, NetworkShape
from dkuxnet.machine.files import append, atomically, write_json
from dkuxnet.runs import checkpoints
from dkuxnet.runs.events import EventFile

if TYPE_CHECKING:
    import torch

MAX_METRICS_BYTES = 1 << 28  # of a million logged steps
DAMAGED = "it is damaged, or not of a run"


class RunFolder:
    """A run on disk. `create` makes a new one, `open` takes one that is there."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._events: EventFile | None = None

    @classmethod
    def create(
        cls, folder: Path, settings: dict[str, Any], manifest: dict[str, Any]
    ) -> "RunFolder":
        """Raises UserError where the folder exists and is not empty, or cannot be written."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{folder} exists already; choose another run folder, or go on with --resume"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "settings.json", settings)
            write_json(folder / "manifest.json", manifest)
        except OSError as error:
            raise UserError(f"{folder}: cannot write there: {disk_reason(error)}") from error
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> "RunFolder":
        """Raises UserError where `folder` holds no run."""
        run = cls(folder)
        if not (run.folder / "settings.json").is_file():
            raise UserError(
                f"{folder} is not a run folder (no settings.json); dkuxnet train makes one"
            )
        return run

    def check_own(self) -> None:
        """Before a run goes on: raises UserError where something in its folder is a link, through
        which it would write somewhere else.
        """
        for path in self.folder.rglob("*"):
            if path.is_symlink():
                raise UserError(
                    f"{path} is a link, and a run that goes on writes into its own folder alone; "
                    "replace it by "
                    "what it points to"
                )

    @property
    def settings(self) -> dict[str, Any]:
        path = self.folder / "settings.json"
        return check_described(read_json(path), SettingsOfRun, path, DAMAGED)

    @property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        return check_described(read_json(path), Manifest, path, DAMAGED)

    def discard_unless_saved(self) -> None:
        """Remove the folder of a run that ended before it saved anything: its name is free again."""
        if not self.has_checkpoint:
            shutil.rmtree(self.folder, ignore_errors=True)

    def update_manifest(self, **entries: Any) -> None:
        write_json(self.folder / "manifest.json", self.manifest | entries)

    # --- metrics ---

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and the same to TensorBoard.

        Raises UserError where the disk does not take it.
        """
        append(
            self.folder / "metrics.jsonl", (json.dumps({"step": step, **values}) + "\n").encode()
        )
        if self._events is None:
            self._events = EventFile(self.folder / "tensorboard", step)
        append(self._events.path, self._events.records(step, values))

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
                rows.append(
                    {
                        "step": int(row["step"]),
                        **{key: float(value) for key, value in row.items() if key != "step"},
                    }
                )
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if number < len(lines):
                    raise UserError(
                        f"{path}: line {number} is damaged ({type(error).__name__}); delete it"
                    ) from error
        return rows

    def rewind_metrics(self, step: int) -> None:
        """Forget what was logged at `step` and after: a resumed run logs it again."""
        kept = [json.dumps(row) for row in self.metrics() if row["step"] < step]
        atomically(
            self.folder / "metrics.jsonl",
            lambda path: path.write_text("".join(r + "\n" for r in kept), "utf-8"),
        )

    # --- state and weights ---

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        checkpoints.save(self.folder / "checkpoints", state)

    def load_checkpoint(self) -> dict[str, Any]:
        """The last saved state that is whole, on the CPU. Raises UserError where there is none."""
        return checkpoints.load(self.folder / "checkpoints")

    @property
    def has_checkpoint(self) -> bool:
        return bool(checkpoints.listed(self.folder / "checkpoints"))

    def forget_checkpoints(self) -> None:
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def save_weights(self, name: str, state_dict: dict[str, Any]) -> Path:
        """Write `name`.safetensors."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        def write(part: Path) -> None:
            try:
                save_file(tensors, str(part))
            except SafetensorError as error:  # of a full disk, too
                raise OSError(str(error)) from error

        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state_dict.items()}
        path = self.folder / f"{name}.safetensors"
        atomically(path, write)
        return path

    def load_weights(self, name: str) -> dict[str, Any]:
        """Read `name`.safetensors onto the CPU. Raises UserError where it is missing or damaged."""
        from safetensors.torch import load_file

        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise UserError(
                f"{path} is missing: `final` comes at the end of a training (dkuxnet train ... "
                "--resume goes on), "
                "`best` from a training with validation cases"
            )
        try:
            return load_file(str(path))
        except Exception as error:  # safetensors raises its own Rust error type
            raise UserError(f"{path}: damaged or not a safetensors file ({error})") from error


class MutedRun(RunFolder):
    """What the other processes of a distributed training have in the place of a run folder: they
    read, and write nothing.
    """

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def rewind_metrics(self, step: int) -> None: ...

    def save_checkpoint(self, state: dict[str, Any]) -> None: ...

    def save_weights(self, name: str, state_dict: dict[str, Any]) -> None: ...

    def update_manifest(self, **entries: Any) -> None: ...

    def discard_unless_saved(self) -> None: ...


def machine(device: "torch.device") -> dict[str, Any]:
    """Versions and the hardware that is used, for the manifest."""
    import torch

    return {
        "dkuxnet": metadata.version("dkuxnet"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def described_network(
    manifest: dict[str, Any], run: Path
) -> tuple[NetworkShape, tuple[int, int, int]]:
    """What a manifest says of the network: its shape and its patch.

    Raises UserError where it does not.
    """
    try:
        described, patch = manifest["network_shape"], tuple(map(int, manifest["patch"]))
        groups = tuple(
            Group(g["name"], tuple(g["classes"]), g["queries"]) for g in described["groups"]
        )
        (
            manifest["plan"]["normalisation"],
            manifest["labels"],
            manifest["channels"],
            manifest["split"],
        )
        return NetworkShape(described["in_channels"], described["classes"], groups), patch
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run}/manifest.json is damaged: {type(error).__name__} {error}"
        ) from error
