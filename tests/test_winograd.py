"""Winograd's convolutions have torch's results and gradients, nearly as exactly."""

import pytest
import torch
import torch.nn.functional as F

from dkuxnet.models.networks.cpu import fused, winograd

LAST = torch.channels_last_3d


def maps(batch, channels, width, size, dtype=torch.float64):
    """Input, weight and a gradient by the result."""
    torch.manual_seed(0)
    shapes = ((batch, channels, *size), (width, channels, 3, 3, 3), (batch, width, *size))
    return [torch.randn(shape, dtype=dtype).contiguous(memory_format=LAST) for shape in shapes]


def by_torch(x, weight, grad):
    """The convolution and its gradients by input and weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    result = F.conv3d(x, weight, padding=1)
    result.backward(grad)
    return result.detach(), x.grad, weight.grad


def by_us(x, weight, grad, parts):
    inputs = x.chunk(parts, dim=1)
    grads, grad_weight = fused.conv3x3x3_backward(grad, inputs, weight, True)
    return fused.conv3x3x3(inputs, weight), torch.cat(grads, dim=1), grad_weight


# slabs of one tile, of a few with a remainder, of all
@pytest.mark.parametrize("slab", [1, 1 << 12, 1 << 22])
@pytest.mark.parametrize(
    "batch, channels, width, size, parts",
    [(2, 4, 3, (8, 5, 6), 1), (1, 2, 5, (4, 3, 1), 1), (3, 6, 4, (12, 4, 5), 2)],
)
def test_results_and_gradients_are_those_of_torch(
    slab, batch, channels, width, size, parts, monkeypatch
):
    monkeypatch.setattr(winograd, "SLAB", slab)
    monkeypatch.setattr(winograd, "is_faster", lambda x, weight: True)
    x, weight, grad = maps(batch, channels, width, size)
    with torch.no_grad():
        ours = by_us(x, weight, grad, parts)
    for mine, its in zip(ours, by_torch(x, weight, grad), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)
    assert ours[0].is_contiguous(
        memory_format=LAST
    )  # the next layer need not change the memory layout


def test_rounding_errors_stay_within_ten_times_those_of_the_direct_convolution():
    x, weight, grad = maps(1, 32, 32, (16, 26, 26))
    exact = by_torch(x, weight, grad)
    x, weight, grad = (part.float() for part in (x, weight, grad))
    with torch.no_grad():
        assert winograd.is_faster(x, weight)
        ours = by_us(x, weight, grad, 1)
    for mine, its, true in zip(ours, by_torch(x, weight, grad), exact, strict=True):
        assert (mine - true).norm() < 10 * (its - true).norm() < 1e-5 * true.norm()


def test_it_stands_in_for_large_maps_alone_and_where_no_gradient_or_lower_precision_is_asked_for():
    large, weight = torch.empty(1, 32, 16, 26, 26), torch.empty(32, 32, 3, 3, 3)
    assert not winograd.is_faster(large, weight)  # its gradient would be recorded
    with torch.no_grad():
        assert winograd.is_faster(large, weight)
        # 18 slices do not split into tiles of 4
        assert not winograd.is_faster(torch.empty(1, 32, 18, 26, 26), weight)
        assert not winograd.is_faster(torch.empty(4, 8, 48, 32, 16), torch.empty(8, 8, 3, 3, 3))
        assert not winograd.is_faster(large.to("meta"), weight)
        assert not winograd.is_faster(large.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not winograd.is_faster(large, weight)
