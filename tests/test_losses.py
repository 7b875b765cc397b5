"""Losses by hand, their floors, and where their gradients go."""

import math

import pytest
import torch
import torch.nn.functional as F

from dkuxnet.core.types import Group, Output
from dkuxnet.models.methods import losses

GROUPS = (Group("background", (0,), 2), Group("organ", (1, 2), 2))


def as_prob(*shares: float) -> torch.Tensor:
    """One voxel's distribution as (1, K, 1, 1, 1)."""
    return torch.tensor(shares).view(1, -1, 1, 1, 1)


def test_a_class_that_no_patch_has_is_not_taught_to_be_nowhere_by_the_dice_term():
    """One that some patch has pulls, there and where it is not."""
    label = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    label[0, :2] = 1

    def pull(label: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(2, 3, 4, 4, 4, requires_grad=True)
        prob = logits.softmax(1)
        prob.retain_grad()
        losses.soft_dice_loss(prob, losses.one_hot(label, 3)).backward()
        return prob.grad[:, 2].abs().amax(dim=(1, 2, 3))

    assert (pull(label) < 1e-7).all()
    label[0, 3, 3, 3] = 2
    assert (pull(label) > 1e-4).all()


def test_soft_dice_by_hand():
    prob = torch.tensor([[0.0, 1.0, 0.5, 0.0]]).view(1, 1, 4, 1, 1)
    prob = torch.cat([1 - prob, prob], dim=1)
    target = losses.one_hot(torch.tensor([0, 1, 1, 0]).view(1, 4, 1, 1), 2)
    assert losses.soft_dice_loss(prob, target).item() == pytest.approx(
        1 - 2 * 1.5 / (1.5 + 2), abs=1e-4
    )


def test_segmentation_loss_is_monai_s_dice_ce():
    from monai.losses import DiceCELoss

    logits, label = torch.randn(2, 3, 6, 5, 4), torch.randint(0, 3, (2, 6, 5, 4))
    theirs = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(
        logits, label[:, None]
    )
    assert losses.segmentation_loss(logits, label).item() == pytest.approx(theirs.item(), abs=1e-4)


def some_logits():
    torch.manual_seed(0)
    return (
        torch.randn(2, 3, 6, 5, 4),
        torch.randint(0, 3, (2, 6, 5, 4)),
        torch.rand(2, 6, 5, 4) < 0.7,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_a_form_that_says_nothing_is_the_plain_loss(masked):
    logits, label, mask = some_logits()
    mask = mask.float() if masked else None
    plain = losses.segmentation_loss(logits, label, mask)
    same = losses.formed_loss(logits, label, mask, losses.LossForm((1.0, 1.0, 1.0)))
    assert same.item() == pytest.approx(plain.item(), abs=1e-5)


def test_class_weights_are_those_of_torch_and_weigh_the_dice_of_classes():
    logits, label, _ = some_logits()
    weights = (0.5, 1.0, 4.0)
    found = losses.segmentation_loss(logits, label, None, losses.LossForm(weights))
    entropy = F.cross_entropy(logits, label, weight=torch.tensor(weights))
    prob, target = logits.softmax(1), losses.one_hot(label, 3)
    one, two = (losses.soft_dice_loss(prob[:, [0, k]], target[:, [0, k]]).item() for k in (1, 2))
    assert found.item() == pytest.approx(entropy.item() + (one + 4 * two) / 5, abs=1e-5)


def test_focal_and_tversky_by_hand():
    prob = torch.tensor([0.9, 0.2, 0.6]).view(1, 3, 1, 1)  # of class 1; two voxels have it
    logits = torch.stack([(1 - prob).log(), prob.log()], dim=1)
    label = torch.tensor([1, 1, 0]).view(1, 3, 1, 1)
    form = losses.LossForm(focal=2.0, tversky=0.7)
    entropy = sum((1 - p) ** 2 * -math.log(p) for p in (0.9, 0.2, 0.4)) / 3
    index = 1.1 / (1.1 + 0.3 * 0.6 + 0.7 * 0.9)
    found = losses.segmentation_loss(logits, label, None, form)
    assert found.item() == pytest.approx(entropy + 1 - index, abs=1e-4)


def test_a_focal_loss_is_finite_where_nothing_is_to_be_learnt():
    logits = torch.tensor([50.0, -50.0]).view(1, 2, 1, 1, 1).requires_grad_()
    label = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    losses.segmentation_loss(logits, label, None, losses.LossForm(focal=0.5)).backward()
    assert torch.isfinite(logits.grad).all()


def test_query_loss_is_the_mean_log_of_the_right_group():
    prob = torch.stack([torch.tensor([0.8, 0.2]), torch.tensor([0.4, 0.6])], dim=1).view(
        1, 2, 2, 1, 1
    )
    merged = torch.tensor([0, 1]).view(1, 2, 1, 1)
    loss = losses.query_loss(prob, losses.one_hot(merged, 2))
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2, rel=1e-5)


def test_query_loss_does_not_grow_with_the_patch_and_survives_a_zero():
    small = losses.query_loss(as_prob(0.0, 1.0), as_prob(1.0, 0.0))
    large = losses.query_loss(
        as_prob(0.0, 1.0).expand(1, 2, 8, 8, 8), as_prob(1.0, 0.0).expand(1, 2, 8, 8, 8)
    )
    assert torch.isfinite(small) and small.item() == pytest.approx(large.item(), rel=1e-5)


def test_query_loss_at_a_coarse_scale_weighs_the_shares_of_its_block():
    merged = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    merged[0, 0, 0, 0] = (
        1  # an eighth of the block: sampling one voxel of it would lose or inflate it
    )
    expected = -(7 / 8 * math.log(0.7) + 1 / 8 * math.log(0.3))
    assert losses.query_loss(as_prob(0.7, 0.3), losses.one_hot(merged, 2)).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_merging_groups_leaves_the_label_alone_and_refuses_a_class_outside():
    label = torch.tensor([0, 1, 2]).view(1, 3, 1, 1)
    before = label.clone()
    assert losses.merge_label(label, GROUPS).flatten().tolist() == [0, 1, 1]
    assert torch.equal(label, before)
    with pytest.raises(ValueError, match="class 3"):
        losses.merge_label(label + 1, GROUPS)


def test_an_output_without_queries_has_no_query_loss():
    label = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="no queries"):
        losses.query_loss_all(Output(torch.zeros(1, 2, 1, 1, 1)), label, GROUPS)


def test_layers_count_in_the_query_loss():
    label = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    good, bad = as_prob(0.9, 0.1).expand(1, 2, 4, 4, 4), as_prob(0.1, 0.9).expand(1, 2, 2, 2, 2)
    logits = torch.zeros(1, 2, 4, 4, 4)
    without = losses.query_loss_all(Output(logits, good), label, GROUPS)
    with_layers = losses.query_loss_all(Output(logits, good, (bad, bad)), label, GROUPS)
    assert with_layers.item() == pytest.approx(without.item() - math.log(0.1), rel=1e-4)


@pytest.mark.parametrize(
    "form, expected",
    [
        ("mse", ((0.7 - 0.4) ** 2 + (0.3 - 0.6) ** 2) / 2),
        ("kl", (0.4 * math.log(0.4 / 0.7) + 0.6 * math.log(0.6 / 0.3))),
        ("pseudo", -math.log(0.3)),
        ("pseudo-dice", 1 - 2 * 0.3 / (0.3 + 1)),
        ("pseudo-both", -math.log(0.3) + 1 - 2 * 0.3 / (0.3 + 1)),
    ],
)
def test_forms_by_hand(form, expected):
    value = losses.FORMS[form](as_prob(0.7, 0.3), as_prob(0.4, 0.6), torch.ones(1, 1, 1, 1))
    assert value.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("form", losses.FORMS)
@pytest.mark.parametrize("gradient, weak_learns", [("both", True), ("strong", False)])
def test_gradients_reach_the_branches_that_should_learn(form, gradient, weak_learns):
    strong, weak = (torch.randn(2, 3, 4, 4, 4, requires_grad=True) for _ in range(2))
    losses.consistency_loss(strong.softmax(1), weak.softmax(1), form, gradient).backward()
    assert strong.grad.abs().sum() > 0
    assert (weak.grad is not None and bool(weak.grad.abs().sum() > 0)) == weak_learns


@pytest.mark.parametrize("form", ["mse", "kl"])
def test_agreement_costs_nothing_and_the_symmetric_form_is_symmetric(form):
    a, b = torch.randn(1, 3, 4, 4, 4).softmax(1), torch.randn(1, 3, 4, 4, 4).softmax(1)
    assert losses.consistency_loss(a, a, form).item() == pytest.approx(0, abs=1e-7)
    there, back = losses.consistency_loss(a, b, form), losses.consistency_loss(b, a, form)
    assert there.item() == pytest.approx(back.item(), rel=1e-5) and there > 0


def test_the_threshold_leaves_unsure_voxels_out():
    student = torch.stack([torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])], 1).view(
        1, 2, 2, 1, 1
    )
    teacher = torch.stack([torch.tensor([0.99, 0.01]), torch.tensor([0.6, 0.4])], 1).view(
        1, 2, 2, 1, 1
    )
    value = losses.consistency_loss(student, teacher, "pseudo", "strong", threshold=0.9)
    assert value.item() == pytest.approx(-math.log(0.5) / 2, rel=1e-4)


def test_cross_entropy_part_is_torch_s():
    logits, label = torch.randn(1, 2, 3, 3, 3), torch.randint(0, 2, (1, 3, 3, 3))
    dice = losses.soft_dice_loss(logits.softmax(1), losses.one_hot(label, 2))
    assert losses.segmentation_loss(logits, label).item() == pytest.approx(
        (dice + F.cross_entropy(logits, label)).item()
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda prob: losses.query_loss(prob, as_prob(1.0, 0.0)),
        lambda prob: losses.FORMS["pseudo"](prob, as_prob(0.9, 0.1), torch.ones(1, 1, 1, 1)),
        lambda prob: losses.FORMS["kl"](prob, as_prob(0.9, 0.1), torch.ones(1, 1, 1, 1)),
    ],
)
def test_a_voxel_that_is_confidently_wrong_still_learns(loss):
    logits = torch.tensor([-16.0, 0.0]).view(1, 2, 1, 1, 1).requires_grad_()
    loss(logits.softmax(1)).backward()
    assert logits.grad[0, 0].item() < -0.05
