"""The peer of the speed benchmark has the network's outputs and gradients, given its weights."""

import runpy
from pathlib import Path

import torch

from dkuxnet.core.types import Group, NetworkShape
from dkuxnet.machine.devices import to_device
from dkuxnet.models.networks.dkuxnet import dk_uxnet_tiny

PLAIN = runpy.run_path(str(Path(__file__).parents[1] / "measurements" / "plain_network.py"))
GROUPS = (Group("background", (0,), 4), Group("organ", (1, 2), 4))


def test_the_fast_network_computes_what_its_plain_composition_computes():
    torch.manual_seed(0)
    ours = to_device(
        dk_uxnet_tiny(NetworkShape(1, 3, GROUPS), {"layer_scale": 0.5}), torch.device("cpu")
    )
    plain = PLAIN["PlainDKUXNet"](1, 3, GROUPS, (8, 16, 32, 64), 32)
    plain.take_weights(ours)
    image = torch.randn(2, 1, 32, 32, 32)
    mine, its = ours(image), plain(image)
    torch.testing.assert_close(its.logits, mine.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(its.group_prob, mine.group_prob, rtol=1e-4, atol=1e-4)
    for one, other in zip(its.layer_group_prob, mine.layer_group_prob, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for output in (mine, its):
        (
            output.logits.square().mean()
            + sum(part.square().mean() for part in output.layer_group_prob)
        ).backward()
    theirs = dict(plain.named_parameters())
    whole = torch.stack([parameter.grad.norm() for parameter in ours.parameters()]).norm()
    for name, parameter in ours.named_parameters():
        # in float32; what a norm takes back, such as the scale of a single channel, has a gradient
        # of rounding alone
        error = (
            theirs[PLAIN["renamed"](name)].grad - parameter.grad
        ).norm() / parameter.grad.norm().clamp_min(1e-3 * whole)
        assert error < 0.02, (name, error)
