"""The sliding window and the way back to the scan's grid."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from dkuxnet.core.config import InferSettings
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import NetworkShape, Output, Volume
from dkuxnet.data.geometry import resample, resampled_shape, to_ras
from dkuxnet.machine.devices import to_device
from dkuxnet.models.components import Cleaning, keep_largest_component
from dkuxnet.models.networks.dkuxnet import dk_uxnet_tiny
from dkuxnet.models.networks.grouping import default_groups
from dkuxnet.prediction import windows as infer

CPU = torch.device("cpu")


class Constant(nn.Module):
    """The same logits everywhere."""

    def forward(self, x):
        return Output(
            logits=torch.tensor([0.3, -0.2, 0.9])
            .view(1, 3, 1, 1, 1)
            .expand(len(x), 3, *x.shape[2:])
        )


class Voxelwise(nn.Module):
    """Logits that depend on their own voxel alone."""

    def forward(self, x):
        return Output(logits=torch.cat([torch.zeros_like(x), x, 0.5 * x.square()], dim=1))


def window(network, image, patch=(16, 16, 16), overlap=0.5, batch=3, progress=None, **more):
    settings = InferSettings(overlap=overlap, batch=batch)
    windows = infer.Windows(patch, 3, settings, CPU, **more)
    return infer.sliding_window(network, image, windows, progress)


@pytest.mark.parametrize("size", [(16, 16, 16), (37, 16, 20), (5, 40, 9)])
@pytest.mark.parametrize("overlap", [0, 0.5, 0.8])
def test_a_constant_network_predicts_its_constant_in_every_voxel(size, overlap):
    result = window(
        Constant(),
        np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32),
        overlap=overlap,
    )
    expected = torch.tensor([0.3, -0.2, 0.9]).softmax(0).numpy()
    assert result.prob.shape == (3, *size)
    np.testing.assert_allclose(
        result.prob, np.broadcast_to(expected[:, None, None, None], result.prob.shape), atol=1e-6
    )


@pytest.mark.parametrize("size", [(33, 18, 25), (7, 30, 16)])
def test_a_voxelwise_network_predicts_the_same_with_windows_and_without(size):
    image = np.random.default_rng(1).normal(size=(1, *size)).astype(np.float32)
    whole = Voxelwise()(torch.from_numpy(image)[None]).logits.softmax(1)[0].numpy()
    result = window(Voxelwise(), image, with_uncertainty=True)
    np.testing.assert_allclose(result.prob, whole, atol=1e-5)
    entropy = -(whole * np.log(whole)).sum(0) / np.log(3)
    np.testing.assert_allclose(result.uncertainty, entropy, atol=1e-5)


class WithGroups(Voxelwise):
    """Three groups, whose shares depend on their own voxel alone."""

    def forward(self, x):
        output = super().forward(x)
        return Output(logits=output.logits, group_prob=(2 * output.logits).softmax(dim=1))


@pytest.mark.parametrize("size", [(33, 18, 25), (7, 30, 16)])
def test_query_groups_are_blended_like_probabilities(size):
    image = np.random.default_rng(2).normal(size=(1, *size)).astype(np.float32)
    whole = WithGroups()(torch.from_numpy(image)[None]).group_prob[0].numpy()
    np.testing.assert_allclose(window(WithGroups(), image, groups=3).groups, whole, atol=1e-5)
    assert (
        window(WithGroups(), image).groups is None
        and window(Voxelwise(), image, groups=3).groups is None
    )


def test_a_network_s_windows_are_blended_as_a_plain_loop_blends_them():
    """Fresh DK-UXNet, run by torch's own convolutions in the loop: the shorter way that inference
    takes changes nothing.
    """
    torch.manual_seed(0)
    shape = NetworkShape(1, 2, default_groups(["background", "organ"], 4))
    network = to_device(dk_uxnet_tiny(shape, {}), CPU).eval()
    image = np.random.default_rng(3).normal(size=(1, 40, 32, 35)).astype(np.float32)
    prob, total = np.zeros((2, 40, 32, 35)), np.zeros((40, 32, 35))
    weight = infer.gaussian_weight((32, 32, 32)).numpy()
    for x, z in itertools.product((0, 8), (0, 3)):
        box = (slice(x, x + 32), slice(0, 32), slice(z, z + 32))
        with torch.no_grad():
            logits = network(torch.from_numpy(image[(slice(None), *box)])[None]).logits
        prob[(slice(None), *box)] += weight * logits.softmax(dim=1)[0].numpy()
        total[box] += weight
    windows = infer.Windows((32, 32, 32), 2, InferSettings(overlap=0.5, batch=3), CPU)
    result = infer.sliding_window(network, image, windows)
    np.testing.assert_allclose(result.prob, prob / total, atol=1e-4)


def test_windows_cover_and_overlap():
    for size in range(16, 80):
        starts = infer.window_starts(size, 16, 0.5)
        assert starts[0] == 0 and starts[-1] == size - 16
        assert all(b - a <= 8 for a, b in itertools.pairwise(starts))
    assert infer.window_starts(10, 16, 0.5) == [0]


def test_the_centre_of_a_window_weighs_most():
    weight = infer.gaussian_weight((8, 16, 4))
    assert weight.shape == (8, 16, 4) and weight.min() >= 1e-3
    assert weight[4, 8, 2] == weight.max() and weight[0, 0, 0] == weight.min()
    along = weight[:, 8, 2]
    assert torch.allclose(
        along[0] / along[3], torch.exp(torch.tensor(-(3.5**2 - 0.5**2) / 2))
    )  # sigma = 8 / 8


def test_the_predictor_s_own_uncertainty_goes_first():
    class Doubting(Constant):
        def forward(self, x):
            output = super().forward(x)
            output.uncertainty = torch.full((len(x), *x.shape[2:]), 0.25)
            return output

    result = window(Doubting(), np.zeros((1, 20, 16, 16), np.float32), with_uncertainty=True)
    np.testing.assert_allclose(result.uncertainty, 0.25, atol=1e-6)


def flipped_oblique() -> np.ndarray:
    """An affine whose axes are permuted, flipped, anisotropic and tilted by a few degrees."""
    tilt = np.array([[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.array([[0, -1.5, 0], [0, 0, 2.0], [-1.0, 0, 0]])
    affine[:3, 3] = (10, -20, 30)
    return affine


def test_a_label_comes_back_to_the_place_it_was_taken_from():
    affine, shape = flipped_oblique(), (40, 30, 24)
    truth = np.zeros(shape, np.uint8)
    truth[5:20, 12:25, 3:14] = 1  # not symmetric in any axis
    ras = to_ras(Volume(truth, affine))
    grid = resampled_shape(ras.shape, ras.spacing_mm, (1.0, 1.0, 1.0))
    share = resample(ras.array == 1, grid)
    label = infer.label_on_scan(np.stack([1 - share, share]), shape, affine)
    assert label.shape == shape and label.dtype == np.uint8
    assert 2 * (label & truth).sum() / (label.sum() + truth.sum()) > 0.97


def test_slabs_change_nothing():
    prob = np.random.default_rng(0).random((3, 9, 8, 7)).astype(np.float32)
    for shape in ((21, 16, 30), (700, 200, 100)):  # one slab, and more than one
        label, direct = (
            infer.label_on_scan(prob, shape, np.eye(4)),
            infer.map_on_scan(prob, shape, np.eye(4)),
        )
        # the most probable class of every voxel; on some CPUs BLAS moves the last bit with the
        # shape, and so decides ties anew
        chosen = np.take_along_axis(direct, label[None].astype(int), axis=0)[0]
        assert (direct.max(axis=0) - chosen).max() <= 1e-6 and (
            label != direct.argmax(axis=0)
        ).mean() < 1e-4


def test_label_values_come_back_in_the_smallest_integer_type():
    volume = infer.label_volume(np.array([[[0, 1, 1]]], np.uint8), np.eye(4), [0, 255])
    assert volume.array.dtype == np.uint8 and volume.array.tolist() == [[[0, 255, 255]]]
    assert (
        infer.label_volume(np.zeros((1, 1, 1), np.uint8), np.eye(4), [0, 700]).array.dtype
        == np.uint16
    )


def test_memory_is_asked_for_before_it_is_taken():
    with pytest.raises(UserError, match="GiB of memory"):
        infer.check_memory(2**60)
    infer.check_memory(1)
    few = infer.Windows((16, 16, 16), 3, InferSettings(), CPU)
    assert few.needed_bytes((10, 32, 32), 1) == 4 * 16 * 32 * 32 * (2 + 3 + 1)
    more = infer.Windows((16, 16, 16), 3, InferSettings(), CPU, True, 2)
    assert more.needed_bytes((10, 32, 32), 1) == 4 * 16 * 32 * 32 * (2 + 3 + 1 + 2 + 2)


def test_of_each_class_the_largest_piece_stays():
    label = np.zeros((9, 9, 9), np.uint8)
    label[1:4, 1:4, 1:4], label[6, 6, 6], label[4, 4, 4] = (
        1,
        1,
        1,
    )  # a cube, a speck, a speck that touches by a corner
    label[6:9, 0:2, 0], label[0, 8, 8] = 3, 3  # class 2 is absent
    kept = keep_largest_component(label)
    assert (
        (kept == 1).sum() == 27
        and (kept == 3).sum() == 6
        and kept[6, 6, 6] == kept[4, 4, 4] == kept[0, 8, 8] == 0
    )
    prob = np.stack([label == k for k in range(4)]).astype(np.float32)
    assert np.array_equal(
        infer.label_on_scan(prob, (9, 9, 9), np.eye(4), Cleaning(frozenset({1, 2, 3}))), kept
    )
    assert np.array_equal(infer.label_on_scan(prob, (9, 9, 9), np.eye(4)), label)
