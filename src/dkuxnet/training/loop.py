"""The training loop.

It knows batches, losses, an optimiser and a run folder; no method, no network, no data set.
"""

import copy
import functools
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dkuxnet.core.config import TrainSettings
from dkuxnet.core.errors import UserError
from dkuxnet.core.seeds import DROPOUT, step_seed
from dkuxnet.core.types import Batch
from dkuxnet.machine.distributed import any_rank, on_rank_zero, sum_gradients, world
from dkuxnet.models.methods.average import update_average
from dkuxnet.models.methods.base import Method
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.optimiser import learning_rate, make_optimiser, restore_optimiser

MAX_WINDOW = 1 << 20  # steps between two lines of the log in a checkpoint that may be a stranger's
# steps that are left out: so many in a row, or of the recent ones, are no longer an accident
RECENT, MOST_IN_A_ROW, MOST_RECENT = 500, 50, 100
Log = Callable[[int, dict[str, float]], None]


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after the state was saved."""


class NotFinite(UserError):
    """A loss or gradient is NaN or infinite since `step`.

    The method, its options or the data are at fault.
    """

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


@dataclass
class TrainState:
    """Everything that an exact resume needs.

    Random draws are functions of seed and step, so no generator is in it. window: the figures of
    the steps since the last line of the log. skipped: which of the last RECENT steps were left out.
    stale: how many validations there were since the best one.
    """

    method: Method[Any]
    optimiser: torch.optim.Optimizer
    average: Method[Any] | None = None
    step: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    window: dict[str, list[Tensor]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    stale: int = 0

    def to_checkpoint(self) -> dict[str, Any]:
        """Tensors and plain values, as `restore` takes them."""
        return {
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "window": {name: as_vector(parts) for name, parts in self.window.items()},
            "skipped": self.skipped,
            "stale": self.stale,
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where the checkpoint is of another network, method or optimiser."""
        try:
            self.method.load_state_dict(checkpoint["method"])
            restore_optimiser(self.optimiser, checkpoint["optimiser"])
            if self.average:
                self.average.load_state_dict(checkpoint["average"])
            step, best, seconds = (checkpoint[key] for key in ("step", "best", "seconds"))
            stale = checkpoint.get("stale", 0)
            numbers = type(step) is type(stale) is int and type(best) is float
            if not numbers or step < 0 or not 0 <= seconds < math.inf:
                raise ValueError(f"step {step}, best {best}, seconds {seconds}")
            # checkpoints of before these were in them have none
            window = restore_window(checkpoint.get("window", {}), step, self.method)
            self.skipped = restore_skipped(checkpoint.get("skipped", []), step)
            self.step, self.best, self.seconds, self.window = step, best, seconds, window
            self.stale = stale
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(
                "the checkpoint is of another network, method or optimiser than the settings: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error

    def add(self, figures: dict[str, Tensor]) -> None:
        """Keep the figures of a step until they are logged."""
        for name, value in figures.items():
            self.window.setdefault(name, []).append(value.detach())

    def leave_out(self, figures: dict[str, Tensor], steps: int) -> None:
        """Count this step as left out, of a training of `steps`.

        Raises NotFinite where so many are left out that nothing is learnt.
        """
        self.add({"skipped": figures["grad_norm"].new_ones(())})
        self.skipped = [*(at for at in self.skipped if at > self.step - RECENT), self.step]
        in_a_row = len(self.skipped)
        while self.skipped[-in_a_row] != self.step - in_a_row + 1:
            in_a_row -= 1
        if in_a_row >= min(MOST_IN_A_ROW, steps) or len(self.skipped) >= MOST_RECENT:
            many = f"{in_a_row} steps in a row"
            if in_a_row < min(MOST_IN_A_ROW, steps):
                many = f"{len(self.skipped)} of the last {RECENT} steps"
            last = ", ".join(broken({name: value.item() for name, value in figures.items()}))
            raise NotFinite(
                self.step,
                f"{many} were not finite and left out (train.on_nan=skip), at step {self.step} "
                f"{last}; lower train.lr, or look at the scans of that step",
            )

    def is_over(self, settings: TrainSettings) -> bool:
        """Whether the patience with validations that are no better is at its end."""
        return settings.patience is not None and self.stale >= settings.patience

    def predicting(self) -> Method[Any]:
        """The method whose predictor answers: the moving average where there is one."""
        return self.average or self.method


def restore_window(
    saved: dict[str, Tensor], step: int, method: nn.Module
) -> dict[str, list[Tensor]]:
    """The window of a checkpoint of `step`, where the figures of the next steps are.

    Raises ValueError or another error for what is none.
    """
    device = next(method.parameters()).device
    for name, values in saved.items():
        figures = type(name) is str and values.is_floating_point() and values.ndim == 1
        most = min(step, MAX_WINDOW)
        if not figures or len(values) > most or not values.isfinite().all():
            raise ValueError("its window holds no figures of the steps before it")
    # whole: tensors of one figure each would take a hundred times the memory of the file
    return {name: [values.to(device, copy=True)] for name, values in saved.items()}


def restore_skipped(saved: list[int], step: int) -> list[int]:
    """The steps that were left out before `step`. Raises ValueError for what are none."""
    steps = all(type(at) is int and step - RECENT <= at < step for at in saved)
    if not steps or saved != sorted(set(saved)):
        raise ValueError("it names no steps that were left out")
    return list(saved)


def make_state(method: Method[Any], settings: TrainSettings) -> TrainState:
    """Optimiser and, where asked for, moving average for a method that is already on its device."""
    average = copy.deepcopy(method).requires_grad_(False) if settings.average else None
    return TrainState(method, make_optimiser(method, settings), average)


def train(
    state: TrainState,
    batches: Iterable[Batch],
    settings: TrainSettings,
    run: RunFolder,
    device: torch.device,
    validate: Callable[[nn.Module], float] | None = None,
    progress: Log | None = None,
) -> None:
    """Train from state.step to settings.steps on `batches`, which start at that step.

    validate: predictor -> score (higher is better); the best weights are saved as `best`, and the
    training ends where its patience (`TrainSettings`) does. At the end the weights are saved as
    `final`. Raises NotFinite for a loss that is not finite, Interrupted after Ctrl-C or SIGTERM.
    """
    precision = torch.bfloat16 if uses_bfloat16(settings.precision, device) else torch.float32
    started = time.monotonic() - state.seconds
    saved = time.monotonic()
    with compiled(state.method, settings, device), interruption() as stop:
        for batch in () if state.is_over(settings) else batches:
            step = state.step
            losses, norm = train_step(state, batch, settings, device, precision)
            figures = {**losses, "grad_norm": norm}
            if settings.on_nan == "stop":
                state.add(figures)
            elif is_finite(losses, norm):
                state.add(figures | {"skipped": norm.new_zeros(())})
            else:
                state.leave_out(figures, settings.steps)
            state.step, state.seconds = step + 1, time.monotonic() - started
            last = state.step == settings.steps

            if last or state.step % settings.log_every == 0:
                log(run, state, learning_rate(step, settings), progress)
            if validate and (last or state.step % settings.validate_every == 0):
                keep_best(run, state, validate)
            if state.is_over(settings):
                if state.window:
                    log(run, state, learning_rate(step, settings), progress)
                break
            # asked once a step: a signal that comes later is for the next one, in all processes
            asked = any_rank(stop.asked, device)
            minutes = (time.monotonic() - saved) / 60
            due = state.step % settings.save_every == 0 or minutes >= settings.save_minutes
            if due or asked:
                # weights that a broken loss has spoilt must not replace good ones
                finite_means(state.window, step)
                run.save_checkpoint(state.to_checkpoint())
                saved = time.monotonic()
            if asked:
                on_rank_zero(lambda: None)  # who ends earlier may have the one that saves killed
                raise Interrupted(
                    f"stopped at step {state.step} of {settings.steps}; the state is saved in "
                    f"{run.folder}"
                )
    run.save_checkpoint(state.to_checkpoint())
    run.save_weights("final", state.predicting().state_dict())


def log(run: RunFolder, state: TrainState, lr: float, progress: Log | None) -> None:
    """Write down the means of the steps since the last time, and tell `progress`.

    Of steps that were all left out there is no loss. Raises NotFinite.
    """
    means = finite_means(state.window, state.step - 1)
    state.window = {}
    losses = [mean for name, mean in means.items() if name not in ("grad_norm", "skipped")]
    loss = {"loss": sum(losses)} if losses else {}
    values = means | loss | {"lr": lr, "seconds": state.seconds}
    run.log(state.step - 1, values)
    if progress:
        progress(state.step, values)


def keep_best(run: RunFolder, state: TrainState, validate: Callable[[nn.Module], float]) -> None:
    """Score the predictor, and save its weights as `best` where none was better.

    A score of NaN says that the validation cases can choose nothing: the latest are kept.
    """
    score = validate(state.predicting().predictor().eval())
    if not math.isnan(score):
        run.log(state.step - 1, {"validation_dice": score})
        state.stale = 0 if score > state.best else state.stale + 1
    if not score <= state.best:
        state.best = state.best if math.isnan(score) else score
        run.save_weights("best", state.predicting().state_dict())


def train_step(
    state: TrainState,
    batch: Batch,
    settings: TrainSettings,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[dict[str, Tensor], Tensor]:
    """One optimiser step; the named losses and the gradient's norm before clipping.

    Both are tensors: a GPU is not waited for.
    """
    # stochastic depth and dropout are functions of seed and step
    torch.manual_seed(step_seed(settings.seed, DROPOUT, state.step))
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(state.step, settings)
    state.method.train()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        losses = state.method.losses(batch, state.step)
    state.optimiser.zero_grad(set_to_none=True)
    loss = functools.reduce(torch.add, losses.values())
    (loss / world()).backward()  # type: ignore[no-untyped-call]  # torch's own
    losses = sum_gradients(state.method, losses)
    norm = nn.utils.clip_grad_norm_(state.method.parameters(), settings.clip)
    # only where asked for, since a GPU is waited for here
    if settings.on_nan == "skip" and not is_finite(losses, norm):
        return losses, norm
    state.optimiser.step()
    state.method.after_step(state.step)
    if state.average:
        update_average(state.average, state.method, settings.average, state.step)
    return losses, norm


@contextmanager
def compiled(method: Method[Any], settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """In this block, where the settings ask for it, torch.compile translates how networks train.

    What they predict, and the names of their weights, stay as they are. Raises UserError for a CPU,
    whose own parts are faster than what comes out, and where torch cannot.
    """
    if not settings.torch_compile:
        yield
        return
    if device.type == "cpu":
        raise UserError("train.torch_compile=true needs a GPU; leave it out")
    try:
        for network in method.networks:
            network.forward = _while_training(network, torch.compile(network.forward))
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"train.torch_compile=true: torch cannot compile this network here ({first}); leave it "
            "out"
        ) from error
    finally:
        for network in method.networks:
            vars(network).pop("forward", None)


def _while_training(network: nn.Module, translated: Callable[..., Any]) -> Callable[..., Any]:
    plain = network.forward
    return lambda image: (translated if network.training else plain)(image)


def is_finite(losses: dict[str, Tensor], norm: Tensor) -> bool:
    """Whether a step may be taken. A GPU is waited for."""
    return bool(torch.isfinite(functools.reduce(torch.add, losses.values()).detach() + norm))


def broken(figures: dict[str, float]) -> list[str]:
    """Name and value of what is NaN or infinite."""
    return [f"{name} {value}" for name, value in figures.items() if not math.isfinite(value)]


def as_vector(parts: list[Tensor]) -> Tensor:
    """Figures, each of one step or of several, as one vector."""
    return torch.cat([part.reshape(-1) for part in parts])


def finite_means(window: dict[str, list[Tensor]], step: int) -> dict[str, float]:
    """Name -> mean of the values gathered, the last of them at `step`.

    Raises NotFinite for the first step that has one which is NaN or infinite, naming it: those
    after it follow from the weights that it spoilt.
    """
    table = {name: as_vector(parts).tolist() for name, parts in window.items()}
    for back in range(max(map(len, table.values()), default=0), 0, -1):
        last = {name: values[-back] for name, values in table.items() if back <= len(values)}
        if wrong := broken(last):
            at = step - back + 1
            raise NotFinite(
                at,
                f"not finite at step {at}: {', '.join(wrong)}; lower train.lr, or look at the "
                "scans of that step (train.on_nan=skip leaves such steps out)",
            )
    return {name: sum(values) / len(values) for name, values in table.items()}


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16, which unlike float16 needs no loss scaling.

    "auto" takes it where the GPU computes in it: before Ampere it is emulated, although torch says
    yes. Raises UserError for a CPU, where gradients in it were now and then not finite.
    """
    if precision == "bfloat16" and device.type == "cpu":
        raise UserError("train.precision=bfloat16 needs a GPU; leave it at auto")
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return precision == "bfloat16"


@dataclass
class Stop:
    """Whether the training was asked to stop."""

    asked: bool = False


@contextmanager
def interruption() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask for a stop after the step; a second SIGINT acts as usual.

    A second SIGTERM does not: a scheduler signals every process of a job, and torchrun, which is
    one of them, passes it on.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        stop.asked = True
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, ask)
    except ValueError:  # not the main thread: signals are somebody else's business
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
