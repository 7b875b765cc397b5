"""Metrics that are asked for: by hand, against MedPy, and against figures of other programs.

Those were computed once, on the masks of `pair` and `scattered`, by the versions named there.
"""

import csv
import json
import math
import re

import numpy as np
import pytest
from medpy.metric import binary as medpy
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from dkuxnet.cli.commands import app
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data.formats import write
from dkuxnet.evaluation.more_metrics import (
    CHOICES,
    lesion_figures,
    parse_asked,
    surface_figures,
    volume_errors,
)

SPACING_MM = (0.5, 1.25, 3.0)


def blobs(seed, threshold):
    noise = np.random.default_rng(seed).standard_normal((24, 20, 16))
    return np.pad(gaussian_filter(noise, 2, mode="constant") > threshold, 2)


def pair(seed):
    return blobs(seed, 0.02), blobs(seed + 100, 0.0)


def scattered(seed):
    """Dozens of small objects, and a noisy prediction of them."""
    noise = np.random.default_rng(seed).standard_normal((40, 36, 24))
    other = noise + 0.8 * np.random.default_rng(seed + 50).standard_normal(noise.shape)
    prediction, truth = (gaussian_filter(each, 1.5, mode="constant") for each in (other, noise))
    return prediction > 0.16, truth > 0.14


# by seed of `pair`: MONAI 1.6.1, compute_surface_dice with 1 and 2 mm,
# compute_average_surface_distance with symmetric=True
MONAI = [
    (0.523962, 0.775293, 1.318860),
    (0.547072, 0.776406, 1.347676),
    (0.633982, 0.863317, 0.965535),
]
# the surface Dice of surface-distance 0.1, whose elements of surface have areas
BY_AREA = [(0.613511, 0.833936), (0.670160, 0.879657), (0.717965, 0.916155)]
# by seed of `scattered`: panoptica 2.1.7, connected components, NaiveThresholdMatching by IoU with
# 0.1: tp, fp, fn, sq_dsc
PANOPTICA = [(18, 31, 22, 0.423056), (22, 27, 20, 0.432513), (22, 16, 24, 0.447472)]


@pytest.mark.parametrize("seed", range(3))
def test_surfaces_equal_monai_and_medpy(seed):
    prediction, truth = pair(seed)
    for place, tolerance in enumerate((1, 2)):
        figures = surface_figures(prediction, truth, SPACING_MM, tolerance)
        assert figures["nsd"] == pytest.approx(MONAI[seed][place], abs=1e-6)
        by_area = BY_AREA[seed][place]  # another definition: near, and never the same
        assert 0.02 < by_area - figures["nsd"] < 0.13
    assert figures["assd_mm"] == pytest.approx(MONAI[seed][2], abs=1e-5)
    assert figures["assd_mm"] == pytest.approx(medpy.assd(prediction, truth, SPACING_MM))


@pytest.mark.parametrize("seed", range(3))
def test_lesions_equal_panoptica(seed):
    found, alarms, missed, dice = PANOPTICA[seed]
    figures = lesion_figures(*scattered(seed))
    assert figures["lesion_f1"] == pytest.approx(2 * found / (2 * found + alarms + missed))
    # panoptica's is the mean over those found
    assert figures["lesion_dice"] == pytest.approx(dice * found / (found + missed), abs=1e-5)


def row(*runs):
    """A line of voxels, from (start, length)."""
    mask = np.zeros((1, 1, 40), bool)
    for start, length in runs:
        mask[..., start : start + length] = True
    return mask


def test_lesions_by_hand():
    truth = row((0, 4), (10, 4), (20, 10))
    # half of the first, the second with 1 of 13 (IoU 1/16), both ends of the third
    prediction = row((2, 4), (13, 3), (19, 3), (28, 3))
    figures = lesion_figures(prediction, truth)
    # IoU 2/6, 1/6, 2/11, 2/11: the third lesion has one match, the other part is a false alarm
    assert figures["lesion_f1"] == pytest.approx(2 * 3 / (4 + 3))
    assert figures["lesion_dice"] == pytest.approx((4 / 8 + 2 / 7 + 4 / 13) / 3)
    assert lesion_figures(row((0, 1)), row((0, 11)))["lesion_f1"] == 0, "IoU below 0.1"
    assert lesion_figures(row((0, 1)), row((0, 10)))["lesion_f1"] == 1
    nothing = row()
    assert lesion_figures(nothing, truth) == {"lesion_f1": 0, "lesion_dice": 0}
    alarm = lesion_figures(truth, nothing)
    assert alarm["lesion_f1"] == 0 and math.isnan(alarm["lesion_dice"])
    assert all(map(math.isnan, lesion_figures(nothing, nothing).values()))
    corner = np.zeros((2, 2, 2), bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert lesion_figures(corner, corner)["lesion_f1"] == 1, "corners are neighbours"


def test_surfaces_and_volumes_by_hand():
    one, two = row((0, 1)), row((3, 1))
    for tolerance, nsd in ((0.29, 0), (0.3, 1)):
        found = surface_figures(one, two, (1, 1, 0.1), tolerance)
        assert (found["nsd"], found["assd_mm"]) == (nsd, pytest.approx(0.3))
    nothing = row()
    missed = surface_figures(nothing, one, (1, 1, 1), 2)
    assert missed["nsd"] == 0 and math.isnan(missed["assd_mm"])
    assert all(map(math.isnan, surface_figures(nothing, nothing, (1, 1, 1), 2).values()))
    volumes = volume_errors(row((0, 3)), row((1, 4)), (10, 10, 10))
    assert volumes == {"volume_error_ml": -1, "volume_error_percent": -25}
    alarm = volume_errors(one, nothing, (10, 10, 10))
    assert alarm["volume_error_ml"] == 1 and math.isnan(alarm["volume_error_percent"])
    assert all(map(math.isnan, volume_errors(nothing, nothing, (1, 1, 1)).values()))


@pytest.fixture
def folders(tmp_path):
    for folder, shift in (("predictions", 1), ("labels", 0)):
        (tmp_path / folder).mkdir()
        for case, start in (("a", 4), ("b", 8)):
            array = np.zeros((30, 6, 6), np.uint8)
            array[start + shift : start + shift + 8, 1:5, 1:5] = 1
            array[25:, 1:3, 1:3] = 2 if folder == "labels" or case == "a" else 0
            write(Volume(array, np.diag([2.0, 1, 1, 1])), tmp_path / folder / f"{case}.nii.gz")
        labels = {"background": 0, "organ": 1, "tumour": 2}
        (tmp_path / folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return tmp_path


def evaluate(folder, *options):
    command = ["evaluate", str(folder / "predictions"), str(folder / "labels"), *options]
    return CliRunner().invoke(app, command)


def test_what_is_asked_for_is_in_table_csv_and_json(folders):
    scores = folders / "scores.csv"
    options = ["--metrics", ",".join(CHOICES), "--tolerance-mm", "organ=2,1", "--csv", str(scores)]
    shown = evaluate(folders, *options)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"class +NSD +ASSD \(mm\)", shown.output)
    assert re.search(r"tumour +0\.500 +0\.00 +-0\.0\d +-50\.0 +0\.500 +0\.500", shown.output)
    lines = list(csv.DictReader(scores.open(newline="")))
    metrics = parse_asked(",".join(CHOICES)).metrics
    assert list(lines[0])[-len(metrics) :] == [metric.key for metric in metrics]
    organ, _, _, missed = lines
    assert float(organ["nsd"]) == 1 and float(organ["volume_error_ml"]) == 0, "2 mm apart"
    assert float(missed["nsd"]) == 0 and missed["assd_mm"] == "" == missed["asd_mm"]
    assert float(missed["volume_error_percent"]) == -100 and float(missed["lesion_f1"]) == 0
    found = json.loads(evaluate(folders, *options, "--json").stdout)
    assert found["statistics"]["tumour"]["NSD"]["mean"] == 0.5
    assert found["statistics"]["tumour"]["ASSD_mm"]["cases"] == 1
    assert found["metric_per_case"][0]["metrics"]["1"]["lesion_F1"] == 1
    assert "NSD" not in evaluate(folders, "--json").stdout


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--metrics", "nds"], "unknown metric 'nds'; did you mean 'nsd'?"),
        (["--metrics", "nsd"], "nsd counts the surface within a tolerance, and 'organ' has none"),
        (["--metrics", "nsd", "--tolerance-mm", "organ=2"], "and 'tumour' has none"),
        (["--metrics", "nsd", "--tolerance-mm", "orgn=2,1"], "did you mean 'organ'?"),
        (["--metrics", "nsd", "--tolerance-mm", "two"], "expected a length in mm"),
        (["--metrics", "nsd", "--tolerance-mm", "-1"], "expected a length in mm"),
    ],
)
def test_what_cannot_be_asked_is_one_line(folders, options, line):
    refused = evaluate(folders, *options)
    assert refused.exit_code == 1
    assert line in str(refused.exception) and isinstance(refused.exception, UserError)
