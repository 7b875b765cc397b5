"""A share of a batch, in one process: its rows, its draws, and the sums that cross it."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dkuxnet.core.config import ViewSettings, load_settings
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.shares import Share, batch_mean, batch_sum, own_patches, taking
from dkuxnet.models.methods.losses import PLAIN, LossForm, query_loss_all, segmentation_loss
from dkuxnet.models.methods.mixing import cutmix, random_boxes
from dkuxnet.models.methods.streams import drop_channels
from dkuxnet.models.networks.blocks import StochasticDepth
from dkuxnet.training import job
from dkuxnet.training.views import change_intensities

COUNT = 3


def image(patches: int = 6) -> torch.Tensor:
    return torch.randn(patches, 2, 4, 6, 5, generator=torch.Generator().manual_seed(1))


STRONG = ViewSettings(
    contrast=1.3, brightness=0.2, gamma=1.4, noise=0.2, bias_field=0.3, blur=1.0, cutout=0.4
)
DRAWS = {
    "intensities": lambda part: change_intensities(part, STRONG, (1, 1, 1)),
    "boxes": lambda part: random_boxes(len(part), (4, 6, 5), 0.5, part.device),
    "channels": lambda part: drop_channels(part, 0.5),
    "depth": StochasticDepth(0.5).train(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_what_is_drawn_for_a_share_is_drawn_as_for_its_rows_of_the_whole_batch(draw):
    torch.manual_seed(0)
    whole, after = draw(image()), torch.rand(1)
    for index in range(COUNT):
        torch.manual_seed(0)
        with taking(Share(index, COUNT)):
            part = draw(image()[index::COUNT])
        torch.testing.assert_close(part, whole[index::COUNT])
        assert torch.equal(torch.rand(1), after)  # the next draw is the same in all


def test_channels_are_dropped_as_torch_drops_them():
    torch.manual_seed(0)
    ours = drop_channels(image(), 0.3)
    torch.manual_seed(0)
    assert torch.equal(ours, F.dropout3d(image(), 0.3)) and (ours == 0).any()


def test_patches_are_mixed_with_those_of_the_share_the_one_before_in_it():
    boxes = torch.ones(6, 1, 4, 6, 5, dtype=torch.bool)
    assert torch.equal(cutmix(image(), boxes), image().roll(1, 0))
    with taking(Share(1, COUNT)):
        part = cutmix(image()[1::COUNT], boxes[1::COUNT])
    assert torch.equal(part, image().roll(COUNT, 0)[1::COUNT])


def test_the_patches_of_a_batch_are_dealt_out_and_an_odd_one_is_refused():
    dealt = []
    for index in range(COUNT):
        with taking(Share(index, COUNT)):
            dealt += own_patches(6)
            with pytest.raises(UserError, match="a batch of 4 patches cannot be shared by 3"):
                own_patches(4)
    assert sorted(dealt) == [*range(6)] == [*own_patches(6)]


GROUPS = (SimpleNamespace(classes=(0,)), SimpleNamespace(classes=(1, 2)))


FORMED = LossForm(weights=(1.0, 2.0, 3.0), focal=2.0, tversky=0.7)


def losses(logits, groups, label, mask, form):
    output = SimpleNamespace(group_prob=groups.softmax(dim=1), layer_group_prob=())
    segmentation = segmentation_loss(logits, label, mask, form)
    return segmentation + query_loss_all(output, label, GROUPS, mask)


@pytest.mark.parametrize("form", [PLAIN, FORMED], ids=["plain", "formed"])
@pytest.mark.parametrize("masked", [False, True])
def test_losses_of_shares_are_on_average_the_whole_batch_s_and_so_are_gradients(masked, form):
    """Each share has another number of voxels that count; the sums are those of all shares."""
    torch.manual_seed(0)
    label = torch.randint(0, 3, (6, 4, 4, 4))
    mask = (torch.rand(6, 4, 4, 4) < torch.linspace(0.1, 0.9, 6).view(6, 1, 1, 1)).float()
    mask = mask if masked else None
    given = [torch.randn(6, n, 4, 4, 4, requires_grad=True) for n in (3, 2)]
    whole = losses(*given, label, mask, form)
    expected = torch.autograd.grad(whole, given)

    def rows(index: int):
        parts = [part[index::COUNT].detach().requires_grad_() for part in given]
        return parts, label[index::COUNT], None if mask is None else mask[index::COUNT]

    sums: list[list[torch.Tensor]] = []  # of each share
    for index in range(COUNT):
        parts, its, counts = rows(index)
        told = []
        with taking(
            Share(index, COUNT, lambda part, told=told: told.append(part.detach()) or part)
        ):
            losses(*parts, its, counts, form)
        sums.append(told)
    total, grads = torch.zeros(()), [torch.zeros_like(part) for part in given]
    for index in range(COUNT):
        parts, its, counts = rows(index)
        crossing = iter([sum(each) for each in zip(*sums, strict=True)])
        with taking(Share(index, COUNT, lambda part, crossing=crossing: next(crossing).clone())):
            loss = losses(*parts, its, counts, form) / COUNT
            loss.backward()
        total += loss.detach()
        for grad, part in zip(grads, parts, strict=True):
            grad[index::COUNT] = part.grad
    torch.testing.assert_close(total, whole.detach())
    torch.testing.assert_close(grads, list(expected))


def test_alone_nothing_is_summed():
    part = torch.ones(2, requires_grad=True)
    assert batch_sum(part) is part and torch.equal(batch_mean(part), part)


@pytest.mark.parametrize(
    "method, batch, told",
    [
        ("unimatch", (4, 2), "mixes unlabelled patches .* train.unlabelled_batch=4 or more"),
        ("bcp", (2, 4), "mixes labelled patches .* train.labelled_batch=4 or more"),
        ("crossmatch", (2, 4), None),
        ("mean-teacher", (2, 2), None),
    ],
)
def test_a_process_that_has_no_two_patches_to_mix_says_so(
    monkeypatch, recwarn, method, batch, told
):
    settings = load_settings(
        overrides={
            "method.name": method,
            "train.labelled_batch": batch[0],
            "train.unlabelled_batch": batch[1],
        }
    )
    asked = SimpleNamespace(settings=settings, unlabelled=("a", "b"))
    job.warn_of_patches_alone(asked)  # one process
    assert not recwarn.list
    monkeypatch.setattr(job, "world", lambda: 2)
    if told:
        with pytest.warns(DataWarning, match=told):
            job.warn_of_patches_alone(asked)
    else:
        job.warn_of_patches_alone(asked)
        assert not recwarn.list
