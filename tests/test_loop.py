"""The loop with a fake method of fifteen lines: schedule, optimiser, logging, faults,
interruption.
"""

import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import described
from dkuxnet.core.config import Settings, TrainSettings
from dkuxnet.core.errors import UserError
from dkuxnet.core.seeds import step_seed
from dkuxnet.core.types import Batch, Output, Views
from dkuxnet.models.methods.average import update_average
from dkuxnet.models.methods.base import Method
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.loop import (
    Interrupted,
    NotFinite,
    compiled,
    finite_means,
    learning_rate,
    make_optimiser,
    make_state,
    train,
    train_step,
    uses_bfloat16,
)

CPU = torch.device("cpu")


class Line(nn.Module):
    """y = w x: a network small enough to follow by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1, bias=False)

    def forward(self, x):
        return Output(logits=self.conv(x))


class Normed(Line):
    """As V-Net, with running statistics and dropout."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(1)

    def forward(self, x):
        return Output(logits=self.norm(F.dropout(super().forward(x).logits, 0.5, self.training)))


class Fit(Method):
    """Pulls the network towards doubling its input; dropout makes it depend on the random state of
    the step.
    """

    def losses(self, batch, step):
        strong = batch.labelled.strong
        noise = torch.rand(()) * 1e-2
        error = (self.networks[0](strong).logits - (2 + noise) * strong).square().mean()
        return {"fit": error, "noise": noise}

    def after_step(self, step):
        self.seen = [*getattr(self, "seen", []), step]


def batches(first: int, last: int):
    for step in range(first, last):
        image = torch.randn(1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(step))
        yield Batch(Views(image, image, torch.zeros(1, 2, 2, 2, dtype=torch.long)))


def make(settings: TrainSettings, network: type[Line] = Line):
    torch.manual_seed(0)
    return make_state(Fit([network()], Method.Options(), None), settings)


def run_folder(path) -> RunFolder:
    return RunFolder.create(path, Settings(), described.manifest())


def test_the_loop_learns_logs_and_saves(tmp_path):
    settings = TrainSettings(
        steps=60, lr=0.1, warm_up_steps=5, log_every=20, weight_decay=0, save_every=1000
    )
    state, run, shown = make(settings), run_folder(tmp_path / "run"), []
    train(
        state, batches(0, 60), settings, run, CPU, progress=lambda step, values: shown.append(step)
    )
    assert state.method.networks[0].conv.weight.item() == pytest.approx(2, abs=0.15)
    assert state.method.seen == list(range(60))
    rows = run.metrics()
    assert [row["step"] for row in rows] == [19, 39, 59] and shown == [20, 40, 60]
    assert rows[0]["loss"] == pytest.approx(rows[0]["fit"] + rows[0]["noise"])
    assert rows[-1]["lr"] == pytest.approx(learning_rate(59, settings))
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert torch.equal(
        run.load_weights("final")["networks.0.conv.weight"], state.method.networks[0].conv.weight
    )
    assert run.load_checkpoint()["step"] == 60


def test_a_training_ends_with_its_patience_and_goes_on_only_where_it_is_lengthened(tmp_path):
    settings = TrainSettings(steps=60, validate_every=5, log_every=20, patience=3, save_every=100)
    scores = [0.1, 0.3, math.nan, 0.2, 0.3, 0.2]  # a score as good is no better
    state, run, given = make(settings), run_folder(tmp_path / "run"), iter(scores)
    state.method.predictor = lambda: SimpleNamespace(eval=lambda: None)
    train(state, batches(0, 60), settings, run, CPU, lambda _: next(given))
    assert (state.step, state.stale, state.best) == (30, 3, 0.3)
    assert [row["step"] for row in run.metrics() if "loss" in row] == [19, 29]
    assert run.load_weights("final") and run.load_checkpoint()["stale"] == 3
    again = make(settings)
    again.restore(run.load_checkpoint())
    train(again, batches(30, 60), settings, run, CPU, lambda _: 1.0)
    assert again.step == 30  # a resumed one is at its end too
    old = {key: value for key, value in run.load_checkpoint().items() if key != "stale"}
    again.restore(old)  # of before
    assert again.stale == 0 and not again.is_over(settings)


def test_the_learning_rate_warms_up_then_decays_by_the_absolute_step():
    settings = TrainSettings(steps=100, lr=1.0, warm_up_steps=10, poly=0.9)
    assert learning_rate(0, settings) == pytest.approx(0.1) and learning_rate(
        9, settings
    ) == pytest.approx(1.0)
    assert learning_rate(10, settings) == 1.0
    assert learning_rate(55, settings) == pytest.approx(0.5**0.9)
    assert 0 < learning_rate(99, settings) < 0.02 and learning_rate(100, settings) == 0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_biases_and_queries_do_not_decay(name):
    module = nn.ModuleDict({"conv": nn.Conv3d(1, 2, 1), "norm": nn.GroupNorm(1, 2)})
    module.queries = nn.Parameter(torch.randn(3, 4))
    optimiser = make_optimiser(module, TrainSettings(optimiser=name, weight_decay=0.5))
    decayed = [
        id(p) for group in optimiser.param_groups if group["weight_decay"] for p in group["params"]
    ]
    assert decayed == [id(module["conv"].weight)]
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 5


def test_a_gradient_is_clipped(tmp_path):
    settings = TrainSettings(
        steps=1, optimiser="sgd", momentum=0, lr=1.0, warm_up_steps=0, clip=0.5, weight_decay=0
    )
    state = make(settings)
    before = state.method.networks[0].conv.weight.item()
    train(state, batches(0, 1), settings, run_folder(tmp_path / "run"), CPU)
    assert abs(state.method.networks[0].conv.weight.item() - before) == pytest.approx(0.5, abs=1e-3)


def test_a_loss_that_is_not_finite_stops_with_its_name_and_keeps_the_last_state(tmp_path):
    settings = TrainSettings(steps=4, log_every=1, save_every=1)

    class Broken(Fit):
        def losses(self, batch, step):
            losses = super().losses(batch, step)
            return losses | {"noise": losses["noise"] * (float("nan") if step == 2 else 1)}

    state, run = (
        make_state(Broken([Line()], Method.Options(), None), settings),
        run_folder(tmp_path / "run"),
    )
    with pytest.raises(UserError, match=r"not finite at step 2: noise nan"):
        train(state, batches(0, 4), settings, run, CPU)
    assert run.load_checkpoint()["step"] == 2
    with pytest.raises(UserError, match="fit inf"):
        finite_means({"fit": [torch.tensor(math.inf)], "ok": [torch.tensor(1.0)]}, 0)


def test_weights_that_a_broken_loss_has_spoilt_are_never_saved(tmp_path):
    settings = TrainSettings(steps=8, log_every=100, save_every=2)

    class Broken(Fit):
        def losses(self, batch, step):
            losses = super().losses(batch, step)
            return {"fit": losses["fit"] * (float("nan") if step == 3 else 1)}

    run = run_folder(tmp_path / "run")
    with pytest.raises(UserError, match="not finite"):
        train(
            make_state(Broken([Line()], Method.Options(), None), settings),
            batches(0, 8),
            settings,
            run,
            CPU,
        )
    checkpoint = run.load_checkpoint()
    assert (
        checkpoint["step"] == 2
        and torch.isfinite(checkpoint["method"]["networks.0.conv.weight"]).all()
    )


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_can_be_left_out(tmp_path, broken):
    """Weights, optimiser and average are as if that step had not been; the log counts it, its
    figures stay finite.
    """

    class Broken(Fit):
        def losses(self, batch, step):
            fit = super().losses(batch, step)["fit"]
            if step != 2:
                return {"fit": fit}
            weight = self.networks[0].conv.weight.sum()
            return {
                "fit": fit * float("nan")
                if broken == "loss"
                else fit + (weight - weight.detach()).sqrt()
            }

    states, taken = {}, []
    for name, method in (("broken", Broken), ("sound", Fit)):
        settings = TrainSettings(
            steps=4, log_every=4, warm_up_steps=0, poly=0, average=0.5, clip=1e3, on_nan="skip"
        )
        torch.manual_seed(0)
        states[name] = make_state(method([Line()], Method.Options(), None), settings)
        run = run_folder(tmp_path / name)
        for step in range(4):
            if name == "sound" and step == 2:
                states[name].step = 3
                continue
            [batch] = batches(step, step + 1)
            losses, _ = train_step(states[name], batch, settings, CPU, torch.float32)
            states[name].step += 1
            taken += [losses["fit"].item()] if name == "broken" and step != 2 else []
    torch.manual_seed(0)
    whole = make_state(Broken([Line()], Method.Options(), None), settings)
    train(whole, batches(0, 4), settings, run, CPU)
    [row] = [row for row in run.metrics() if "loss" in row]
    assert row["skipped"] == 0.25 and math.isfinite(row["grad_norm"])
    assert row["loss"] == row["fit"] == pytest.approx(sum(taken) / 3), "over the steps taken"
    for part in ("method", "average"):
        ours, theirs = (getattr(states[name], part).parameters() for name in ("broken", "sound"))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("bad", "steps", "at", "said"),
    [
        (lambda step: True, 3, 2, "3 steps in a row"),
        (lambda step: step >= 7, 90, 56, "50 steps in a row"),
        (lambda step: step >= 7 and step % 4 == 0, 600, 404, "100 of the last 500 steps"),
        (lambda step: step % 6 == 0, 600, None, ""),  # 17 %: some go on
    ],
)
def test_a_training_that_leaves_out_too_much_ends_and_says_so(tmp_path, bad, steps, at, said):
    class Broken(Fit):
        def losses(self, batch, step):
            losses = super().losses(batch, step)
            return losses | ({"fit": losses["fit"] * float("nan")} if bad(step) else {})

    settings = TrainSettings(steps=steps, log_every=5, on_nan="skip", save_every=1000)

    def go_on(state, run, first: int) -> None:
        train(state, batches(first, steps), settings, run, CPU)

    run, state = (
        run_folder(tmp_path / "run"),
        make_state(Broken([Line()], Method.Options(), None), settings),
    )
    if at is None:
        go_on(state, run, 0)
        return
    with pytest.raises(NotFinite, match=f"^{said} were .* at step {at} fit nan, grad_norm nan; "):
        go_on(state, run, 0)
    assert all("loss" not in row for row in run.metrics() if row["skipped"] == 1)
    if steps > 3:  # what was left out is counted over a resume too
        state = make_state(Broken([Line()], Method.Options(), None), settings)
        part = settings.model_copy(update={"steps": at - 3})
        train(state, batches(0, at - 3), part, run, CPU)
        again = make_state(Broken([Line()], Method.Options(), None), settings)
        again.restore(run.load_checkpoint())
        with pytest.raises(NotFinite, match=f"at step {at} "):
            go_on(again, run, at - 3)


def test_minutes_ask_for_a_checkpoint_too(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 25))  # seconds; every look at it is 25 later
    monkeypatch.setattr(
        "dkuxnet.training.loop.time", SimpleNamespace(monotonic=lambda: float(next(clock)))
    )
    saved = []
    run = run_folder(tmp_path / "run")
    monkeypatch.setattr(run, "save_checkpoint", lambda state: saved.append(state["step"]))
    settings = TrainSettings(steps=9, save_every=1000, save_minutes=2, log_every=100)
    train(make(settings), batches(0, 9), settings, run, CPU)
    assert len(saved) > 2 and saved[0] < 9 and saved[-1] == 9


@pytest.mark.parametrize(
    "signals, network",
    [([signal.SIGINT], Line), ([signal.SIGTERM], Normed), ([signal.SIGTERM] * 2, Line)],
    ids=["Ctrl-C", "SIGTERM", "from SLURM, and passed on by torchrun"],
)
def test_an_interruption_saves_and_the_resumed_run_ends_alike(tmp_path, signals, network):
    # unclipped: of a single weight's gradient, clipping would keep the sign alone and hide the
    # state of the generator
    settings = TrainSettings(
        steps=10, lr=0.05, warm_up_steps=2, log_every=2, save_every=1000, average=0.9, clip=1e3
    )
    whole = make(settings, network)
    train(whole, batches(0, 10), settings, run_folder(tmp_path / "whole"), CPU)

    stopped, run = make(settings, network), run_folder(tmp_path / "stopped")

    def interrupted():
        for step, batch in enumerate(batches(0, 10)):
            for number in signals if step == 4 else []:
                os.kill(os.getpid(), number)
            yield batch

    handler = signal.getsignal(signals[0])
    with pytest.raises(Interrupted, match="step 5 of 10"):
        train(stopped, interrupted(), settings, run, CPU)
    assert signal.getsignal(signals[0]) == handler

    resumed = make(settings, network)
    resumed.restore(run.load_checkpoint())
    run.rewind_metrics(resumed.step)
    train(resumed, batches(5, 10), settings, run, CPU)
    for key, value in whole.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[key])
        assert torch.equal(whole.average.state_dict()[key], resumed.average.state_dict()[key])


@pytest.mark.parametrize("early", [True, False], ids=["while all ask", "after they asked"])
def test_a_signal_after_all_processes_asked_stops_them_at_the_next_step(
    tmp_path, monkeypatch, early
):
    """One that stopped at once would leave the others waiting for it, without end."""
    settings = TrainSettings(steps=10, log_every=2, save_every=1)
    run, save = run_folder(tmp_path / "run"), RunFolder.save_checkpoint
    signals = iter([signal.SIGTERM])

    def all_ask(flag, device):
        if early:
            for number in signals:
                os.kill(os.getpid(), number)
        return flag

    def saves(self, state):
        for number in signals:
            os.kill(os.getpid(), number)
        save(self, state)

    monkeypatch.setattr("dkuxnet.training.loop.any_rank", all_ask)
    monkeypatch.setattr(RunFolder, "save_checkpoint", saves)
    with pytest.raises(Interrupted, match="step 2 of 10"):
        train(make(settings), batches(0, 10), settings, run, CPU)


def test_a_checkpoint_of_something_else_is_refused():
    state = make(TrainSettings())
    checkpoint = state.to_checkpoint()
    other = make_state(Fit([Line(), Line()], Method.Options(), None), TrainSettings())
    with pytest.raises(UserError, match="another network"):
        other.restore(checkpoint)


def test_validation_keeps_the_best_weights(tmp_path):
    settings = TrainSettings(steps=6, validate_every=2, log_every=10, lr=0.1)
    state, run = make(settings), run_folder(tmp_path / "run")
    scores, seen = iter([0.2, 0.9, 0.5]), []

    def validate(predictor):
        assert not predictor.training
        seen.append(predictor.conv.weight.clone())
        return next(scores)

    train(state, batches(0, 6), settings, run, CPU, validate=validate)
    assert torch.equal(run.load_weights("best")["networks.0.conv.weight"], seen[1])
    assert [row["validation_dice"] for row in run.metrics() if "validation_dice" in row] == [
        0.2,
        0.9,
        0.5,
    ]


def test_the_average_moves_towards_the_model():
    average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    distance = (average.weight - model.weight).abs().item()
    update_average(average, model, 0.9, step=1000)
    assert (average.weight - model.weight).abs().item() == pytest.approx(0.9 * distance, rel=1e-4)
    update_average(average, model, 0.99, step=0)  # early, the average forgets fast
    assert (average.weight - model.weight).abs().item() == pytest.approx(0.09 * distance, rel=1e-3)


def test_the_average_of_a_short_training_has_forgotten_where_it_began():
    average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(average.weight), nn.init.ones_(model.weight)
    for step in range(20):
        update_average(average, model, 0.9999, step)
    assert average.weight.item() == pytest.approx(1, abs=1e-5)


def test_seeds_of_steps_differ():
    seeds = {
        step_seed(seed, stream, step)
        for seed in range(10)
        for stream in range(3)
        for step in range(100)
    }
    assert len(seeds) == 3000 and all(0 <= seed < 2**63 for seed in seeds)


def test_networks_are_translated_where_they_train_and_nowhere_else(monkeypatch):
    settings, gpu, calls = TrainSettings(torch_compile=True), torch.device("cuda"), []

    def translated(forward):
        return lambda image: calls.append("translated") or forward(image)

    monkeypatch.setattr(torch, "compile", translated)
    method, image = make(settings).method, torch.ones(1, 1, 2, 2, 2)
    names = list(method.state_dict())
    with compiled(method, settings, gpu):
        expected = method.networks[0](image).logits
        method.eval()
        assert torch.equal(method.networks[0](image).logits, expected)
        assert list(method.state_dict()) == names
    method.train()
    assert torch.equal(method.networks[0](image).logits, expected) and calls == ["translated"]
    with compiled(method, TrainSettings(), CPU):
        method.networks[0](image)
    with pytest.raises(UserError, match="needs a GPU"), compiled(method, settings, CPU):
        pass
    assert calls == ["translated"]


def test_precision_follows_device_and_wish():
    assert not uses_bfloat16("auto", CPU) and not uses_bfloat16("float32", CPU)
    assert uses_bfloat16("bfloat16", torch.device("cuda"))
    with pytest.raises(UserError, match="needs a GPU; leave it at auto"):
        uses_bfloat16("bfloat16", CPU)
