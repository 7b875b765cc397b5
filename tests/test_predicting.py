"""Inference on a CPU has the results of torch's operations, and stands in only where it may."""

import copy

import pytest
import torch
from torch import nn

from dkuxnet.core.types import HALVINGS, Group, NetworkShape
from dkuxnet.machine.devices import to_device
from dkuxnet.models.networks.blocks import ResidualBlock, UpBlock, UXBlock
from dkuxnet.models.networks.cpu import predicting
from dkuxnet.models.networks.dkuxnet import DKUXNet, dk_uxnet_small, dk_uxnet_tiny

GROUPS = (Group("background", (0,), 5), Group("organ", (1, 2), 3))
PARTS = {  # and the channels of what goes in; up to 8 channels out go by pairs
    "residual": (lambda: ResidualBlock(6, 6), [6]),
    "residual of a single channel": (lambda: ResidualBlock(1, 8), [1]),
    "residual, many channels": (lambda: ResidualBlock(3, 12), [3]),
    "ux": (lambda: UXBlock(5, layer_scale=0.7), [5]),
    "up": (lambda: UpBlock(10, 6, (2, 2, 2)), [10, 6]),
    "up, many channels": (lambda: UpBlock(4, 12, (2, 2, 2)), [4, 12]),
}
CPU = torch.device("cpu")


def strange(part: nn.Module) -> nn.Module:
    """`part` with no norm, bias or scale that is neutral."""
    torch.manual_seed(0)
    for parameter in part.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.3, 0.5)
    return to_device(part, CPU).eval()


@torch.no_grad()
def both(network: nn.Module, inputs: list[torch.Tensor]):
    """The results of `network` by `predicting`, and by torch's operations in float64.

    In float32 torch's own norms of large maps in channels-last memory are off by 1e-4.
    """
    exact = [x.double() for x in inputs]
    assert predicting.applies(inputs[0]) and not predicting.applies(exact[0])
    return network(*inputs), copy.deepcopy(network).double()(*exact)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("shape", [(2, 6, 8, 10), (1, 16, 16, 12), (1, 3, 5, 7)], ids=str)
def test_each_part_predicts_what_torch_s_operations_do(name, shape):
    make, channels = PARTS[name]
    part = strange(make())
    coarse = shape[0], channels[0], *shape[1:]
    fine = [(shape[0], width, *(2 * n for n in shape[1:])) for width in channels[1:]]
    inputs = [
        torch.randn(size).contiguous(memory_format=torch.channels_last_3d) + 1
        for size in (coarse, *fine)
    ]
    ours, its = both(part, inputs)
    assert (ours - its).abs().max() < 1e-5 * its.abs().max()
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)


SLICES = ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 1, 1))  # thick along z


@pytest.mark.parametrize("make", [dk_uxnet_tiny, dk_uxnet_small])
@pytest.mark.parametrize("strides", [HALVINGS, SLICES], ids=["halvings", "slices"])
# for a single patch torch takes another algorithm
@pytest.mark.parametrize("batch, channels", [(2, 1), (3, 2)])
def test_a_network_predicts_what_torch_s_operations_do(make, strides, batch, channels):
    torch.manual_seed(0)
    shape = NetworkShape(channels, 3, GROUPS, strides)
    network = to_device(make(shape, {"layer_scale": 0.5}), CPU).eval()
    image = torch.randn(batch, channels, 32, 16, 48 if strides == HALVINGS else 10)
    ours, its = both(network, [image])
    torch.testing.assert_close(
        ours.logits.softmax(dim=1), its.logits.softmax(dim=1).float(), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(ours.group_prob, its.group_prob.float(), rtol=0, atol=1e-5)
    assert (ours.features - its.features).abs().max() < 1e-5 * its.features.abs().max()
    assert its.logits.std() > 0.01  # else any two networks would agree
    with torch.no_grad():
        alone = network(image[:1]).logits.softmax(dim=1)
    torch.testing.assert_close(alone, ours.logits[:1].softmax(dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gain", [0.5, 20.0, 2000.0])
@pytest.mark.parametrize("chunk", [64, 2**16])
def test_queries_share_voxels_alike_in_parts_and_at_any_gain(gain, chunk, monkeypatch):
    """A softmax by plain exponentials would overflow at the largest."""
    monkeypatch.setattr(predicting, "CHUNK", chunk)
    torch.manual_seed(1)
    network = dk_uxnet_tiny(NetworkShape(1, 3, GROUPS), {})
    features, masks, table = torch.randn(2, 8, 4, 6, 5), torch.randn(2, 8, 32), torch.randn(2, 8, 3)
    head, masks = network.assignment.voxels, gain * nn.functional.normalize(masks, dim=2)
    with torch.no_grad():
        voxels = head(features)
        cosines = (
            torch.einsum("bcxyz,bnc->bnxyz", voxels, masks)
            * (voxels.square().sum(1, keepdim=True) + 1e-6).rsqrt()
        )
        expected = torch.einsum("bnt,bnxyz->btxyz", table, cosines.softmax(dim=1))
        found = predicting.assigned_sums(features, masks, head.weight.flatten(1), head.bias, table)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6 * max(gain, 5))


def test_the_short_way_is_for_float32_on_a_cpu_without_gradients_or_a_recorded_graph():
    x = torch.zeros(1, 1, 16, 16, 16)
    assert not predicting.applies(x)  # gradients are on
    with torch.no_grad():
        assert predicting.applies(x) and not predicting.applies(x.double())
        assert not predicting.applies(torch.zeros(1, device="meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not predicting.applies(x)
        asked = []
        torch.jit.trace(
            lambda x: asked.append(predicting.applies(x)) or x + 1, x, check_trace=False
        )
        assert asked == [False]


def test_a_training_network_takes_no_short_way_where_gradients_are_off():
    """Losses read a teacher's outputs, those of every layer among them; it may drop residuals."""
    network = DKUXNet.train(dk_uxnet_tiny(NetworkShape(1, 3, GROUPS), {}))
    with torch.no_grad():
        assert len(network(torch.randn(1, 1, 16, 16, 16)).layer_group_prob) == 6
        assert network.eval()(torch.randn(1, 1, 16, 16, 16)).layer_group_prob == ()
