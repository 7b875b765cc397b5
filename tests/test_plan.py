"""The plan: patches, normalisation, networks."""

import math

import numpy as np
import pytest

import described
from dkuxnet.core.schemas import ZScore
from dkuxnet.core.types import NEVER_FLAT
from dkuxnet.data import network_grid, plan


@pytest.mark.parametrize(
    "size, voxels, divisor, expected",
    [
        ((48, 35.6, 22), 131072, (16, 16, 16), [48, 32, 16]),  # the left atrium at 2.5 mm
        ((9, 17, 33), 131072, (16, 16, 16), [16, 16, 32]),
        # a voxel short of a block counts as the block
        ((31, 32, 33), 131072, (16, 16, 16), [32, 32, 32]),
        ((500, 500, 100), 96**3, (16, 16, 16), [96, 96, 96]),
        ((1e12, 3, 3), 131072, (16, 16, 16), [512, 16, 16]),
        ((216, 256, 9), 131072, (16, 16, 2), [128, 128, 8]),  # cine MR of 10 mm slices
        ((500, 500, 3), 2**20, (16, 16, 1), [496, 496, 3]),
        ((40, 40, 30), 16 * 16 * 20, (16, 16, 2), [16, 16, 20]),
    ],
)
def test_patches_fit_into_the_case_and_the_memory(size, voxels, divisor, expected):
    patch = plan.plan_patch(size, voxels, divisor)
    assert list(patch) == expected and math.prod(patch) <= voxels
    assert all(n % d == 0 for n, d in zip(patch, divisor, strict=True))


@pytest.mark.parametrize(
    "size, spacing_mm, expected",
    [
        ((128, 128, 128), (1, 1, 1), [(2, 2, 2)] * 4),
        ((128, 128, 128), (1, 1, 1.9), [(2, 2, 2)] * 4),
        # 3, 6, then 12 mm in the plane before 10 mm slices are less than twice as long
        ((216, 256, 9), (1.5, 1.5, 10), [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 1)]),
        ((216, 256, 40), (1.5, 1.5, 10), [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((40, 256, 256), (4, 1, 1), [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((35, 50, 36), (1, 1, 1), [(2, 2, 2)] * 3 + [(1, 1, 1)]),  # no edge below 4 voxels
        ((3, 3, 3), (1, 1, 1), [(1, 1, 1)] * 4),
    ],
)
def test_an_axis_is_halved_while_its_voxels_are_short_and_many(size, spacing_mm, expected):
    assert list(plan.plan_strides(size, spacing_mm)) == expected


def test_thick_slices_are_seen_one_by_one_until_the_plane_is_as_coarse():
    def along(axis, spacing_mm, strides):
        return [level[axis] for level in plan.plan_flat(spacing_mm, strides)]

    in_plane, all_axes = (2, 2, 1), (2, 2, 2)
    slices = (in_plane, in_plane, all_axes, in_plane)
    assert along(2, (1.5, 1.5, 10), slices) == [True, True, False, False, False]
    assert along(2, (3, 3, 10), (in_plane, all_axes, in_plane, in_plane)) == [True] + [False] * 4
    assert along(0, (4, 1, 1), ((1, 2, 2),) * 4) == [True, True, False, False, False]
    # no slices: an axis that is not halved because its voxels are few
    assert plan.plan_flat((1, 1, 1), (in_plane,) * 4) == NEVER_FLAT
    figures = described.fingerprint(extent_mm_median=[300.0, 300.0, 90.0])
    made = plan.make_plan(figures, ["MRI"], (1.5, 1.5, 10))
    assert made.flat == plan.plan_flat((1.5, 1.5, 10), made.strides) != NEVER_FLAT


def test_z_score_is_of_each_scan_and_ct_of_the_data_set():
    figures = described.fingerprint(
        percentiles_median=[[-100.0, 0.0, 300.0]], mean=[20.0], std=[40.0]
    )
    assert plan.plan_channel("MRI", 0, figures) == ZScore(kind="z-score")
    # holds the letters CT, is none
    assert plan.plan_channel("contrast", 0, figures) == ZScore(kind="z-score")
    ct = plan.plan_channel("CT", 0, figures)
    scan = np.array([[[[-2000.0, 20.0, 60.0, 3000.0]]]], np.float32)
    np.testing.assert_allclose(
        network_grid.normalise(scan, [ct]).ravel(), [-25.5, 0, 1, 24.5], atol=1e-5
    )
    offset = described.fingerprint(percentiles_median=[[0.0, 1000.0, 1600.0]])
    raw = plan.plan_channel("CT", 0, offset)
    assert (raw.low, raw.high) == (-1000, 1600)
    z = network_grid.normalise(
        np.random.default_rng(0).normal(5, 3, (2, 8, 8, 8)).astype(np.float32),
        [ZScore(kind="z-score")] * 2,
    )
    np.testing.assert_allclose(
        [z.mean(axis=(1, 2, 3)), z.std(axis=(1, 2, 3))], [[0, 0], [1, 1]], atol=1e-4
    )


@pytest.mark.parametrize(
    "memory_gib, expected",
    [
        (None, "dk-uxnet-tiny"),
        (4, "dk-uxnet-tiny"),
        (12, "dk-uxnet-small"),
        (24, "dk-uxnet"),
        (80, "dk-uxnet"),
    ],
)
def test_the_network_and_its_patch_follow_the_memory(monkeypatch, memory_gib, expected):
    import torch

    monkeypatch.setattr("dkuxnet.data.plan.has_gpu_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: memory_gib is not None)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda i: type("P", (), {"total_memory": memory_gib * 2**30}),
    )
    name, voxels = plan.advise_network()
    assert name == expected
    if name in plan.STEP_BYTES:
        assert plan.SMALLEST_PATCH <= voxels <= plan.LARGEST_PATCH
        assert voxels * plan.STEP_BYTES[name] <= 0.8 * memory_gib * 2**30
