"""The metrics against values worked out by hand, against MedPy, and in the empty cases."""

import numpy as np
import pytest
from medpy.metric import binary as medpy
from scipy.ndimage import gaussian_filter

from dkuxnet.evaluation.metrics import METRICS, dice, jaccard, segmentation_metrics

SPACING_MM = (0.5, 1.25, 3.0)


def cube(start, size=4, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + size) for s in start)] = True
    return mask


def voxels(*places, shape=(10, 10, 10)):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def blobs(seed, shape=(24, 20, 16), threshold=0.02):
    """Random smooth objects, several of which touch the array's border."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return gaussian_filter(noise, 2, mode="constant") > threshold


def assert_as_medpy(prediction, truth, spacing_mm):
    ours = segmentation_metrics(prediction, truth, spacing_mm)
    theirs = {
        "dice": medpy.dc(prediction, truth),
        "jaccard": medpy.jc(prediction, truth),
        "hd95_mm": medpy.hd95(prediction, truth, voxelspacing=spacing_mm),
        "asd_mm": medpy.asd(prediction, truth, voxelspacing=spacing_mm),
        "hd95_voxels": medpy.hd95(prediction, truth),
        "asd_voxels": medpy.asd(prediction, truth),
    }
    assert ours == pytest.approx(theirs, abs=1e-6, rel=0)
    assert (dice(prediction, truth), jaccard(prediction, truth)) == pytest.approx(
        (theirs["dice"], theirs["jaccard"])
    )


def test_identical_masks_are_perfect():
    figures = segmentation_metrics(cube((3, 3, 3)), cube((3, 3, 3)), SPACING_MM)
    assert figures == {
        "dice": 1, "jaccard": 1, "hd95_mm": 0, "asd_mm": 0, "hd95_voxels": 0, "asd_voxels": 0
    }  # fmt: skip


def test_cube_shifted_by_one_voxel():
    """Each cube of 4^3 has 4^3 - 2^3 = 56 surface voxels.

    The prediction starts one voxel later along x. Its far face (16 voxels) lies outside the truth,
    one voxel away; its near face lies in the truth's second layer, where 12 voxels are truth's
    surface and 4 are one voxel away; its two inner layers (12 each) meet a ring of truth and, in
    the last layer, a face. So (16 + 4) / 56.
    """
    figures = segmentation_metrics(cube((4, 3, 3)), cube((3, 3, 3)), (0.5, 2.0, 2.0))
    assert figures["dice"] == 2 * 48 / 128
    assert figures["jaccard"] == 48 / 80
    assert figures["asd_voxels"] == pytest.approx(20 / 56)
    assert figures["asd_mm"] == pytest.approx(0.5 * 20 / 56)
    assert (figures["hd95_voxels"], figures["hd95_mm"]) == (1, 0.5)


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 2 * 0.5), (1, 2 * 1.25), (2, 2 * 3.0)])
def test_single_voxels_two_apart_along_each_axis(axis, expected_mm):
    place = [4, 4, 4]
    place[axis] += 2
    figures = segmentation_metrics(voxels((4, 4, 4)), voxels(tuple(place)), SPACING_MM)
    assert (figures["dice"], figures["jaccard"]) == (0, 0)
    assert (figures["hd95_voxels"], figures["asd_voxels"]) == (2, 2)
    assert (figures["hd95_mm"], figures["asd_mm"]) == (expected_mm, expected_mm)


def test_single_voxels_on_a_diagonal_of_an_anisotropic_grid():
    figures = segmentation_metrics(voxels((1, 1, 1)), voxels((4, 5, 1)), (2.0, 1.0, 7.0))
    assert figures["hd95_voxels"] == 5
    assert figures["hd95_mm"] == pytest.approx(np.hypot(6, 4))


def test_asd_runs_from_prediction_to_truth_only():
    one, two = voxels((0, 0, 0)), voxels((0, 0, 0), (0, 0, 6))
    assert segmentation_metrics(one, two, (1, 1, 1))["asd_mm"] == 0
    assert segmentation_metrics(two, one, (1, 1, 1))["asd_mm"] == 3


def test_hd95_pools_both_directions():
    """Distances 0 (one way) and 0, 6 (the other): the pool's percentile is 5.4, the larger
    direction's is 5.7.
    """
    figures = segmentation_metrics(voxels((0, 0, 0)), voxels((0, 0, 0), (0, 0, 6)), (1, 1, 2))
    assert figures["hd95_voxels"] == pytest.approx(5.4)
    assert figures["hd95_mm"] == pytest.approx(10.8)


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (0.625, 0.625, 0.625), (1.0, 1.0, 1.0 + 1e-5)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_medpy_on_random_blobs(seed, spacing_mm):
    assert_as_medpy(blobs(seed), blobs(seed + 100, threshold=0.0), spacing_mm)


def test_equals_medpy_on_objects_inside_a_large_background():
    prediction, truth = (np.pad(blobs(seed), ((9, 3), (0, 5), (7, 0))) for seed in (5, 6))
    assert_as_medpy(prediction, truth, SPACING_MM)


@pytest.mark.parametrize(
    "prediction", [np.ones((6, 7, 8), bool), cube((0, 0, 0), 5, (6, 7, 8))], ids=["all", "corner"]
)
def test_equals_medpy_where_objects_touch_the_border(prediction):
    """The array's border counts as surface: a mask that fills the array has one."""
    assert_as_medpy(prediction, cube((2, 2, 2), 4, (6, 7, 8)), SPACING_MM)
    assert_as_medpy(cube((2, 2, 2), 4, (6, 7, 8)), prediction, SPACING_MM)


def test_equals_medpy_in_two_dimensions():
    assert_as_medpy(blobs(1)[:, :, 8], blobs(2)[:, :, 8], (0.5, 2.0))


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (0.625, 0.625, 0.625), (3.0, 0.2, 1.0)])
@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_equals_medpy_however_far_apart_the_surfaces_are(steps, spacing_mm):
    """Near neighbours, a search and a distance transform each find a part of them: one speck far
    away needs a search, two objects far apart the transform.
    """
    truth = np.pad(blobs(3, (14, 12, 10)), 16)
    moved = np.roll(truth, (steps, -steps), (0, 1))
    speck = truth.copy()
    speck[0, 0, 0] = True
    for prediction in (moved, speck, np.roll(truth, 2 * steps, 2) | speck):
        assert_as_medpy(prediction, truth, spacing_mm)
        assert_as_medpy(truth, prediction, spacing_mm)


@pytest.mark.parametrize(
    "shape", [(40,), (9, 31), (1, 9, 1), (5, 1, 12), (6, 5, 4, 3), (254, 4), (255, 4), (600, 2, 3)]
)
def test_equals_medpy_in_any_shape(shape):
    rng = np.random.default_rng(len(shape))
    for density in (0.003, 0.1, 0.5, 0.95):
        prediction, truth = (rng.random(shape) < density for _ in range(2))
        prediction.flat[0] = truth.flat[-1] = True
        assert_as_medpy(prediction, truth, tuple(rng.uniform(0.3, 3, len(shape))))


def test_integer_masks_are_as_boolean_ones():
    prediction, truth = blobs(1), blobs(2)
    expected = segmentation_metrics(prediction, truth, SPACING_MM)
    assert (
        segmentation_metrics(prediction * np.uint8(255), truth.astype(np.int64) * 3, SPACING_MM)
        == expected
    )


def test_both_empty_has_no_figure():
    empty = np.zeros((4, 5, 6), bool)
    assert np.isnan([dice(empty, empty), jaccard(empty, empty)]).all()
    assert np.isnan([*segmentation_metrics(empty, empty, SPACING_MM).values()]).all()
    assert {metric.show(float("nan")) for metric in METRICS} == {"–"}


@pytest.mark.parametrize("empty_is", ["prediction", "truth"])
@pytest.mark.parametrize("spacing_mm", [(1.0, 2.0, 0.5), (2.0, 2.0, 2.0)])
def test_one_empty_has_no_distance(empty_is, spacing_mm):
    empty, full = np.zeros((12, 6, 24), bool), voxels((3, 3, 3), (4, 3, 3), shape=(12, 6, 24))
    pair = (empty, full) if empty_is == "prediction" else (full, empty)
    figures = segmentation_metrics(*pair, spacing_mm)
    assert (figures["dice"], figures["jaccard"]) == (0, 0)
    assert np.isnan([figures[metric.key] for metric in METRICS if metric.unit]).all()


def test_different_shapes_are_refused():
    for metric in (dice, jaccard, lambda p, t: segmentation_metrics(p, t, SPACING_MM)):
        with pytest.raises(ValueError, match=r"\(4, 4, 4\) and \(4, 4, 1\)"):
            metric(np.ones((4, 4, 4)), np.ones((4, 4, 1)))


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 0, 1), (1, 1, float("nan"))])
def test_spacing_that_is_not_a_positive_length_per_axis_is_refused(spacing_mm):
    with pytest.raises(ValueError, match="3 positive lengths"):
        segmentation_metrics(cube((0, 0, 0)), cube((0, 0, 0)), spacing_mm)
