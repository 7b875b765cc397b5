"""The parts that are written out have torch's results and gradients, and keep less."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dkuxnet.core.types import NetworkShape
from dkuxnet.machine.devices import to_device
from dkuxnet.models.networks.blocks import Conv1x1x1, DepthwiseConv3d, ResidualBlock, UXBlock
from dkuxnet.models.networks.cpu import fused, winograd
from dkuxnet.models.networks.plain import uxnet_tiny

PARTS = {
    "residual": lambda: ResidualBlock(5, 5),
    "residual, wider": lambda: ResidualBlock(3, 6),
    "residual, narrower": lambda: ResidualBlock(6, 3),
    "ux": lambda: UXBlock(5, layer_scale=0.7),
    "depthwise": lambda: DepthwiseConv3d(5, 7),
}


def gradients(part: Callable, x: torch.Tensor) -> list[torch.Tensor]:
    """The result of `part`, and the gradients of a weighted sum of it by `x` and each parameter."""
    x = x.clone().requires_grad_()
    result = part(x)
    (
        result * torch.linspace(-1, 2, result.numel(), dtype=x.dtype).view(result.shape)
    ).sum().backward()
    return [
        result,
        x.grad,
        *(
            parameter.grad
            for parameter in (part.parameters() if isinstance(part, nn.Module) else ())
        ),
    ]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("shape", [(2, 6, 8, 7), (1, 8, 8, 4), (3, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format], ids=str)
def test_each_part_computes_what_torch_s_operations_do(name, shape, layout, monkeypatch):
    torch.manual_seed(0)
    part = PARTS[name]().double()
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    if layout == torch.channels_last_3d:
        part = to_device(part, torch.device("cpu"))
    channels = part.conv1.in_channels if name.startswith("residual") else 5
    x = torch.randn(shape[0], channels, *shape[1:], dtype=torch.float64).contiguous(
        memory_format=layout
    )
    ours = gradients(copy.deepcopy(part), x)
    monkeypatch.setattr(fused, "applies", lambda x: False)
    for mine, its in zip(ours, gradients(copy.deepcopy(part), x), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("large", [False, True])
def test_a_block_of_two_inputs_is_that_of_their_channels_joined(large, monkeypatch):
    monkeypatch.setattr(
        winograd, "is_faster", lambda x, weight: large and not torch.is_grad_enabled()
    )
    torch.manual_seed(0)
    part = to_device(ResidualBlock(6, 3).double(), torch.device("cpu"))
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 8, 5, 6, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last_3d
    )
    ours = (
        gradients(lambda x: part(*x.chunk(2, dim=1)), x),
        [parameter.grad.clone() for parameter in part.parameters()],
    )
    part.zero_grad()
    monkeypatch.setattr(fused, "applies", lambda x: False)
    its = gradients(part, x)
    for mine, other in zip((*ours[0], *ours[1]), its, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_a_block_of_one_input_without_a_gradient_still_trains():
    part = to_device(ResidualBlock(1, 3), torch.device("cpu"))
    part(torch.randn(2, 1, 8, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in part.parameters())


def test_a_pointwise_convolution_is_torch_s():
    part = Conv1x1x1(3, 5).double()
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last_3d
    )
    torch.testing.assert_close(part(x), nn.functional.conv3d(x, part.weight, part.bias))
    # the next layer need not change the memory layout
    assert part(x).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "name, ours, plain", [("residual", 4, 5), ("residual, wider", 3.5, 5.5), ("ux", 4, 12)]
)
def test_so_many_maps_are_kept_for_the_backward_pass(name, ours, plain, monkeypatch):
    """In maps as large as the result; the input is one of them.

    Of a UX block's four, the depthwise convolution and the norm keep three.
    """
    part = to_device(PARTS[name](), torch.device("cpu"))
    assert maps_kept(part) == ours
    monkeypatch.setattr(fused, "applies", lambda x: False)
    assert maps_kept(part) == plain


def maps_kept(part: nn.Module) -> int:
    channels = 3 if isinstance(part, ResidualBlock) and part.conv1.in_channels == 3 else 5
    x = (
        torch.randn(2, channels, 16, 16, 16)
        .contiguous(memory_format=torch.channels_last_3d)
        .requires_grad_()
    )
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = part(x)
    sizes = [
        tensor.untyped_storage().nbytes() for tensor in kept.values() if tensor.numel() >= x.numel()
    ]
    return round(sum(sizes) / result.untyped_storage().nbytes(), 1)


def test_a_second_backward_pass_is_refused_rather_than_wrong():
    part = to_device(ResidualBlock(3, 3), torch.device("cpu"))
    loss = part(torch.randn(1, 3, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_decoder_that_computes_again_has_the_same_gradients_and_keeps_less():
    network = to_device(uxnet_tiny(NetworkShape(1, 2, ()), {}), torch.device("cpu"))
    saving = to_device(uxnet_tiny(NetworkShape(1, 2, ()), {"recompute": True}), torch.device("cpu"))
    saving.load_state_dict(network.state_dict())
    image, kept, gradients = torch.randn(1, 1, 32, 32, 32), [], []
    for each in (network, saving):
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = each.train()(image).logits
        logits.square().mean().backward()
        kept.append(sum(sizes.values()))
        gradients.append([parameter.grad for parameter in each.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert kept[1] < 0.7 * kept[0], kept


def test_no_part_stands_in_where_torch_chooses_the_precision_or_no_gradient_is_wanted():
    x = torch.zeros(1)
    assert fused.applies(x)
    with torch.no_grad():
        assert not fused.applies(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.applies(x)
    assert not fused.applies(torch.zeros(1, device="meta"))
