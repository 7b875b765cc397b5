"""Every method of the table keeps the contract; the paper's terms, each by its switch."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn

from dkuxnet.core.config import TrainSettings, load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.core.types import Batch, NetworkShape, Views
from dkuxnet.models.build import build_method
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.average import update_average
from dkuxnet.models.methods.base import ramp_up
from dkuxnet.models.networks.grouping import default_groups
from dkuxnet.training.loop import make_state
from tiny import dotted

SHAPE = NetworkShape(1, 2, default_groups(["background", "organ"], 8))
TINY = {
    "network.name": "dk-uxnet-tiny",
    "network.widths": [8, 8, 8, 8],
    "network.query_channels": 16,
    "network.layer_scale": 0.1,
}
# settings under which a method's unlabelled terms count at any step, however unsure the untrained
# network is
PAPER = {"method__decay": 0.0, "method__view_b": "weak"}  # dual mutual learning as its paper has it
IN_FORCE = {
    "dual-mutual": {"method__ramp_up_steps": 0},
    "fixmatch": {"method__threshold": 0.0},
    "unimatch": {"method__threshold": 0.0},
    "crossmatch": {"method__threshold": 0.0},
    "ad-mt": {"method__threshold": 0.0, "method__ramp_up_steps": 0},
    "bcp": {"method__pretrain_steps": 0},
    "ua-mt": {"method__threshold_steps": 0},
}


def make_method(name: str, **overrides):
    settings = load_settings(overrides=TINY | {"method.name": name} | dotted(overrides))
    return build_method(settings, SHAPE, network="dk-uxnet-tiny")


def make_batch(seed: int = 0, unlabelled: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def views(label: bool) -> Views:
        image = torch.randn(2, 1, 32, 32, 16, generator=generator)
        noise = 0.1 * torch.randn(image.shape, generator=generator)
        return Views(image, image + noise, (image[:, 0] > 0).long() if label else None)

    return Batch(views(True), views(False) if unlabelled else None)


def gradients(method: nn.Module, losses) -> dict[str, torch.Tensor | None]:
    method.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    # a teacher's are frozen
    return {name: p.grad for name, p in method.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_every_network_receives_a_gradient(name):
    method = make_method(name)
    grads = gradients(method, method.losses(make_batch(), step=10))
    assert [key for key, g in grads.items() if g is None or not g.abs().sum() > 0] == []


@pytest.mark.parametrize("name", METHODS)
def test_the_average_of_weights_holds_all_of_a_method_and_predicts_by_itself(name):
    method = make_method(name, network__depths=[1, 1, 1, 1])
    state = make_state(method, TrainSettings(average=0.9))
    before = {key: value.clone() for key, value in state.method.state_dict().items()}
    for value in state.method.state_dict().values():  # as a step would
        value.copy_(value + 1)
    update_average(state.average, state.method, 0.9, step=1000)
    for key, value in state.average.state_dict().items():
        followed = (
            before[key] + 0.1 if value.is_floating_point() else state.method.state_dict()[key]
        )
        torch.testing.assert_close(value, followed, msg=key)
    predictor, theirs = state.predicting().predictor(), set(state.average.parameters())
    assert set(predictor.parameters()) <= theirs
    assert not any(parameter.requires_grad for parameter in predictor.parameters())
    assert theirs.isdisjoint(state.method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_the_options_are_those_that_the_type_checker_sees(name):
    method = lookup(METHODS, name, "method")
    own = method.__annotations__.get("options")  # of a method that extends another one
    assert method.Options is (own or get_args(method.__orig_bases__[0])[0])


def test_a_batch_without_label_says_so():
    image = torch.zeros(1, 1, 2, 2, 2)
    with pytest.raises(ValueError, match="no label"):
        _ = Batch(Views(image, image)).label


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_finite_scalars_and_the_batch_stays_as_it_was(name):
    method, batch = make_method(name), make_batch()
    before = copy.deepcopy(batch)
    losses = method.losses(batch, step=0)
    assert losses and all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    for part, kept in ((batch.labelled, before.labelled), (batch.unlabelled, before.unlabelled)):
        assert torch.equal(part.weak, kept.weak) and torch.equal(part.strong, kept.strong)
    assert torch.equal(batch.labelled.label, before.labelled.label)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_without_unlabelled_patches(name):
    losses = make_method(name).losses(make_batch(unlabelled=False), step=10)
    assert torch.isfinite(sum(losses.values()))


@pytest.mark.parametrize("name", [n for n in METHODS if n != "supervised"])
def test_unlabelled_patches_reach_the_gradients(name):
    """Other unlabelled patches, other gradients: also in the branch that sees the strong view."""
    method, batch, other = make_method(name, **IN_FORCE.get(name, {})), make_batch(0), make_batch(0)
    other.unlabelled = make_batch(1).unlabelled
    results = []
    for patches in (batch, other):
        torch.manual_seed(0)  # the same boxes and noise for both
        results.append(gradients(method, method.losses(patches, step=1000)))
    one, two = results
    assert any(
        not torch.allclose(one[k], two[k], rtol=1e-3) for k in one if k.startswith("networks.0")
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_predictor_answers_alike_for_a_case_alone_and_in_company(name):
    predictor = make_method(name).predictor().eval()
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            predictor(image).logits[:1], predictor(image[:1]).logits, rtol=1e-4, atol=1e-4
        )


def test_supervised_ignores_unlabelled_patches():
    method = make_method("supervised")
    one, two = make_batch(0), make_batch(0)
    two.unlabelled = make_batch(1).unlabelled
    assert not lookup(METHODS, "supervised", "method").uses_unlabelled
    assert all(
        torch.equal(a, b)
        for a, b in zip(method.losses(one, 0).values(), method.losses(two, 0).values(), strict=True)
    )


def test_branches_start_apart_and_the_same_seed_starts_alike():
    method, again = make_method("dual-mutual"), make_method("dual-mutual")
    a, b = (network.state_dict() for network in method.networks)
    assert not torch.equal(a["kmax.queries"], b["kmax.queries"])
    assert all(
        torch.equal(x, y)
        for x, y in zip(method.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("weight, term", [("w_qd", "qd"), ("w_segc", "segc"), ("w_qdc", "qdc")])
def test_each_term_has_its_switch(weight, term):
    on = make_method("dual-mutual", **PAPER, method__ramp_up_steps=0).losses(make_batch(), 0)
    off = make_method(
        "dual-mutual", **PAPER, method__ramp_up_steps=0, **{f"method__{weight}": 0}
    ).losses(make_batch(), 0)
    assert set(on) == {"seg", "qd", "segc", "qdc"} and set(on) - set(off) == {term}


def test_each_consistency_looks_at_labelled_and_unlabelled_patches():
    method = make_method("dual-mutual", **PAPER, method__ramp_up_steps=0)
    base = method.losses(make_batch(), 0)
    for part in ("labelled", "unlabelled"):
        batch = make_batch()
        getattr(batch, part).strong = getattr(make_batch(5), part).strong
        changed = method.losses(batch, 0)
        assert not torch.allclose(base["segc"], changed["segc"]) and not torch.allclose(
            base["qdc"], changed["qdc"]
        )


def test_branch_a_sees_strong_and_branch_b_weak():
    method, batch = make_method("dual-mutual", **PAPER), make_batch()
    seen = []
    for network in method.networks:
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.losses(batch, 0)
    assert torch.equal(seen[0], torch.cat([batch.labelled.strong, batch.unlabelled.strong]))
    assert torch.equal(seen[1], torch.cat([batch.labelled.weak, batch.unlabelled.weak]))


def test_the_ramp_rises_from_nearly_0_to_1():
    assert ramp_up(0, 100) == pytest.approx(0.0067, abs=1e-3)
    assert (
        ramp_up(0, 100)
        < ramp_up(50, 100)
        < ramp_up(100, 100)
        == 1
        == ramp_up(1000, 100)
        == ramp_up(0, 0)
    )
    method = make_method("dual-mutual", **PAPER, method__ramp_up_steps=100)
    early, late = (method.losses(make_batch(), step)["segc"] for step in (0, 100))
    assert early.item() == pytest.approx(late.item() * ramp_up(0, 100), rel=1e-4)


def test_the_mean_predictor_is_the_mean_of_probabilities_and_measures_disagreement():
    method = make_method("dual-mutual", **PAPER)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        output = method.predictor().eval()(image)
        a, b = (network.eval()(image).logits.softmax(1) for network in method.networks)
    torch.testing.assert_close(output.logits.softmax(1), (a + b) / 2, rtol=1e-4, atol=1e-5)
    assert (
        output.uncertainty.min() >= 0
        and output.uncertainty.max() <= 1
        and output.uncertainty.max() > 0
    )
    method.networks[1].load_state_dict(method.networks[0].state_dict())
    with torch.no_grad():
        assert method.predictor().eval()(image).uncertainty.abs().max() < 1e-5


@pytest.mark.parametrize("predict, index", [("a", 0), ("b", 1)])
def test_either_branch_can_answer(predict, index):
    method = make_method("dual-mutual", **PAPER, method__predict=predict)
    assert method.predictor() is method.networks[index]


def test_a_network_without_queries_is_refused_until_the_query_terms_are_off():
    settings = {"network.name": "uxnet-tiny", "method.name": "dual-mutual"}

    def make(**more):
        return build_method(load_settings(overrides=settings | more), SHAPE, network="")

    with pytest.raises(UserError, match="has no queries"):
        make()
    losses = make(**{"method.w_qd": 0, "method.w_qdc": 0}).losses(make_batch(), 0)
    assert set(losses) == {"seg", "segc"}


def test_an_unknown_method_option_names_its_near_match():
    with pytest.raises(UserError, match="'w_seg'; did you mean 'w_segc'"):
        make_method("dual-mutual", method__w_seg=1)
