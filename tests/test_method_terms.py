"""What makes each method the method that it is named after, by hand where that can be done."""

import copy
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.core.types import Batch, NetworkShape, Output, Views
from dkuxnet.models.build import build_method
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.base import mean_output, ramp_up
from dkuxnet.models.methods.dtc import signed_distance
from dkuxnet.models.methods.losses import (
    consistency_loss,
    query_loss_all,
    segmentation_loss,
    soft_dice_loss,
)
from dkuxnet.models.methods.mc_net import sharpen
from dkuxnet.models.methods.mixing import paste, random_boxes
from dkuxnet.models.methods.outline import outline_displacement, warp
from dkuxnet.models.methods.teacher import teacher_targets
from dkuxnet.models.networks.grouping import default_groups
from test_methods import SHAPE, make_batch, make_method

NETWORKS = {
    "dk-uxnet-tiny": {"network.widths": [8, 8, 8, 8], "network.query_channels": 16},
    "uxnet-tiny": {"network.widths": [8, 8, 8, 8]},
    "vnet": {},
}
NO_QUERIES = {"method.w_qd": 0, "method.w_qdc": 0}


class VoxelWise(nn.Module):
    """A network whose answer can be computed by hand: class logits (0, slope x intensity)."""

    def __init__(self, slope: float = 1.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, image):
        return self.decode(image, self.encoder(image))

    def encoder(self, image):
        return [image]

    def decode(self, image, features):
        return Output(logits=torch.cat([torch.zeros_like(image), self.slope * features[0]], dim=1))


def by_hand(name: str, *slopes: float, **options):
    """A method of voxel-wise networks, without query terms."""
    method = lookup(METHODS, name, "method")
    return method([VoxelWise(slope) for slope in slopes], method.Options(w_qd=0, **options), SHAPE)


def organ_probability(image, slope):
    return torch.sigmoid(slope * image)


def squared_error(a, b):
    """Mean over voxels and both classes of the squared difference of two organ probabilities."""
    return (a - b).square().mean()


# these ask a network for no more than its output, as `supervised` does, or for what `unimatch`
# does: V-Net's 45 million parameters would take them seconds each
NO_MORE = {"mean-teacher", "ua-mt", "cps", "bcp", "fixmatch", "ad-mt", "dual-mutual", "crossmatch"}


@pytest.mark.parametrize(
    "name, network",
    [(m, n) for m in METHODS for n in NETWORKS if not (n == "vnet" and m in NO_MORE)],
)
def test_methods_and_networks_go_together(name, network):
    overrides = {"network.name": network, "method.name": name} | NETWORKS[network]
    if name == "dual-mutual" and network != "dk-uxnet-tiny":
        overrides |= NO_QUERIES
    method = build_method(load_settings(overrides=overrides), SHAPE, network="")
    losses = method.losses(make_batch(), step=1000)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all()
        for p in method.parameters()
        if p.requires_grad
    )
    with torch.no_grad():
        assert method.predictor().eval()(torch.randn(1, 1, 32, 32, 16)).logits.shape == (
            1,
            2,
            32,
            32,
            16,
        )


@pytest.mark.parametrize("name", ["mc-net-plus", "unimatch", "crossmatch", "dtc"])
def test_a_network_that_does_not_fit_is_refused_and_the_error_names_what_fits(name):
    settings = load_settings(overrides={"network.name": "unet", "method.name": name})
    with pytest.raises(UserError, match=f"'{name}' with network 'unet'.*dk-uxnet, uxnet and vnet"):
        build_method(settings, SHAPE, network="")


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("bcp", "unimatch", "crossmatch")]
)
def test_what_learns_sees_the_strong_views_and_what_teaches_the_weak_ones(name):
    """Those left out mix their patches: their own tests look at them."""
    still = {"method__outline": 0} if name == "dual-mutual" else {}
    method, batch, seen = make_method(name, **still), make_batch(), []
    for network in [method.networks[0], *([method.teacher] if hasattr(method, "teacher") else [])]:
        network.encoder.register_forward_pre_hook(
            lambda module, inputs: seen.append((torch.is_grad_enabled(), inputs[0]))
        )
    method.losses(batch, 1000)
    parts = [batch.labelled] if name == "supervised" else [batch.labelled, batch.unlabelled]
    (learns,) = [image for learning, image in seen if learning]
    assert torch.equal(learns, torch.cat([part.strong for part in parts]))
    targets = [image for learning, image in seen if not learning]
    assert len(targets) == {"mean-teacher": 1, "fixmatch": 1, "ua-mt": 9}.get(name, 0)
    assert not targets or torch.equal(targets[0], batch.unlabelled.weak)


@pytest.mark.parametrize("labelled, unlabelled", [(1, 3), (3, 1)])
@pytest.mark.parametrize("name", METHODS)
def test_methods_take_several_classes_channels_and_unequal_batches(name, labelled, unlabelled):
    groups = default_groups(["background", "liver", "kidney", "liver tumour"], 9)
    settings = load_settings(
        overrides={"network.name": "dk-uxnet-tiny", "method.name": name} | NETWORKS["dk-uxnet-tiny"]
    )
    method = build_method(settings, NetworkShape(2, 4, groups), network="")

    def views(count: int, label: bool) -> Views:
        image = torch.randn(count, 2, 16, 16, 16)
        return Views(
            image, image + 0.1, torch.randint(0, 4, (count, 16, 16, 16)) if label else None
        )

    losses = method.losses(Batch(views(labelled, True), views(unlabelled, False)), step=1000)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)


WRONG = [
    ("mean-teacher", "w", -3.0),
    ("mean-teacher", "w", float("nan")),
    ("mean-teacher", "decay", 2.0),
    ("mean-teacher", "ramp_up_steps", -1),
    ("ua-mt", "passes", 0),
    ("ua-mt", "noise", -1.0),
    ("bcp", "box", 3.0),
    ("bcp", "box", 0.0),
    ("bcp", "decay", -1.0),
    ("unimatch", "dropout", 1.5),
    ("unimatch", "box", 1.0),
    ("crossmatch", "eta", 1.5),
    ("crossmatch", "strong_dropout", 1.0),
    ("ad-mt", "period", 0),
    ("ad-mt", "decay", 1.0),
    ("mc-net-plus", "temperature", 0.0),
    ("fixmatch", "threshold", 7.0),
    ("dtc", "steepness", -1.0),
    ("dual-mutual", "w_qdc", -0.1),
    ("dual-mutual", "threshold", 1.5),
    ("dual-mutual", "decay", 1.0),
    ("dual-mutual", "outline", -1.0),
    ("mean-teacher", "outline", 0.5),
]


@pytest.mark.parametrize("name, key, value", WRONG)
def test_an_option_out_of_bounds_is_one_line(name, key, value):
    with pytest.raises(UserError, match=rf"method\.{name}\.{key}: Input should be"):
        make_method(name, **{f"method__{key}": value})


# --- teachers -------------------------------------------------------------------------------------

WITH_TEACHER = ["mean-teacher", "ua-mt", "bcp"]


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_a_teacher_starts_as_its_student_follows_it_and_gets_no_gradient(name):
    method = make_method(name)
    student, teacher = method.networks[0].state_dict(), method.teacher.state_dict()
    assert all(torch.equal(teacher[key], student[key]) for key in student)
    sum(method.losses(make_batch(), step=1000).values()).backward()
    assert all(p.grad is None for p in method.teacher.parameters())

    before = copy.deepcopy(teacher)
    with torch.no_grad():
        for p in method.networks[0].parameters():
            p += 1
    method.after_step(10_000)
    for key, p in method.networks[0].named_parameters():
        torch.testing.assert_close(
            method.teacher.state_dict()[key], 0.99 * before[key] + 0.01 * p.detach()
        )


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_teacher_or_student_answers(name):
    assert make_method(name).predictor() is not make_method(name).networks[0]
    teacher, student = make_method(name), make_method(name, method__predict="student")
    assert teacher.predictor() is teacher.teacher and student.predictor() is student.networks[0]


def test_the_mean_teacher_s_consistency_is_the_squared_error_to_the_teacher_s_weak_view():
    method, batch = by_hand("mean-teacher", 1.0, w=3.0, ramp_up_steps=100), make_batch()
    with torch.no_grad():
        method.teacher.slope.fill_(2.0)
    expected = 3 * squared_error(
        organ_probability(batch.unlabelled.strong, 1.0),
        organ_probability(batch.unlabelled.weak, 2.0),
    )
    torch.testing.assert_close(method.losses(batch, 100)["consistency"], expected)
    torch.testing.assert_close(method.losses(batch, 50)["consistency"], expected * ramp_up(50, 100))


def test_ua_mt_counts_only_voxels_where_the_teacher_is_sure():
    """Without noise the passes agree: entropy follows from the intensity, and half of these voxels
    are sure.
    """
    method, batch = (
        by_hand("ua-mt", 1.0, w=1.0, ramp_up_steps=0, threshold_steps=10_000, noise=0.0, passes=3),
        make_batch(),
    )
    weak = batch.unlabelled.weak
    weak[:] = 0.1  # p = 0.52: entropy 0.999 log 2, above the first threshold
    weak[:, :, :16] = 4.0  # p = 0.98: sure
    sure = batch.unlabelled.strong[:, :, :16]
    expected = squared_error(
        organ_probability(sure, 1.0), organ_probability(torch.full_like(sure, 4.0), 1.0)
    )
    first = method.losses(batch, 0)["consistency"]
    torch.testing.assert_close(first, expected)
    everywhere = squared_error(
        organ_probability(batch.unlabelled.strong, 1.0), organ_probability(weak, 1.0)
    )
    # the last threshold lets all in
    torch.testing.assert_close(method.losses(batch, 10_000)["consistency"], everywhere)


def test_ua_mt_s_noise_makes_it_less_sure():
    """Intensity 1: p = 0.73, entropy 0.84 log 2 without noise, under a threshold of 0.9 log 2;
    noise takes voxels over it.
    """
    losses = []
    for noise in (0.0, 3.0):
        method, batch = (
            by_hand(
                "ua-mt", 1.0, w=1.0, ramp_up_steps=0, threshold_steps=100, noise=noise, passes=2
            ),
            make_batch(),
        )
        batch.unlabelled.weak[:] = 1.0
        batch.unlabelled.strong[:] = 1.0
        batch.unlabelled.strong[0] = 2.0
        torch.manual_seed(0)
        losses.append(method.losses(batch, 60)["consistency"])
    assert 0.75 + 0.25 * ramp_up(60, 100) > 0.84
    assert not torch.allclose(losses[0], losses[1])


# --- pseudo-labels --------------------------------------------------------------------------------


def test_cps_is_the_cross_entropy_of_each_against_the_other_s_decision():
    method, batch = by_hand("cps", 1.0, -1.0, w=2.0, ramp_up_steps=0), make_batch()
    images = torch.cat([batch.labelled.strong, batch.unlabelled.strong])
    loss = method.losses(batch, 0)["cross"]
    # opposite signs: each is told by the other to be where it is not
    torch.testing.assert_close(loss, 2 * 2 * F.softplus(images.abs()).mean(), rtol=1e-4, atol=1e-4)
    loss.backward()
    # both move towards the other
    assert method.networks[0].slope.grad * method.networks[1].slope.grad < 0


def test_fixmatch_learns_from_sure_voxels_of_the_strong_view_alone():
    method, batch = by_hand("fixmatch", 1.0, threshold=0.95), make_batch()
    batch.unlabelled.weak[:] = torch.linspace(-6, 6, 16)
    weak, strong = batch.unlabelled.weak, batch.unlabelled.strong
    sure = (organ_probability(weak, 1.0) - 0.5).abs() >= 0.45
    assert 0 < sure.float().mean() < 1
    expected = (F.softplus(torch.where(weak > 0, -strong, strong)) * sure).mean()
    torch.testing.assert_close(method.losses(batch, 0)["pseudo"], expected, rtol=1e-4, atol=1e-4)
    assert by_hand("fixmatch", 1.0, threshold=1.1).losses(batch, 0)["pseudo"] == 0


def test_unimatch_by_hand():
    """A quarter of each CutMix stream, half of the feature stream, each against the weak view's
    decisions, mixed alike.
    """
    method, batch = by_hand("unimatch", 1.0, threshold=0.0, dropout=0.0, w=3.0), make_batch()
    batch.strengthen = lambda image: image - 0.25
    seen = []
    method.networks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    losses = method.losses(batch, 0)
    (mixed,) = seen
    weak = batch.unlabelled.weak
    assert torch.equal(mixed[:2], batch.labelled.strong)
    expected, boxes = 0, []
    # intensities are drawn twice, as in the paper
    views = [batch.unlabelled.strong, weak - 0.25]
    for stream, strong in zip(mixed[2:].split(2), views, strict=True):
        box, other = stream != strong, strong.roll(1, 0)
        # half of each edge
        assert torch.equal(stream[box], other[box]) and box.float().mean() == pytest.approx(0.5**3)
        sign = torch.where(torch.where(box, weak.roll(1, 0), weak) > 0, -1, 1)
        expected += 3 * F.softplus(sign * stream).mean() / 4
        boxes.append(box)
    assert not torch.equal(*boxes)
    torch.testing.assert_close(losses["strong"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        losses["features"], 3 * F.softplus(-weak.abs()).mean() / 2, rtol=1e-4, atol=1e-4
    )


def test_unimatch_drops_feature_channels_of_the_stream_that_learns():
    """With every channel dropped but by chance, a voxel-wise network sees nothing: log 2 where it
    would be sure.
    """
    method, batch = by_hand("unimatch", 8.0, threshold=0.0, dropout=0.999), make_batch()
    torch.manual_seed(0)
    assert method.losses(batch, 0)["features"].item() == pytest.approx(math.log(2) / 2, abs=1e-3)


def pseudo_dice(prob, label):
    """Soft Dice loss of the organ's probability against a hard label, both (B, 1, X, Y, Z)."""
    both = [torch.cat([1 - organ, organ], dim=1) for organ in (prob, label.float())]
    return soft_dice_loss(*both)


def test_crossmatch_by_hand():
    """Dropout replaced by a shift of the intensities, which can be followed through every term."""
    method, batch = by_hand("crossmatch", 1.0, threshold=0.0, eta=0.4, w=3.0), make_batch()
    weak = batch.unlabelled.weak
    streams = method.strong_streams(batch, batch.unlabelled)
    method.strong_streams = lambda *arguments: streams
    method.decode_dropped = lambda image, features, rate: method.halves.decode(
        image, [features[0] - rate]
    )
    (one, box_one), (two, box_two) = streams

    def mixed(image, box):
        return torch.where(box, image.roll(1, 0), image) > 0

    image_level = pseudo_dice(organ_probability(one, 1.0), mixed(weak, box_one)) + pseudo_dice(
        organ_probability(two, 1.0), mixed(weak, box_two)
    )
    plain = dropped = 0
    for rate in (0.25, 0.75):
        shifted = organ_probability(two - rate, 1.0)
        plain += pseudo_dice(organ_probability(weak - rate, 1.0), weak > 0) / 4
        plain += pseudo_dice(shifted, mixed(weak, box_two)) / 4
        dropped += pseudo_dice(shifted, mixed(weak - rate, box_two)) / 2
    losses = method.losses(batch, 0)
    torch.testing.assert_close(losses["strong"], 3 * image_level / 4)
    torch.testing.assert_close(losses["plain"], 3 * 0.6 * plain)
    torch.testing.assert_close(losses["dropped"], 3 * 0.4 * dropped)
    sure = by_hand("crossmatch", 1.0, threshold=1.0).losses(batch, 0)
    assert all(sure[name] == 0 for name in ("strong", "plain", "dropped"))


def test_crossmatch_drops_feature_channels_weakly_and_strongly():
    method, rates = make_method("crossmatch", method__threshold=0), []
    plain = method.decode_dropped
    method.decode_dropped = lambda image, features, rate: (
        rates.append(rate) or plain(image, features, rate)
    )
    method.losses(make_batch(), 0)
    assert rates == [0.25, 0.75] * 2
    image = torch.full((2, 8, 4, 4, 4), 2.0)
    dropped = by_hand("crossmatch", 1.0).decode_dropped(image, [image], 0.5).logits
    assert set(dropped.unique().tolist()) == {0.0, 4.0}  # and what is left is scaled up


# --- two teachers ---------------------------------------------------------------------------------


def ad_mt(*slopes: float, **options):
    method = by_hand("ad-mt", 1.0, w=2.0, ramp_up_steps=0, threshold=0.0, **options)
    with torch.no_grad():
        for teacher, slope in zip(method.teachers, slopes, strict=True):
            teacher.slope.fill_(slope)
    return method


def test_ad_mt_s_surer_teacher_decides():
    """Weighted by exp(-entropy in bits), voxel by voxel."""
    image = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    probs = [organ_probability(image, slope) for slope in (1.0, -3.0)]
    weights = [
        torch.exp(p * p.log2() + (1 - p) * (1 - p).log2()) for p in probs
    ]  # of the entropies
    expected = (weights[0] * probs[0] + weights[1] * probs[1]) / (weights[0] + weights[1])
    target = ad_mt(1.0, -3.0).predict_targets(image)
    torch.testing.assert_close(target[:, 1:], expected, rtol=1e-4, atol=1e-5)
    assert ((target[:, 1:] > 0.5) == (probs[1] > 0.5)).all()  # they conflict everywhere
    alike = ad_mt(1.0, 3.0).predict_targets(image)[:, 1:]
    assert ((alike - probs[0]).abs() > (alike - organ_probability(image, 3.0)).abs()).all()


def test_ad_mt_learns_strong_views_in_one_teacher_s_turns_and_cutmix_in_the_other_s():
    method, batch, seen = ad_mt(-1.0, -1.0), make_batch(), []
    method.networks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    weak, strong = batch.unlabelled.weak, batch.unlabelled.strong

    def expected(image, teachers_see):
        return 2 * F.softplus(torch.where(teachers_see < 0, -image, image)).mean()

    loss = method.losses(batch, 0)["pseudo"]
    assert torch.equal(seen[-1], torch.cat([batch.labelled.strong, strong]))
    torch.testing.assert_close(loss, expected(strong, weak), rtol=1e-4, atol=1e-4)
    method.second.fill_(True)
    loss = method.losses(batch, 0)["pseudo"]
    mixed, box = seen[-1][2:], seen[-1][2:] != weak
    assert torch.equal(mixed, torch.where(box, weak.roll(1, 0), weak))
    assert box.float().mean() == pytest.approx(0.5**3)
    torch.testing.assert_close(loss, expected(mixed, mixed), rtol=1e-4, atol=1e-4)


def test_ad_mt_s_teachers_follow_in_turns_of_random_length_that_a_resumed_run_goes_on_with():
    def steps(method, first, last):
        followed = []
        for step in range(first, last):
            torch.manual_seed(step)  # as the loop does
            before = [teacher.slope.clone() for teacher in method.teachers]
            with torch.no_grad():
                method.networks[0].slope += 1
            method.after_step(step)
            followed.append(
                [
                    not torch.equal(teacher.slope, old)
                    for teacher, old in zip(method.teachers, before, strict=True)
                ]
            )
        return followed

    method = ad_mt(1.0, 1.0, period=4)
    followed = steps(method, 0, 60)
    assert all(sorted(each) == [False, True] for each in followed)
    second = "".join(str(int(each[1])) for each in followed)
    turns = [len(turn) for turn in re.findall("0+|1+", second)]
    assert second.startswith("0000") and max(turns) == 4 and len(set(turns)) > 2

    resumed = ad_mt(1.0, 1.0, period=4)
    half = ad_mt(1.0, 1.0, period=4)
    assert steps(half, 0, 30) == followed[:30]
    resumed.load_state_dict(half.state_dict())
    assert steps(resumed, 30, 60) == followed[30:]
    state = resumed.state_dict().items()
    assert all(torch.equal(value, method.state_dict()[key]) for key, value in state)


def test_ad_mt_s_teachers_start_as_their_student_get_no_gradient_and_answer():
    method, image = make_method("ad-mt"), torch.randn(1, 1, 16, 16, 16)
    student = method.networks[0].state_dict()
    for teacher in method.teachers:
        assert all(torch.equal(teacher.state_dict()[key], student[key]) for key in student)
    sum(method.losses(make_batch(), 1000).values()).backward()
    assert all(p.grad is None for p in method.teachers.parameters())
    with torch.no_grad():
        probs = [teacher.eval()(image).logits.softmax(1) for teacher in method.teachers]
        answer = method.predictor().eval()(image).logits.softmax(1)
    torch.testing.assert_close(answer, (probs[0] + probs[1]) / 2, rtol=1e-4, atol=1e-5)
    alone = make_method("ad-mt", method__predict="student")
    assert alone.predictor() is alone.networks[0]


# --- copy-paste -----------------------------------------------------------------------------------


def test_random_boxes_have_the_asked_size_and_move():
    torch.manual_seed(0)
    boxes = random_boxes(20, (12, 9, 6), 2 / 3, torch.device("cpu"))
    assert boxes.shape == (20, 1, 12, 9, 6) and (boxes.sum(dim=(1, 2, 3, 4)) == 8 * 6 * 4).all()
    corners = {tuple(np.argwhere(box[0].numpy())[0]) for box in boxes}
    assert len(corners) > 5 and max(x for x, _, _ in corners) == 4  # up to the far side


def test_paste_takes_the_inside_from_one_and_the_rest_from_the_other():
    boxes = random_boxes(2, (4, 4, 4), 0.5, torch.device("cpu"))
    image = paste(torch.ones(2, 3, 4, 4, 4), torch.zeros(2, 3, 4, 4, 4), boxes)
    label = paste(torch.ones(2, 4, 4, 4), torch.zeros(2, 4, 4, 4), boxes)
    assert torch.equal(image, boxes.expand_as(image).float()) and torch.equal(
        label, boxes[:, 0].float()
    )


def test_bcp_pastes_both_ways_and_labels_each_part_from_its_own_source():
    method, batch = by_hand("bcp", 1.0, pretrain_steps=5, alpha=0.5), make_batch()
    batch.labelled.weak[:], batch.unlabelled.weak[:] = 1.0, -1.0
    batch.labelled.label[:] = 1
    seen = []
    method.networks[0].register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output.logits))
    )
    losses = method.losses(batch, 5)
    image, logits = seen[0]
    inside = [(patch == -1).float().mean().item() for patch in image]
    box = round(32 * 2 / 3) ** 2 * round(16 * 2 / 3) / (32 * 32 * 16)
    # unlabelled into labelled, labelled into unlabelled
    assert inside == pytest.approx([box, box, 1 - box, 1 - box])
    labelled = (image[:, 0] == 1).float()
    label = labelled.long()  # the teacher calls intensity -1 background
    torch.testing.assert_close(losses["labelled"], segmentation_loss(logits, label, labelled))
    torch.testing.assert_close(
        losses["pasted"], 0.5 * segmentation_loss(logits, label, 1 - labelled)
    )


@pytest.mark.parametrize("step", [4, 5])
def test_bcp_changes_the_intensities_of_a_mixed_patch_once(step):
    """Parts with intensities of their own would show the box in the image."""
    method, batch, seen, changed = by_hand("bcp", 1.0, pretrain_steps=5), make_batch(), [], []

    def strengthen(image):
        changed.append(image)
        return 2 * image + 3

    batch.strengthen = strengthen
    method.networks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.losses(batch, step)
    (mixed,), (image,) = changed, seen
    assert torch.equal(image, 2 * mixed + 3)
    own = batch.labelled.weak
    theirs = own.roll(1, 0) if step < 5 else batch.unlabelled.weak
    own, theirs = torch.cat([own, own]), torch.cat([theirs, theirs])
    assert ((mixed == own) | (mixed == theirs)).all()
    assert all(0 < share < 1 for share in (mixed == own).float().mean(dim=(1, 2, 3, 4)))


def test_bcp_s_pretraining_pastes_labelled_patches_into_each_other_with_their_labels():
    method, batch = by_hand("bcp", 1.0, pretrain_steps=5), make_batch()
    batch.labelled.weak[0], batch.labelled.weak[1] = 1.0, 2.0
    batch.labelled.label[0], batch.labelled.label[1] = 1, 0
    seen = []
    method.networks[0].register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output.logits))
    )
    losses = method.losses(batch, 4)
    image, logits = seen[0]
    shares = [(patch == 1).float().mean().item() for patch in image]
    # nothing unlabelled, both in each
    assert all(0 < share < 1 for share in shares) and ((image == 1) | (image == 2)).all()
    label = (image[:, 0] == 1).long()
    assert list(losses) == ["seg"]  # every label is true
    torch.testing.assert_close(losses["seg"], segmentation_loss(logits, label))


def test_bcp_s_pretraining_has_the_query_loss_of_the_whole_patch():
    method, batch, seen = make_method("bcp", method__pretrain_steps=5), make_batch(), []
    method.networks[0].register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    batch.labelled.weak[0], batch.labelled.weak[1] = 1.0, 2.0
    batch.labelled.label[0], batch.labelled.label[1] = 1, 0
    losses = method.losses(batch, 4)
    image, output = seen[0]
    expected = method.options.w_qd * query_loss_all(
        output, (image[:, 0] == 1).long(), method.shape.groups
    )
    torch.testing.assert_close(losses["qd"], expected)


def test_bcp_s_query_loss_reads_true_labels_alone():
    """Other pseudo-labels change the loss on the pasted part, and not the query loss."""
    method, batch = make_method("bcp", method__pretrain_steps=0), make_batch()
    results = []
    for class_index in (0, 1):
        method.pseudo_label = lambda image, k=class_index: torch.full_like(
            image[:, 0], k, dtype=torch.int64
        )
        torch.manual_seed(0)
        results.append(method.losses(batch, 0))
    assert not torch.allclose(results[0]["pasted"], results[1]["pasted"])
    torch.testing.assert_close(results[0]["qd"], results[1]["qd"])
    torch.testing.assert_close(results[0]["labelled"], results[1]["labelled"])


def test_bcp_s_pseudo_label_is_the_largest_component():
    method = by_hand("bcp", 1.0)
    image = torch.full((1, 1, 16, 16, 16), -1.0)
    image[0, 0, 2:8, 2:8, 2:8] = 1
    image[0, 0, 12:14, 12:14, 12:14] = 1
    label = method.pseudo_label(image)
    assert label[0, 2:8, 2:8, 2:8].all() and label.sum() == 6**3 and label.dtype == torch.int64
    assert by_hand("bcp", 1.0, largest_component=False).pseudo_label(image).sum() == 6**3 + 2**3


# --- several decoders -----------------------------------------------------------------------------


def test_mc_net_plus_has_one_encoder_and_decoders_that_upsample_differently():
    method = make_method("mc-net-plus")
    assert [network.encoder is None for network in method.networks] == [False, True, True]
    kinds = [{type(m) for m in network.modules()} for network in method.networks]
    assert [nn.ConvTranspose3d in kind for kind in kinds] == [True, False, False]
    modes = [
        {m.mode for m in network.modules() if isinstance(m, nn.Upsample)}
        for network in method.networks
    ]
    assert modes == [set(), {"trilinear"}, {"nearest"}]


def test_mc_net_plus_compares_each_decoder_with_the_others_sharpened():
    method, batch = make_method("mc-net-plus", method__w=2.0, method__ramp_up_steps=0), make_batch()
    loss = method.losses(batch, 0)["mutual"]
    with torch.no_grad():
        probs = [
            o.logits.softmax(1)
            for o in method(torch.cat([batch.labelled.strong, batch.unlabelled.strong]))
        ]
    expected = sum(
        squared_error(p, sharpen(q, 0.1))
        for i, p in enumerate(probs)
        for j, q in enumerate(probs)
        if i != j
    )
    torch.testing.assert_close(loss, 2 * expected)


def test_mc_net_plus_s_targets_are_constants():
    method, batch = make_method("mc-net-plus", method__w=1.0, method__ramp_up_steps=0), make_batch()
    method.losses(batch, 0)["mutual"].backward()
    ours = method.networks[0].classify[-1].weight.grad.clone()
    method.zero_grad()
    probs = [
        o.logits.softmax(1)
        for o in method(torch.cat([batch.labelled.strong, batch.unlabelled.strong]))
    ]
    sum(squared_error(probs[0], sharpen(q, 0.1).detach()) for q in probs[1:]).backward()
    torch.testing.assert_close(ours, method.networks[0].classify[-1].weight.grad)


def test_sharpening_by_hand():
    even = torch.tensor([0.34, 0.33, 0.33]).view(1, 3, 1, 1, 1)
    assert torch.isfinite(sharpen(even, 0.001)).all() and sharpen(even, 0.001)[
        0, 0
    ].item() == pytest.approx(1)
    prob = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(sharpen(prob, 0.5).flatten(), torch.tensor([0.36, 0.16]) / 0.52)
    torch.testing.assert_close(sharpen(prob, 1.0), prob)


def test_the_mean_of_three_is_their_mean_and_their_disagreement():
    probs = ([0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8])
    outputs = [Output(logits=torch.tensor(p).log().view(1, 3, 1, 1, 1)) for p in probs]
    mean = mean_output(outputs)
    torch.testing.assert_close(
        mean.logits.softmax(1).flatten(), torch.tensor([0.3, 11 / 30, 1 / 3])
    )
    sure = [Output(logits=20 * torch.eye(3)[k].view(1, 3, 1, 1, 1)) for k in range(3)]
    assert mean_output(sure).uncertainty.item() == pytest.approx(1, abs=1e-3)  # full contradiction
    assert mean_output([outputs[0]] * 3).uncertainty.item() == pytest.approx(0, abs=1e-6)
    for output, share in zip(outputs, (0.2, 0.5, 0.8), strict=True):
        output.group_prob = torch.tensor([share, 1 - share]).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(mean_output(outputs).group_prob.flatten(), torch.tensor([0.5, 0.5]))
    assert mean_output([*outputs, sure[0]]).group_prob is None  # one has no queries


# --- dual task ------------------------------------------------------------------------------------


def test_signed_distance_by_hand():
    label = torch.zeros(3, 1, 1, 8, dtype=torch.int64)
    label[0, 0, 0, 2:5] = 1  # three inside, the farthest outside 3 voxels from it
    label[1] = 1
    distance = signed_distance(label, 2)
    assert distance.shape == (3, 1, 1, 1, 8)
    torch.testing.assert_close(
        distance[0].flatten(), torch.tensor([2 / 3, 1 / 3, -1 / 2, -1, -1 / 2, 1 / 3, 2 / 3, 1.0])
    )
    assert (distance[1] == -1).all() and (distance[2] == 1).all()


def test_dtc_s_level_set_is_compared_with_the_distance_and_with_the_segmentation():
    method, batch = (
        make_method("dtc", method__w=2.0, method__w_level=0.5, method__ramp_up_steps=0),
        make_batch(),
    )
    losses = method.losses(batch, 0)
    with torch.no_grad():
        output = method.networks[0](torch.cat([batch.labelled.strong, batch.unlabelled.strong]))
        level = method.level_set(output.features).tanh()
    expected = 0.5 * (level[:2] - signed_distance(batch.labelled.label, 2)).square().mean()
    torch.testing.assert_close(losses["level"], expected)
    # so steep is the way back
    expected = 2 * squared_error(output.logits.softmax(1)[:, 1:], (level < 0).float())
    torch.testing.assert_close(losses["dual"], expected, rtol=0.02, atol=0.01)


def test_dtc_s_consistency_moves_both_tasks():
    method = make_method("dtc", method__ramp_up_steps=0, method__steepness=5.0)
    method.losses(make_batch(), 0)["dual"].backward()
    assert method.level_set.weight.grad.abs().sum() > 0
    assert method.networks[0].classify[-1].weight.grad.abs().sum() > 0


# --- two branches ---------------------------------------------------------------------------------


def test_the_averages_of_both_branches_teach_both_and_answer():
    options = {
        "method__decay": 0.9,
        "method__view_b": "weak",
        "method__ramp_up_steps": 0,
        "method__form": "mse",
        "method__outline": 0,
    }
    method, batch = make_method("dual-mutual", **options), make_batch()
    with torch.no_grad():
        for p in method.teachers.parameters():
            p += 0.05 * torch.randn_like(p)
        target = torch.stack(
            [teacher(batch.unlabelled.weak).logits.softmax(1) for teacher in method.teachers]
        ).mean(0)
        a = method.networks[0](batch.unlabelled.strong).logits.softmax(1)
        b = method.networks[1](batch.unlabelled.weak).logits.softmax(1)
    losses = method.losses(batch, 0)
    torch.testing.assert_close(
        losses["segc"], (squared_error(a, target) + squared_error(b, target)) / 2
    )
    sum(losses.values()).backward()
    assert all(p.grad is None for p in method.teachers.parameters())

    kept = copy.deepcopy(method.teachers.state_dict())
    method.after_step(10_000)
    for key, value in method.networks.state_dict().items():
        torch.testing.assert_close(method.teachers.state_dict()[key], 0.9 * kept[key] + 0.1 * value)
    assert list(method.predictor().networks) == list(method.teachers)


def test_averages_that_teach_leave_no_branch_to_stop_and_need_unlabelled_patches():
    with pytest.raises(UserError, match=r"leave out method\.gradient"):
        make_method("dual-mutual", method__decay=0.9, method__gradient="strong")
    assert set(
        make_method("dual-mutual", method__decay=0.9).losses(make_batch(unlabelled=False), 0)
    ) == {"seg", "qd"}


@pytest.mark.parametrize(
    "options", [{"method__w_segc": 0.0, "method__w_qdc": 0.0}, {"method__pretrain_steps": 1}]
)
def test_without_a_consistency_nobody_looks_at_unlabelled_patches(options):
    method, batch, seen = make_method("dual-mutual", **options), make_batch(), []
    for teacher in method.teachers:
        teacher.register_forward_pre_hook(lambda module, inputs: pytest.fail("it ran"))
    for branch in method.networks:
        branch.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert set(method.losses(batch, 0)) == {"seg", "qd"}
    assert len(seen) == 2 and all(torch.equal(image, batch.labelled.strong) for image in seen)


def test_the_consistencies_rise_after_the_pretraining():
    plain = make_method("dual-mutual", method__ramp_up_steps=10, method__outline=0)
    later = make_method(
        "dual-mutual", method__ramp_up_steps=10, method__outline=0, method__pretrain_steps=4
    )
    batch = make_batch()
    for step in (0, 5, 10):
        torch.testing.assert_close(later.losses(batch, step + 4), plain.losses(batch, step))


def test_branch_b_sees_the_view_that_it_is_given():
    strong = make_method("dual-mutual", method__view_b="strong", method__outline=0)
    seen = []
    strong.networks[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = make_batch()
    strong.losses(batch, 0)
    assert torch.equal(seen[0], torch.cat([batch.labelled.strong, batch.unlabelled.strong]))


def boxes() -> Views:
    """Two unlabelled patches with a box of 4 in -4: voxel-wise networks see an organ there."""
    image = torch.full((2, 1, 24, 20, 16), -4.0)
    image[:, :, 6:18, 5:15, 4:12] = 4
    return Views(image, image.clone())


class Grouped(VoxelWise):
    """Three classes, the last for intensities above 2, and its groups are its classes."""

    def decode(self, image, features):
        logits = torch.cat(
            [torch.zeros_like(image), self.slope * features[0], 10 * (features[0] - 2)], dim=1
        )
        return Output(logits=logits, group_prob=logits.softmax(dim=1))


def test_outlines_of_thick_slices_move_as_far_in_mm():
    """What a teacher found moves by the edges that the views carry."""

    def found(weak):
        return {"prob": torch.cat([(weak < 0).float(), (weak >= 0).float()], dim=1)}

    cubes = boxes()
    torch.manual_seed(0)
    outwards = 2 * torch.rand(2) - 1
    for edges in ((1.0, 1.0, 1.0), (1.0, 1.0, 3.0)):
        torch.manual_seed(0)
        views, _ = teacher_targets(replace(cubes, edges=edges), found, 0.3)
        organ = (cubes.weak >= 0).float()
        expected = warp(cubes.weak, outline_displacement(organ, outwards, 0.3, edges))
        torch.testing.assert_close(views.weak, expected)
        assert views.edges == edges


@pytest.mark.parametrize("view_b", ["weak", "strong"])
def test_what_the_averages_found_has_moved_in_the_patches_and_in_what_they_teach(view_b):
    batch, seen, terms = Batch(labelled_patches(), boxes()), {}, {}
    for outline in (0.0, 0.4):
        method = by_hand(
            "dual-mutual", 1.0, 1.0, w_qdc=0, ramp_up_steps=0, outline=outline, view_b=view_b
        )
        for part in (method.networks, method.teachers):
            for branch in range(2):
                part[branch] = Grouped()
                part[branch].has_queries = True
                key = ("student" if part is method.networks else "teacher", branch)
                part[branch].register_forward_pre_hook(
                    lambda module, inputs, key=key: seen.update({key: inputs[0]})
                )
        method.options = replace(method.options, w_qdc=1.0)
        torch.manual_seed(5)  # outwards by 0.66 and inwards by 0.75
        terms[outline] = {name: value.item() for name, value in method.losses(batch, 0).items()}
    assert torch.equal(seen["teacher", 0], batch.unlabelled.weak)
    for branch in range(2):
        student = seen["student", branch]
        assert torch.equal(
            student[:2],
            batch.labelled.weak if branch and view_b == "weak" else batch.labelled.strong,
        )
        larger, smaller = (student[2:] > 0).sum(dim=(1, 2, 3, 4)) - (batch.unlabelled.weak > 0).sum(
            dim=(1, 2, 3, 4)
        )
        assert larger > 300 and smaller < -300
    # a hard label moves as the image does: the students, who are equal to their teachers, agree
    # with it except at the outline, where interpolation leaves them unsure; with targets left where
    # they were, they would be wrong in whole layers of voxels
    still = Grouped()(batch.unlabelled.weak).logits.softmax(dim=1).detach()
    students = Grouped()(seen["student", 0][2:]).logits.softmax(dim=1)
    left = consistency_loss(students, still, "pseudo-both", "strong", 0.0).item()
    for name in ("segc", "qdc"):
        assert terms[0.0][name] < terms[0.4][name] < 0.7 * left


def test_views_and_all_that_the_teacher_says_of_them_move_alike():
    patches = boxes()
    views, maps = teacher_targets(
        patches, lambda weak: {"organ": Grouped()(weak).logits.softmax(dim=1), "same": weak}, 0.4
    )
    assert not torch.equal(views.weak, patches.weak)
    assert torch.equal(views.strong, views.weak) and torch.equal(maps["same"], views.weak)
    views, maps = teacher_targets(patches, lambda weak: {"same": weak}, 0.0)
    assert torch.equal(views.weak, patches.weak) and torch.equal(maps["same"], patches.weak)


@pytest.mark.parametrize(
    "name, options", [("mean-teacher", {}), ("ua-mt", {"noise": 0.0, "passes": 1})]
)
def test_a_mean_teacher_can_move_outlines_too(name, options):
    """A student equal to its teacher agrees with it on the moved patches except at the outline.

    With targets left where they were it would not.
    """
    batch, seen, losses = Batch(labelled_patches(), boxes()), [], []
    for outline in (0.0, 0.4):
        method = by_hand(name, 1.0, w=1.0, ramp_up_steps=0, outline=outline, **options)
        method.networks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        torch.manual_seed(5)
        losses.append(method.losses(batch, 0)["consistency"].item())
    still, moved = seen
    assert torch.equal(still[2:], batch.unlabelled.strong) and torch.equal(
        moved[:2], batch.labelled.strong
    )
    larger, smaller = (moved[2:] > 0).sum(dim=(1, 2, 3, 4)) - (still[2:] > 0).sum(dim=(1, 2, 3, 4))
    assert larger > 300 and smaller < -300
    left = squared_error(
        organ_probability(moved[2:], 1.0), organ_probability(batch.unlabelled.weak, 1.0)
    ).item()
    assert losses[0] < losses[1] < 0.3 * left


@pytest.mark.parametrize(
    "name, slopes, options",
    [("dual-mutual", [1.0, 1.0], {"w_qdc": 0}), ("mean-teacher", [1.0], {"outline": 0.25})],
)
def test_every_step_and_every_patch_has_a_size_of_its_own(name, slopes, options):
    method, seen = by_hand(name, *slopes, **options), []
    method.networks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][2:]))
    batch = Batch(labelled_patches(), boxes())
    for seed in (5, 5, 0):
        torch.manual_seed(seed)
        method.losses(batch, 0)
    first, again, other = ((views > 0).sum(dim=(1, 2, 3, 4)) for views in seen)
    assert torch.equal(first, again) and (first != other).all() and first[0] != first[1]


def labelled_patches() -> Views:
    return Views(
        *(torch.randn(2, 1, 24, 20, 16) for _ in "ws"), torch.randint(0, 2, (2, 24, 20, 16))
    )
