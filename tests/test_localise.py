"""Two passes over a scan: the region by hand, what lies inside and outside of it, and what a run
must be to localise.
"""

import json
import re
import shutil
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

import described
from dkuxnet.core.config import load_settings, validate
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.schemas import Hounsfield
from dkuxnet.core.types import Output, Volume
from dkuxnet.data import formats
from dkuxnet.data.geometry import Region, reach_of, resample, resample_from, resample_region
from dkuxnet.data.network_grid import (
    network_shape_of,
    normalise,
    region_on_network_grid,
    to_network_grid,
)
from dkuxnet.models.components import Cleaning
from dkuxnet.prediction.localise import foreground_box, region_around
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.prediction.segment import Segmenter
from dkuxnet.prediction.windows import label_on_scan, map_on_scan
from dkuxnet.training.experiment import run_training

RNG = np.random.default_rng(0)
SHAPE = (70, 60, 50)  # voxels of a scan, axes along left, superior, posterior
AFFINE = np.array([[-1.2, 0, 0, 40], [0, 0, -1.5, -20], [0, 1.0, 0, 300], [0, 0, 0, 1]])
LABELS = {"background": 0, "organ": 1, "other": 2}
PLAN = described.plan(spacing_mm=[1.1, 1.3, 1.2])
COARSE = described.plan(spacing_mm=[5.0] * 3)
CT = [Hounsfield(kind="ct", low=-100.0, high=300.0, mean=40.0, std=60.0)]


# --- the region by hand ---


def test_the_box_holds_every_piece_but_specks():
    label = np.zeros((30, 20, 10), np.int64)
    label[2:6, 3:8, 1:4] = 1  # one kidney, 60 voxels
    label[20:23, 3:7, 2:4] = 1  # the other, 24 voxels
    label[29, 19, 9] = 1  # a speck, less than a tenth of the first
    label[10:12, 15, 7] = 2  # small, but the largest of its class
    assert foreground_box(label) == (slice(2, 23), slice(3, 16), slice(1, 8))
    label[label == 2] = 0
    assert foreground_box(label) == (slice(2, 23), slice(3, 8), slice(1, 4))
    assert foreground_box(np.zeros((3, 3, 3), np.int64)) is None


def around(
    start: int, stop: int, coarse=20, size=100, extent_mm=200.0, margin_mm=10.0, smallest=16
) -> tuple[int, int]:
    """The region along one axis: 20 coarse voxels of 10 mm are 100 fine ones of 2 mm."""
    region = region_around(
        [slice(start, stop)] * 3,
        [coarse] * 3,
        [size] * 3,
        [extent_mm] * 3,
        margin_mm,
        [smallest] * 3,
    )
    assert region.grid == (size,) * 3 and len(set(region.start)) == len(set(region.stop)) == 1
    return region.start[0], region.stop[0]


def test_the_region_is_the_box_in_fine_voxels_with_the_margin_around_it():
    assert around(4, 8) == (20 - 5, 40 + 5)
    assert around(4, 8, margin_mm=0) == (20, 40)
    assert around(4, 8, coarse=7, extent_mm=210, size=105, margin_mm=1) == (
        59,
        105,
    )  # 15 voxels each: 60 - 0.5, 120 + 0.5


def test_the_region_ends_where_the_scan_ends():
    assert around(0, 3) == (0, 20)
    assert around(18, 20, smallest=8) == (85, 100)
    assert around(0, 20, margin_mm=500) == (0, 100)


def test_the_region_holds_a_patch_of_the_network_at_least():
    assert around(10, 11, margin_mm=0, smallest=31) == (50 - 13, 50 - 13 + 31)
    assert around(0, 1, margin_mm=0, smallest=32) == (0, 32)
    assert around(19, 20, margin_mm=0, smallest=32) == (68, 100)
    assert around(19, 20, margin_mm=0, smallest=300) == (0, 100)


def test_each_axis_has_its_own_numbers():
    region = region_around(
        [slice(1, 2), slice(0, 3), slice(4, 5)],
        (10, 6, 5),
        (100, 30, 25),
        (100, 90, 250),
        6.0,
        (8, 8, 8),
    )
    assert region == Region((100, 30, 25), (4, 0, 17), (26, 17, 25))


# --- resampling a part ---


@pytest.mark.parametrize("grid", [(40, 10, 7), (12, 20, 33), (5, 10, 50)])
def test_a_region_resampled_is_that_part_of_the_whole_resampled(grid):
    array = RNG.random((2, 17, 10, 21)).astype(np.float32)
    region = Region.of(grid, [slice(n // 4, n // 4 + max(1, n // 3)) for n in grid])
    np.testing.assert_allclose(
        resample_region(array, region), resample(array, grid)[(slice(None), *region.box)], atol=1e-6
    )
    np.testing.assert_array_equal(resample_region(array, Region.whole(grid)), resample(array, grid))


@pytest.mark.parametrize("shape", [(40, 10, 7), (12, 20, 33)])
def test_a_region_comes_back_as_if_it_lay_in_zeros_and_its_reach_holds_all_of_it(shape):
    region = Region((17, 10, 21), (3, 2, 9), (9, 10, 15))
    values = 1 + RNG.random((2, *region.shape)).astype(np.float32)
    embedded, weight = np.zeros((2, *region.grid), np.float32), np.zeros(region.grid, np.float32)
    embedded[(slice(None), *region.box)], weight[region.box] = values, 1
    expected, reach = resample(embedded, shape), reach_of(region, shape)
    part, outside = resample_from(values, region, reach)
    np.testing.assert_allclose(part, expected[(slice(None), *reach.box)], atol=1e-6)
    np.testing.assert_allclose(outside, 1 - resample(weight, shape)[reach.box], atol=1e-6)
    expected[(slice(None), *reach.box)] = 0
    assert not expected.any()


@pytest.mark.parametrize("kind", ["z-score", "ct"])
def test_a_region_is_normalised_by_the_figures_of_the_whole_scan(kind, monkeypatch):
    monkeypatch.setattr("dkuxnet.data.network_grid.SLAB_VOXELS", 20_000)  # several slabs
    plan = PLAN if kind == "z-score" else PLAN.model_copy(update={"normalisation": CT})
    scan = large_scan()
    whole = to_network_grid(scan, plan)
    assert whole.array.shape[1:] == network_shape_of(scan, plan) == (76, 58, 50)
    region = Region((76, 58, 50), (30, 10, 0), (61, 40, 50))
    part = region_on_network_grid(scan, plan, region)
    np.testing.assert_allclose(part, whole.array[(slice(None), *region.box)], atol=2e-5)
    assert abs(part.mean()) > 0.01  # by its own figures it would be 0


def test_a_constant_scan_s_region_is_0():
    scan = Volume(np.full((1, 20, 20, 20), 3.3, np.float32), np.eye(4))
    assert not region_on_network_grid(
        scan, PLAN, Region(network_shape_of(scan, PLAN), (0, 0, 0), (4, 4, 4))
    ).any()
    np.testing.assert_allclose(
        normalise(np.ones((1, 2, 2, 2), np.float32), PLAN.normalisation, [(3.0, 2.0)]), -1
    )


@pytest.mark.parametrize("kind", ["z-score", "ct"])
def test_only_the_region_is_held_in_memory(kind, monkeypatch):
    monkeypatch.setattr("dkuxnet.data.network_grid.SLAB_VOXELS", 200_000)
    plan = described.plan(spacing_mm=[0.5] * 3)
    if kind == "ct":
        plan = plan.model_copy(update={"normalisation": CT})
    scan, grid = large_scan(), (168, 150, 120)  # 0.8 MiB, on the network's grid 11.5
    region = Region(grid, (50, 60, 70), (70, 80, 90))

    def peak_mib(function, *args) -> float:
        tracemalloc.start()
        function(*args)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 2**20

    assert peak_mib(to_network_grid, scan, plan) > 11.5
    assert peak_mib(region_on_network_grid, scan, plan, region) < (5 if kind == "z-score" else 0.5)


# --- two passes ---


class Threshold(nn.Module):
    """Class 1 above 6 standard deviations, class 2 below -6, voxel by voxel."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: torch.Tensor) -> Output:
        x = image[:, 0]
        return Output(
            torch.stack([torch.zeros_like(x), self.slope * (x - 6), self.slope * (-6 - x)], dim=1)
        )


def large_scan(organs=((40, 30, 20),), background=0.0) -> Volume:
    """(1, X, Y, Z): smooth noise, and bright balls of 6 mm at the given voxels."""
    array = 4 * gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2) + background
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) * np.linalg.norm(
        AFFINE[:3, :3], axis=0
    )
    for organ in organs:
        centre = np.multiply(organ, np.linalg.norm(AFFINE[:3, :3], axis=0))
        array += 20 * (np.linalg.norm(places - centre, axis=-1) < 6)
    return Volume(array[None].astype(np.float32), AFFINE)


@pytest.fixture
def segmenters(monkeypatch):
    """(one pass, two passes) of the run "fine"; the runs "coarse", "labels", "channels", "finer"
    are there to localise.
    """
    manifest = described.manifest(
        labels=LABELS, plan=PLAN, network_shape=described.MANIFEST["network_shape"] | {"classes": 3}
    )
    changes = {
        "fine": {},
        "coarse": {"plan": COARSE},
        "labels": {"plan": COARSE, "labels": {"background": 0, "other": 1}},
        "channels": {"plan": COARSE, "channels": ["CT"]},
        "finer": {"plan": described.plan(spacing_mm=[1.0] * 3)},
    }
    monkeypatch.setattr(
        "dkuxnet.prediction.segment.load_predictor",
        lambda run, weights, device: (
            Threshold(),
            validate({}),
            manifest.model_copy(update=changes[str(run)]),
        ),
    )
    return Segmenter("fine"), Segmenter("fine", localiser="coarse", margin_mm=8)


def test_inside_the_region_two_passes_are_as_one_and_outside_all_is_background(segmenters):
    one, two = segmenters
    scan = large_scan(organs=((12, 12, 12), (40, 30, 20)))
    expected = one(scan, probabilities=True, uncertainty=True)
    region = two.region(scan)
    assert 0.02 < np.prod(region.shape) / np.prod(region.grid) < 0.5
    # a box of the scan's own voxels that the region surely covers: a voxel of the grid less on each
    # side
    found = two(scan, probabilities=True, uncertainty=True)
    assert found.label.array.any() and found.label.array.dtype == np.uint8
    np.testing.assert_array_equal(found.label.affine, AFFINE)
    inside = map_on_scan(np.ones(region.shape, np.float32), SHAPE, AFFINE, region)
    assert inside.max() == 1 and 0.01 < (inside > 1 - 1e-6).mean() < 0.5
    sure, out = inside > 1 - 1e-6, inside == 0
    np.testing.assert_array_equal(found.label.array[sure], expected.label.array[sure])
    for name in ("probabilities", "uncertainty"):
        ours, theirs = getattr(found, name).array, getattr(expected, name).array
        np.testing.assert_allclose(ours[..., sure], theirs[..., sure], atol=1e-4)
    assert not found.label.array[out].any()
    assert (found.probabilities.array[0][out] == 1).all() and not found.probabilities.array[
        1:, out
    ].any()
    assert not found.uncertainty.array[out].any()
    np.testing.assert_allclose(found.probabilities.array.sum(axis=0), 1, atol=1e-5)
    assert (
        expected.label.array[sure].sum() > 0.99 * expected.label.array.sum()
    )  # both balls lie in the region


def test_the_region_holds_the_organ_and_its_margin(segmenters):
    _, two = segmenters
    region = two.region(large_scan())
    spacing = np.divide((84.0, 75.0, 60.0), region.grid)  # the scan's edges in RAS order
    low, high = np.multiply(region.start, spacing), np.multiply(region.stop, spacing)
    centre = np.array(
        [84 - 40.5 * 1.2, 75 - 20.5 * 1.5, 30.5]
    )  # of the ball, in mm from the grid's corner
    reach = (
        6 + 8
        # its radius, the margin
    )
    np.testing.assert_allclose([centre - low, high - centre], reach, atol=5 + 1.3)
    wider = Segmenter("fine", localiser="coarse", margin_mm=16).region(large_scan())
    more = np.multiply(
        [np.subtract(region.start, wider.start), np.subtract(wider.stop, region.stop)], spacing
    )
    np.testing.assert_allclose(more, 16 - 8, atol=spacing.max())  # ends on whole voxels


def test_a_region_that_is_everything_gives_one_pass_bit_for_bit(segmenters):
    one, two = segmenters
    scan = large_scan()
    expected = one(scan, probabilities=True, uncertainty=True)
    two.margin_mm = 1000.0
    assert two.region(scan).is_whole
    everything = Region.whole(two.network_shape(scan))
    for found in (two(scan, True, True), one(scan, True, True, everything)):
        for name in ("label", "probabilities", "uncertainty"):
            np.testing.assert_array_equal(getattr(found, name).array, getattr(expected, name).array)


def test_nothing_found_is_told_and_the_whole_scan_is_segmented(segmenters):
    one, two = segmenters
    scan = large_scan(organs=())
    with pytest.warns(
        DataWarning,
        match="^case 'a': the localising run finds nothing in it; all of it is segmented$",
    ):
        assert two.region(scan, "case 'a'").is_whole
    with pytest.warns(DataWarning, match="^the scan: the localising run"):
        found = two(scan)
    np.testing.assert_array_equal(found.label.array, one(scan).label.array)


def test_the_largest_piece_is_sought_in_the_region(segmenters):
    prob = np.zeros((2, 8, 6, 6), np.float32)
    prob[1, 1:6, 1:5, 1:5], prob[1, 7, 0, 0] = 1, 1
    prob[0] = 1 - prob[1]
    region = Region((20, 6, 20), (10, 0, 4), (18, 6, 10))
    label = label_on_scan(prob, (20, 6, 20), np.eye(4), Cleaning(frozenset({1, 2})), region=region)
    assert label.sum() == 80 and label[11:16, 1:5, 5:9].all()
    assert label_on_scan(prob, (20, 6, 20), np.eye(4), region=region)[17, 0, 4] == 1


def test_memory_is_that_of_the_region(segmenters):
    _, two = segmenters
    scan = large_scan()
    region = two.region(scan)
    whole, part = two.needed_bytes(scan), two.needed_bytes(scan, region=region)
    voxels = np.prod(two.network_shape(scan)) - np.prod(region.shape)
    assert whole - part == 4 * voxels * (2 + 3 + 1)
    assert two.needed_bytes(scan, True, True) - two.needed_bytes(
        scan, True, True, region
    ) == 4 * voxels * (2 + 3 + 1 + 2)


def test_the_network_sees_the_region_alone(segmenters, monkeypatch):
    one, two = segmenters
    seen = []
    for segmenter in (one, two):
        segmenter.predictor.register_forward_hook(
            lambda module, image, output: seen.append(len(image[0]))
        )
    one(large_scan())
    all_windows = sum(seen)
    seen.clear()
    two(large_scan())
    assert 0 < sum(seen) < all_windows / 3


@pytest.mark.parametrize(
    ("run", "part"),
    [
        (
            "labels",
            "labels cannot localise: its labels are {'background': 0, 'other': 1}, those of the "
            "run that segments",
        ),
        ("channels", "channels cannot localise: its channels are ['CT']"),
        (
            "finer",
            "finer cannot localise: its voxels of 1 mm are finer than the 1.2 mm of the run that "
            "segments",
        ),
    ],
)
def test_a_run_that_does_not_fit_cannot_localise(segmenters, run, part):
    with pytest.raises(UserError) as error:
        Segmenter("fine", localiser=run)
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("margin_mm", [-1.0, float("nan"), float("inf")])
def test_a_margin_is_a_number_from_0_on(segmenters, margin_mm):
    with pytest.raises(UserError, match="--margin-mm must be a number from 0 on"):
        Segmenter("fine", localiser="coarse", margin_mm=margin_mm)


def test_a_margin_around_nothing_is_refused(segmenters):
    with pytest.raises(
        UserError, match="--margin-mm is around what a coarse run finds: name that with --localise"
    ):
        Segmenter("fine", margin_mm=20.0)


def test_predict_tells_the_region_and_writes_what_lies_on_the_scan(segmenters, tmp_path):
    (tmp_path / "in").mkdir()
    formats.write(large_scan(), tmp_path / "in" / "a.nii.gz")
    formats.write(large_scan(organs=()), tmp_path / "in" / "b.nii.gz")
    told = []
    with pytest.warns(DataWarning, match="case 'b': the localising run finds nothing"):
        predict_scans(
            "fine",
            [tmp_path / "in"],
            tmp_path / "out",
            progress=lambda *args: told.append(args[0]),
            localise="coarse",
            margin_mm=8,
        )
    assert (
        " of 76 x 58 x 50 for the network" in told[0]
        and "voxels, 76 x 58 x 50 for the network" in told[1]
    )
    label = formats.read(tmp_path / "out" / "a.nii.gz", kind="label")
    np.testing.assert_allclose(label.affine, AFFINE, atol=1e-4)
    assert label.array[40, 30, 20] == 1 and set(np.unique(label.array)) == {0, 1}


# --- real runs ---


@pytest.fixture(scope="module")
def runs(prepared: Path, tmp_path_factory) -> tuple[Path, Path]:
    """A finished run, and one that was stopped before its end."""
    folder = tmp_path_factory.mktemp("runs")
    settings = load_settings(
        overrides={
            "method.name": "supervised",
            "network.name": "uxnet-tiny",
            "train.steps": 1,
            "train.patch": [16, 16, 16],
            "train.device": "cpu",
            "infer.overlap": 0,
        }
    )
    run_training(prepared, folder / "finished", settings)
    shutil.copytree(folder / "finished", folder / "stopped")
    (folder / "stopped" / "final.safetensors").unlink()
    return folder / "finished", folder / "stopped"


def test_a_run_may_localise_for_itself_and_one_that_is_not_finished_may_not(runs, scans, tmp_path):
    finished, stopped = runs
    with pytest.raises(
        UserError,
        match=r"stopped/final\.safetensors is missing: `final` comes at the end of a training",
    ):
        predict_scans(
            finished, [scans / "imagesTr"], tmp_path / "out", localise=stopped, device="cpu"
        )
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        written = predict_scans(
            finished,
            [scans / "imagesTr" / "phantom_000_0000.nii.gz"],
            tmp_path / "out",
            device="cpu",
            localise=finished,
        )
    assert [path.name for path in written] == ["phantom_000.nii.gz"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "organ": 1,
        "tumour": 2,
    }


def test_the_python_of_the_page_runs(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("fine", "coarse"):
        (tmp_path / "runs" / name).symlink_to(runs[0])
    page = (Path(__file__).parents[1] / "docs" / "whole-scans.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    scope = {
        "scan": Volume(
            np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32),
            np.diag([2.5] * 3 + [1]),
        )
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        exec(code, scope)
    assert scope["result"].label.shape == (20, 20, 20)
    assert scope["region"].grid == scope["segmenter"].network_shape(scope["scan"])
