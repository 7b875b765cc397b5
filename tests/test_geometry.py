"""Grids: whatever is done to the array, a voxel keeps its place in the world."""

import itertools
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dkuxnet.core.types import Volume
from dkuxnet.data import geometry
from dkuxnet.data.geometry import (
    Region,
    from_ras,
    pad_to,
    reach_of,
    resample,
    resample_from,
    resample_label,
    resample_region,
    resampled_affine,
    resampled_shape,
    to_ras,
)

SHAPE = (4, 5, 7)
ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
RNG = np.random.default_rng(0)


def affine_of(
    axes=(0, 1, 2), signs=(1, 1, 1), spacing_mm=(0.7, 1.3, 3.0), degrees=(0, 0, 0)
) -> np.ndarray:
    """Array axis i runs along world axis axes[i] with signs[i], then the whole is turned."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for i, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, i] = sign * spacing_mm[i]
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (-31.0, 12.5, 400.0)
    return affine


def world(affine: np.ndarray, shape) -> np.ndarray:
    """(X, Y, Z, 3) world coordinates of the voxels' centres."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 31)], ids=["straight", "oblique"])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_voxel_keeps_its_place_in_ras_order_and_the_way_back_is_exact(axes, signs, degrees):
    affine = affine_of(axes, signs, degrees=degrees)
    scan = Volume(
        np.moveaxis(world(affine, SHAPE), -1, 0), affine
    )  # three channels: each voxel holds its own place
    ras = to_ras(scan)
    np.testing.assert_allclose(
        np.moveaxis(ras.array, 0, -1), world(ras.affine, ras.shape), atol=1e-9
    )
    assert (np.diag(ras.affine)[:3] > 0).all()
    np.testing.assert_array_equal(np.abs(ras.affine[:3, :3]).argmax(axis=0), [0, 1, 2])
    np.testing.assert_array_equal(from_ras(ras.array, affine), scan.array)
    np.testing.assert_array_equal(from_ras(ras.array[0], affine), scan.array[0])
    np.testing.assert_array_equal(to_ras(Volume(scan.array[0], affine)).array, ras.array[0])


sizes = st.tuples(*[st.integers(1, 12)] * 3)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes)
def test_a_constant_stays_constant_in_every_voxel(old, new):
    np.testing.assert_allclose(resample(np.full((2, *old), 3.25), new), 3.25, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes)
def test_the_resampled_grid_covers_the_same_box(old, new):
    affine = affine_of((2, 0, 1), (1, -1, 1), degrees=(10, 20, 30))
    after = resampled_affine(affine, old, new)
    for corner in itertools.product(
        (0, 1), repeat=3
    ):  # outer faces are half a voxel beyond the centres
        place, where = (np.array([*(np.multiply(corner, n) - 0.5), 1.0]) for n in (old, new))
        np.testing.assert_allclose(after @ where, affine @ place, atol=1e-9)


@pytest.mark.parametrize("new", [(24, 12, 36), (9, 15, 6), (18, 20, 18), (6, 10, 9)])
def test_a_ramp_through_the_world_stays_the_ramp(new):
    """Up and down, by whole and by odd factors: a shift of half a voxel, or a mirrored axis, would
    be far off.
    """
    old = (18, 20, 18)
    affine = affine_of(spacing_mm=(1, 1, 1), degrees=(5, 10, 15))
    for direction in np.eye(3):
        before, after = (
            world(affine, old) @ direction,
            world(resampled_affine(affine, old, new), new) @ direction,
        )
        reach = tuple(
            slice(r, n - r)
            for n, r in zip(
                new, (2 * max(1, -(-n // o)) for n, o in zip(new, old, strict=True)), strict=True
            )
        )
        # the triangle filter is sampled at voxels: by odd factors a centre moves by up to 0.083 of
        # a voxel
        np.testing.assert_allclose(resample(before, new)[reach], after[reach], atol=0.085)


def test_interpolation_towards_smaller_voxels_is_linear():
    np.testing.assert_allclose(
        resample(np.array([0.0, 4.0]).reshape(2, 1, 1), (4, 1, 1)).ravel(), [0, 1, 3, 4]
    )


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_whole_factors_down_conserve_the_mean(factor):
    array = np.pad(
        RNG.normal(size=[4 * factor] * 3), 2 * factor
    )  # the filter would count voxels at the border twice
    np.testing.assert_allclose(resample(array, [8] * 3).mean(), array.mean(), atol=1e-6)


def test_averaging_down_removes_what_the_coarse_grid_cannot_hold():
    stripes = np.tile([1.0, -1.0], 12)[:, None, None] * np.ones((24, 8, 8))
    assert (
        np.abs(resample(stripes, (6, 8, 8))[1:-1]).max() < 1e-6
    )  # picking every fourth voxel would give 1


def test_a_smooth_scan_survives_the_way_down_and_up():
    x, y, z = np.meshgrid(*[np.linspace(0, np.pi, n) for n in (40, 36, 44)], indexing="ij")
    smooth = np.sin(x) * np.sin(y) * np.sin(z)
    back = resample(resample(smooth, (20, 18, 22)), smooth.shape)
    assert np.abs(back - smooth)[2:-2, 2:-2, 2:-2].max() < 0.02


def test_resampling_keeps_channels_apart_and_the_input_unchanged():
    array = RNG.normal(size=(2, 6, 7, 8)).astype(np.float32)
    copy = array.copy()
    result = resample(array, (9, 7, 4))
    assert result.dtype == np.float32
    for channel, alone in zip(result, array, strict=True):
        # on some CPUs BLAS sums matrices of another shape in another order, which moves the last
        # bit
        np.testing.assert_allclose(channel, resample(alone, (9, 7, 4)), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(array, copy)


def test_the_shape_follows_from_extent_and_spacing():
    assert resampled_shape((88, 576, 10), (1.25, 0.625, 0.1), (2.5, 2.5, 2.5)) == (44, 144, 1)


def ball(shape, centre, radius) -> np.ndarray:
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm(places - centre, axis=-1) <= radius


@pytest.mark.parametrize("new", [(18, 20, 16), (54, 48, 40), (36, 50, 16)])
def test_a_label_keeps_its_classes_volume_and_place(new):
    old = (36, 40, 32)
    label = ball(old, (17, 20, 15), 14).astype(np.uint8)
    label[ball(old, (20, 20, 15), 9)] = 4
    result = resample_label(label, new, 5)
    assert result.dtype == np.uint8 and result.shape == new
    assert set(np.unique(result)) == {0, 1, 4}  # no class between two others
    voxel = np.prod(old) / np.prod(new)
    for k in (1, 4):
        assert voxel * (result == k).sum() == pytest.approx((label == k).sum(), rel=0.06)
        centre = (np.argwhere(result == k).mean(axis=0) + 0.5) * np.divide(old, new) - 0.5
        np.testing.assert_allclose(centre, np.argwhere(label == k).mean(axis=0), atol=0.25)


def test_the_largest_share_wins_without_a_majority():
    assert resample_label(np.array([[0, 1], [1, 2]])[..., None], (1, 1, 1), 3) == 1


def test_a_label_on_its_own_grid_is_untouched():
    label = RNG.integers(0, 4, SHAPE)
    np.testing.assert_array_equal(resample_label(label, SHAPE, 4), label)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.booleans())
def test_padding_is_even_and_cut_off_by_its_slices(have, want, channels):
    array = RNG.normal(size=(2, *have) if channels else have)
    padded, back = pad_to(array, want, -7.0)
    assert padded.shape[-3:] == tuple(map(max, have, want))
    np.testing.assert_array_equal(padded[(..., *back)], array)
    assert (padded == -7.0).sum() == padded.size - array.size
    for place, n, whole in zip(back, have, padded.shape[-3:], strict=True):
        assert 0 <= (whole - n - place.start) - place.start <= 1


@pytest.fixture
def sparse(monkeypatch):
    """Weights as they are for long edges."""
    geometry.resampling_matrix.cache_clear()
    monkeypatch.setattr(geometry, "DENSE_WEIGHTS", 0)
    yield
    geometry.resampling_matrix.cache_clear()


def resampled() -> list[np.ndarray]:
    array = np.random.default_rng(0).normal(size=(2, 24, 17, 9))
    whole, part = Region.whole((11, 17, 20)), Region.of((11, 17, 20), np.s_[2:7, 0:17, 5:13])
    values, weights = resample_from(resample_region(array, part), part, Region.whole((24, 17, 9)))
    reached = np.array(reach_of(part, (24, 17, 9)).start)
    return [resample(array, whole.shape), resample_region(array, part), values, weights, reached]


def test_the_weights_of_long_edges_do_what_those_of_short_ones_do(request):
    short = resampled()
    request.getfixturevalue("sparse")
    for a, b in zip(short, resampled(), strict=True):
        assert a.dtype == b.dtype and np.allclose(a, b, rtol=0, atol=1e-5)


def test_a_long_edge_takes_little_memory():
    """As an array the weights would take 3.2 GB, twice."""
    weights = geometry.resampling_matrix(40_000, 20_000)
    assert weights.data.nbytes < 2**20
    assert np.allclose(resample(np.ones((40_000, 2, 2)), (20_000, 2, 2)), 1)


@pytest.mark.parametrize("new", [(9, 40, 17), (23, 11, 12)])
def test_a_device_gives_the_same_up_to_rounding_and_the_cpu_what_it_has_no_room_for(
    monkeypatch, new
):
    values = np.random.default_rng(0).normal(size=(3, 23, 20, 12)).astype(np.float32)
    plainly, gpu, calls = resample(values, new), SimpleNamespace(type="cuda"), []
    on_device = geometry._contract_on

    def on_cpu(array, matrices, device):
        calls.append(device)
        return on_device(array, matrices, torch.device("cpu"))

    monkeypatch.setattr(geometry, "_contract_on", on_cpu)
    np.testing.assert_allclose(resample(values, new, gpu), plainly, atol=1e-6)
    assert resample(values, values.shape[1:], gpu) is not None and calls == [gpu]  # nothing to do
    region, whole = Region((23, 20, 12), (3, 0, 2), (20, 20, 9)), Region.whole(new)
    part = values[(slice(None), *region.box)]
    for found, expected in zip(
        geometry.resample_from(part, region, whole, gpu),
        geometry.resample_from(part, region, whole),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    monkeypatch.setattr(torch, "tensordot", Mock(side_effect=torch.OutOfMemoryError))
    assert (resample(values, new, gpu) == plainly).all()
