"""Views of a scan: there and back, their mean and spread, and what a run was not trained with."""

import shutil

import numpy as np
import pytest
import torch

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Output
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.prediction.segment import Segmenter
from dkuxnet.prediction.tta import check_views, sides, views_of
from dkuxnet.prediction.windows import Windows, entropy, sliding_window

THICK = (1.0, 1.0, 4.0)


def views(tta, spacing=THICK, flip="xy", rotation=15.0):
    asked = {"infer.tta": [tta], "augment.flip": flip, "augment.rotation": rotation}
    return views_of(load_settings(overrides=asked), spacing)


def smooth(size=(24, 20, 12)):
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    return (x + 2 * y + 3 * z)[np.newaxis].astype(np.float32)


@pytest.mark.parametrize("tta, count", [("mirror", 3), ("rotate", 2), ("scale", 2)])
def test_a_view_comes_back_to_its_own_places(tta, count):
    image = smooth()
    found = views(tta)
    assert len(found) == count
    for view in found:
        seen = view.there(image)
        assert seen.shape[1:] == view.shape(image.shape[1:])
        assert seen.shape != image.shape or np.abs(seen - image).max() > 0.1  # it is another look
        back = view.back(seen, image.shape[1:])
        weight = view.back(np.ones((1, *seen.shape[1:]), np.float32), image.shape[1:])
        middle = np.s_[:, 6:-6, 5:-5, 1:-1]
        np.testing.assert_allclose(back[middle], image[middle], atol=0.02)
        np.testing.assert_allclose(weight[middle], 1, atol=1e-5)
        assert weight.min() >= 0 and weight.max() < 1 + 1e-5


def test_slices_that_are_thick_are_turned_and_scaled_in_their_plane():
    image = np.zeros((1, 21, 21, 5), np.float32)
    image[0, :, :, 2] = 1
    for tta in ("rotate", "scale"):
        for view in views(tta):
            seen = view.there(image)
            assert seen.shape[3] == 5 and not seen[..., [0, 1, 3, 4]].any()
    sagittal = views("rotate", (4.0, 1.0, 1.0))
    assert {view.axis for view in sagittal} == {0}


def test_a_turn_is_of_the_body_where_voxels_are_oblong():
    edges = np.array([1.0, 2.0])
    place = np.stack(np.meshgrid(np.arange(41), np.arange(21), indexing="ij")) - [[[20]], [[10]]]
    ring = np.hypot(*(place * edges[:, None, None]))
    image = np.repeat((np.abs(ring - 12) < 3)[..., None], 3, 2)[np.newaxis].astype(np.float32)
    for view in views("rotate", (1.0, 2.0, 4.0)):
        assert np.abs(view.there(image) - image).mean() < 0.05  # a ring stays a ring


def test_a_training_that_turned_freely_is_asked_by_quarter_turns():
    image = np.random.default_rng(0).random((2, 5, 7, 3), np.float32)
    found = views("rotate", rotation=180)
    assert [view.shape((5, 7, 3)) for view in found] == [(7, 5, 3), (5, 7, 3), (7, 5, 3)]
    for view, first in zip(found, [(0, 6), (4, 6), (4, 0)], strict=True):
        seen = view.there(image)
        assert seen.shape[1:] == view.shape((5, 7, 3))
        np.testing.assert_array_equal(seen[:, 0, 0], image[(slice(None), *first)])
        np.testing.assert_array_equal(view.back(seen, (5, 7, 3)), image)
    sagittal = views("rotate", (4.0, 1.0, 1.0), rotation=90)
    assert {view.plane for view in sagittal} == {(1, 2)}
    assert len(views("rotate", (1.0, 2.0, 4.0), rotation=180)) == 2  # voxels would be exchanged


class Bright:
    """Two classes by brightness; the first half of a window along x looks darker."""

    def __call__(self, x):
        ramp = torch.linspace(-1, 1, x.shape[2]).view(1, 1, -1, 1, 1)
        logit = x + ramp
        return Output(logits=torch.cat([-logit, logit], dim=1))


def test_views_are_averaged_and_their_spread_is_the_uncertainty():
    image = np.zeros((1, 16, 16, 16), np.float32)
    windows = Windows(
        (16, 16, 16),
        2,
        load_settings().infer,
        torch.device("cpu"),
        with_uncertainty=True,
        views=views("mirror", flip="x"),
    )
    told = []
    found = sliding_window(Bright(), image, windows, lambda *done: told.append(done))
    once = sliding_window(
        Bright(), image, Windows(*[(16,) * 3, 2, windows.settings, windows.device])
    )
    both = (once.prob + once.prob[:, ::-1]) / 2
    np.testing.assert_allclose(found.prob, both, atol=1e-6)
    np.testing.assert_allclose(found.prob[1], 0.5, atol=1e-6)
    apart = entropy(both) - (entropy(once.prob) + entropy(once.prob[:, ::-1])) / 2
    np.testing.assert_allclose(found.uncertainty, apart / np.log(2), atol=1e-6)
    assert found.uncertainty[0].min() > 0.3 > 0.01 > found.uncertainty[7:9].max()
    assert told == [(1, 2), (2, 2)]
    assert windows.needed_bytes((16, 16, 16), 1) > 1.5 * 4 * 16**3 * 7


@pytest.mark.parametrize(
    "names, pair",
    [
        (["kidney_left", "kidney_right"], True),
        (["Left Kidney", "right kidney"], True),
        (["lung L", "lung R"], True),
        (["left atrium", "right ventricle"], False),
        (["LV", "RV", "Myo"], False),
    ],
)
def test_sides_are_known_by_their_names(names, pair):
    assert bool(sides(["background", *names])) == pair


def test_views_that_a_training_did_not_show_are_told_of():
    def told(names=("organ",), **settings):
        overrides = {"infer.tta": ["mirror", "rotate", "scale"]}
        overrides |= {key.replace("__", "."): value for key, value in settings.items()}
        return check_views(load_settings(overrides=overrides), names)

    assert told(augment__flip="x") == []
    assert "mirrored no scan" in told()[0]
    assert len(told(augment__rotation=0, augment__scale=1.0)) == 3
    with pytest.raises(UserError, match="exchange 'left lung' and 'right lung'"):
        told(("left lung", "right lung"))
    assert told(("left lung", "right lung"), augment__flip="x") == []


def test_a_run_segments_with_views_alone_and_together(dual_run, scans, tmp_path):
    (case, *_) = find_cases([scans / "imagesTr"])
    scan = read_image(case, 1)
    asked = {"tta": ["mirror"], "overlap": 0.0}
    with pytest.warns(DataWarning, match="the training mirrored no scan"):
        several = Segmenter(dual_run, others=[dual_run], infer=asked)
    plain, views = Segmenter(dual_run), several.others[0]
    assert views.needed_bytes(scan) > plain.needed_bytes(scan)
    assert views.settings.infer == several.settings.infer
    assert (views.settings.infer.overlap, plain.settings.infer.overlap) == (0.0, 0.3)
    a, b = plain(scan, probabilities=True), views(scan, probabilities=True, uncertainty=True)
    np.testing.assert_allclose(b.probabilities.array.sum(axis=0), 1, atol=1e-5)
    assert np.abs(a.probabilities.array - b.probabilities.array).max() > 0
    np.testing.assert_allclose(a.signature, b.signature, rtol=0.05)

    named = shutil.copytree(dual_run, tmp_path / "sides")
    path = named / "manifest.json"
    path.write_text(
        path.read_text().replace('"organ"', '"left one"').replace('"tumour"', '"right one"')
    )
    with pytest.raises(UserError, match="would exchange"):
        Segmenter(named, infer={"tta": ["mirror"]})
    with pytest.raises(UserError, match=r"unknown class in infer\.min_ml 'liver'"):
        Segmenter(dual_run, infer={"min_ml": {"liver": 1.0}})
