"""Every network of the table keeps its promises; the kMaX equations hold by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.core.types import Group, NetworkShape
from dkuxnet.models.methods.losses import query_loss_all, segmentation_loss
from dkuxnet.models.networks import NETWORKS
from dkuxnet.models.networks.blocks import Conv3x3x3, DepthwiseConv3d
from dkuxnet.models.networks.grouping import check_groups, default_groups, grouped_assignment
from dkuxnet.models.networks.kmax import KMaxLayer, MaskLogits

# the same architecture at widths that a test can afford; the published widths are built once, below
SMALL = {
    "dk-uxnet": {"widths": (8, 8, 16, 16), "query_channels": 16, "layer_scale": 0.1},
    "dk-uxnet-small": {"widths": (8, 8, 16, 16), "query_channels": 16, "layer_scale": 0.1},
    "uxnet": {"widths": (8, 8, 16, 16), "layer_scale": 0.1},
}


def build(name: str, channels: int = 1, classes: int = 2, queries: int = 8):
    names = [
        "background",
        *[f"organ {k}" for k in range(1, classes - 1)],
        "tumour" if classes > 2 else "organ",
    ]
    shape = NetworkShape(channels, classes, default_groups(names, queries))
    torch.manual_seed(0)
    return lookup(NETWORKS, name, "network")(shape, SMALL.get(name, {})), shape


@pytest.mark.parametrize("name", ["dk-uxnet", "uxnet"])
@pytest.mark.parametrize(("axis", "levels"), [(0, 5), (2, 2)])
def test_a_flat_network_is_one_whose_kernels_are_zero_beside_the_plane(name, axis, levels):
    """Output and gradients; kernels of every path, in training and in prediction."""
    strides = tuple(tuple(1 if i == axis else 2 for i in range(3)) for _ in range(4))
    flat = tuple(tuple(i == axis and level < levels for i in range(3)) for level in range(5))
    groups = default_groups(["background", "organ"], 8)
    make = lookup(NETWORKS, name, "network")
    torch.manual_seed(0)
    ours = make(NetworkShape(1, 2, groups, strides, flat), SMALL[name])
    whole = make(NetworkShape(1, 2, groups, strides), SMALL[name])
    thin = 0
    with torch.no_grad():
        for of_ours, of_whole in zip(ours.parameters(), whole.parameters(), strict=True):
            if of_ours.shape == of_whole.shape:
                of_whole.copy_(of_ours)
            else:
                middle = [slice(None)] * 5
                middle[2 + axis] = slice(n := of_whole.shape[2 + axis] // 2, n + 1)
                of_whole.zero_()[tuple(middle)] = of_ours
                thin += 1
    kernels = sum(getattr(each, "kernel_size", [0])[0] in (3, 7) for each in whole.modules())
    assert thin == kernels if levels == 5 else 0 < thin < kernels
    size = [4 if i == axis else 16 for i in range(3)]
    image = torch.randn(2, 1, *size).contiguous(memory_format=torch.channels_last_3d)
    for network in (ours, whole):
        network(image).logits.square().mean().backward()
    assert torch.allclose(ours(image).logits, whole(image).logits, atol=1e-4)
    for of_ours, of_whole in zip(ours.parameters(), whole.parameters(), strict=True):
        if of_ours.grad is not None and of_ours.shape == of_whole.shape:
            assert torch.allclose(of_ours.grad, of_whole.grad, rtol=1e-2, atol=1e-4)
    with torch.inference_mode():
        predicted = [network.eval()(image).logits for network in (ours, whole)]
    assert torch.allclose(*predicted, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_receives_a_gradient(name):
    network, shape = build(name)
    label = (torch.rand(2, 32, 32, 32) > 0.5).long()
    output = network(torch.randn(2, 1, 32, 32, 32))
    loss = segmentation_loss(output.logits, label)
    if output.group_prob is not None:
        loss = loss + query_loss_all(output, label, shape.groups)
    loss.backward()
    without = [
        key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_case_does_not_depend_on_its_batch_mates(name):
    network, _ = build(name)
    network.eval()
    images = torch.randn(3, 1, 32, 32, 16)
    with torch.no_grad():
        together, alone = network(images), network(images[1:2])
    torch.testing.assert_close(together.logits[1:2], alone.logits, rtol=1e-4, atol=1e-4)
    if alone.group_prob is not None:
        torch.testing.assert_close(together.group_prob[1:2], alone.group_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in NETWORKS if "uxnet" in n])
@pytest.mark.parametrize("size, channels, classes", [((16, 16, 16), 1, 2), ((16, 48, 32), 3, 4)])
def test_any_patch_divisible_by_16_any_channels_any_classes(name, size, channels, classes):
    network, shape = build(name, channels, classes)
    output = network(torch.randn(1, channels, *size))
    assert output.logits.shape == (1, classes, *size)
    assert torch.isfinite(output.logits).all()
    if output.group_prob is not None:
        assert output.group_prob.shape == (1, len(shape.groups), *size)


@pytest.mark.parametrize("name", ["vnet", "unet", "segresnet"])
def test_baselines_take_any_number_of_channels(name):
    network, _ = build(name, channels=3, classes=3)
    assert network(torch.randn(1, 3, 32, 32, 32)).logits.shape == (1, 3, 32, 32, 32)


@pytest.mark.parametrize("name", ["vnet", "unet", "segresnet"])
def test_without_monai_a_baseline_says_in_one_line_what_to_install(name, monkeypatch):
    monkeypatch.setattr("dkuxnet.core.extras.find_spec", lambda module: None)
    with pytest.raises(
        UserError, match=r"^this needs monai: pip install '\.\[baselines\]' in a clone"
    ):
        build(name)


def test_the_paper_s_widths():
    with torch.device("meta"):
        network, _ = lookup(NETWORKS, "dk-uxnet", "network"), None
        built = network(NetworkShape(1, 2, default_groups(["background", "LA"], 32)), {})
    assert [stage[0].depthwise.weight.shape[0] for stage in built.encoder.stages] == [
        48,
        96,
        192,
        384,
    ]
    assert built.decoder.channels == (768, 384, 192, 96, 48)
    assert [len(stage) for stage in built.encoder.stages] == [2, 2, 2, 2]
    assert [len(layers) for layers in built.kmax.scales] == [2, 2, 2]
    block = built.encoder.stages[0][0]
    # depthwise pointwise expansion x4
    assert block.expand.groups == 48 and block.expand.out_channels == 192


def test_the_output_is_the_equations():
    network, shape = build("dk-uxnet-tiny", classes=3)
    seen = {}
    network.assignment.register_forward_hook(lambda module, inputs, out: seen.update(R=out))
    network.classify.register_forward_hook(lambda module, inputs, out: seen.update(S=out))
    output = network(torch.randn(2, 1, 32, 16, 16))
    M = seen["R"].softmax(dim=1)
    for b in range(2):
        Z = seen["S"][b].T @ M[b].flatten(1)  # (K, N) (N, V)
        torch.testing.assert_close(output.logits[b].flatten(1), Z, rtol=1e-4, atol=1e-5)
    sizes = [g.queries for g in shape.groups]
    torch.testing.assert_close(output.group_prob[:, 0], M[:, : sizes[0]].sum(1))
    torch.testing.assert_close(output.group_prob.sum(1), torch.ones(2, 32, 16, 16))
    assert len(output.layer_group_prob) == 6
    assert [tuple(layer.shape[2:]) for layer in output.layer_group_prob[::2]] == [
        (2, 1, 1),
        (4, 2, 2),
        (8, 4, 4),
    ]


def test_mask_logits_are_cosines_times_the_gain():
    head = MaskLogits(5, 16)
    features, queries = torch.randn(1, 5, 4, 4, 4), torch.randn(1, 3, 16)
    voxels = head.voxels(features)[0].flatten(1).T
    cosine = torch.nn.functional.cosine_similarity(
        voxels[None], head.queries(queries)[0][:, None], dim=2
    )
    expected = head.log_gain.exp() * cosine
    torch.testing.assert_close(
        head(features, queries)[0].flatten(1), expected, rtol=1e-4, atol=1e-4
    )


def test_the_k_means_update_by_hand():
    torch.manual_seed(1)
    layer = KMaxLayer(4, 8, heads=2)
    torch.nn.init.zeros_(layer.attention.out_proj.weight)
    torch.nn.init.zeros_(layer.attention.out_proj.bias)
    torch.nn.init.zeros_(layer.feed_forward[-1].weight)
    # what is left is C + norm(sum of assigned values)
    torch.nn.init.zeros_(layer.feed_forward[-1].bias)
    features, queries = torch.randn(1, 4, 2, 3, 2), torch.randn(1, 3, 8)
    updated, logits = layer(features, queries)
    values, scores = layer.value(features)[0].flatten(1), logits[0].flatten(1)
    sums = torch.zeros(3, 8)
    for voxel in range(values.shape[1]):
        sums[int(scores[:, voxel].argmax())] += values[:, voxel]
    torch.testing.assert_close(
        updated[0], queries[0] + layer.update_norm(sums), rtol=1e-4, atol=1e-5
    )


def test_default_groups_follow_the_classes():
    two = default_groups(["background", "LA"], 16)
    assert [(g.name, g.classes, g.queries) for g in two] == [
        ("background", (0,), 8),
        ("organ", (1,), 8),
    ]
    three = default_groups(["background", "liver", "spleen", "liver tumour"], 16)
    assert [(g.name, g.classes) for g in three] == [
        ("background", (0,)),
        ("organ", (1, 2)),
        ("tumour", (3,)),
    ]
    assert sum(g.queries for g in three) == 16
    with pytest.raises(UserError, match="nothing to segment"):
        default_groups(["background"], 16)
    with pytest.raises(UserError, match="queries is 2"):
        default_groups(["background", "organ", "tumour"], 2)


@pytest.mark.parametrize(
    "groups",
    [
        (Group("background", (0,), 4), Group("organ", (1,), 0)),  # a group without queries
        (Group("background", (0,), 4), Group("organ", (2,), 4)),  # class 1 in no group
        (Group("background", (0, 1), 4), Group("organ", (1,), 4)),  # class 1 in two
    ],
)
def test_groups_that_do_not_cover_the_classes_are_refused(groups):
    with pytest.raises(UserError):
        check_groups(groups, 2)


def test_grouped_assignment_sums_within_groups():
    assignment = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1, 1)
    groups = (Group("background", (0,), 1), Group("organ", (1,), 3))
    np.testing.assert_allclose(
        grouped_assignment(assignment, groups).flatten(), [0.1, 0.9], rtol=1e-6
    )


def test_an_unknown_option_names_its_near_match():
    with pytest.raises(UserError, match="'width'; did you mean 'widths'"):
        lookup(NETWORKS, "dk-uxnet-tiny", "network")(
            NetworkShape(1, 2, default_groups(["b", "o"], 8)), {"width": 1}
        )


@pytest.mark.parametrize("size", [(5, 4, 3), (9, 8, 7)])
def test_the_fast_depthwise_convolution_has_torch_s_output_and_gradients(size):
    fast = DepthwiseConv3d(3, 7).double()
    plain = nn.Conv3d(3, 3, 7, padding=3, groups=3).double()
    plain.load_state_dict(fast.state_dict())
    x, target = (torch.randn(2, 3, *size, dtype=torch.float64) for _ in range(2))
    results = []
    for convolution in (fast, plain):
        image = x.clone().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        output = convolution(image)
        (output * target).sum().backward()
        results.append((output, image.grad, convolution.weight.grad, convolution.bias.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("batch, size", [(1, (6, 6, 6)), (1, (2, 3, 4)), (2, (6, 6, 6))])
def test_the_fast_dense_convolution_has_torch_s_output_and_gradients(batch, size):
    fast, plain = Conv3x3x3(3, 4), nn.Conv3d(3, 4, 3, padding=1, bias=False)
    plain.load_state_dict(fast.state_dict())
    x, target = torch.randn(batch, 3, *size), torch.randn(batch, 4, *size)
    results = []
    for convolution in (fast, plain):
        image = x.clone().requires_grad_()
        output = convolution(image)
        (output * target).sum().backward()
        results.append((output, image.grad, convolution.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_mask_logits_are_the_same_whether_voxels_are_projected_or_not():
    """With fewer voxel than query channels the projection is folded into the queries: compare with
    making the map.
    """
    head = MaskLogits(voxel_channels=3, query_channels=8)
    features, queries = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 4, 8)
    voxels = nn.functional.normalize(head.voxels(features), dim=1)
    masks = nn.functional.normalize(head.queries(queries), dim=2) * head.log_gain.exp()
    torch.testing.assert_close(
        head(features, queries),
        torch.einsum("bcxyz,bnc->bnxyz", voxels, masks),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_full_resolution_head_is_exact_in_bfloat16_too():
    """Features far from the origin and a bias that brings them back: logits and length are small
    differences of large sums.
    """
    head = MaskLogits(voxel_channels=3, query_channels=8)
    features, masks = 10 + torch.randn(2, 3, 6, 6, 6).bfloat16(), torch.randn(2, 4, 8)
    with torch.no_grad():
        head.voxels.bias.copy_(-10 * head.voxels.weight.flatten(1).sum(dim=1))
        voxels = head.voxels(features.float())
        with torch.autocast("cpu", torch.bfloat16):
            logits, square = head._without_projecting(features, masks)
    torch.testing.assert_close(
        square, voxels.square().sum(dim=1, keepdim=True), rtol=1e-2, atol=1e-2
    )
    torch.testing.assert_close(
        logits, torch.einsum("bcxyz,bnc->bnxyz", voxels, masks), rtol=1e-2, atol=1e-2
    )


def test_v_net_s_dropout_can_be_switched_off():
    shape = NetworkShape(1, 2, ())
    image = torch.randn(2, 1, 16, 16, 16)
    for dropout, same in ((0.0, True), (0.5, False)):
        network = lookup(NETWORKS, "vnet", "network")(shape, {"dropout": dropout}).train()
        assert torch.equal(network(image).logits, network(image).logits) == same
