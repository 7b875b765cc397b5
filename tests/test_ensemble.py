"""Several runs that segment together."""

import shutil

import numpy as np
import pytest

from dkuxnet.core.errors import UserError
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.prediction.segment import Segmenter, together
from dkuxnet.prediction.windows import GridPrediction


def test_the_mean_is_on_the_first_grid_and_the_disagreement_is_the_uncertainty():
    ours = np.zeros((2, 4, 4, 4), np.float32)
    ours[0] = 1
    theirs = np.zeros((2, 2, 2, 2), np.float32)
    theirs[1, 0], theirs[0, 1] = 1, 1  # contradicts in the first half, agrees in the other
    found = together(GridPrediction(ours, np.zeros((4, 4, 4))), [theirs])
    np.testing.assert_allclose(found.prob.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(found.prob[1, 0], 0.5, atol=1e-6)
    assert found.uncertainty[0].min() == pytest.approx(1, abs=1e-6)
    assert np.abs(found.uncertainty[3]).max() < 1e-6 and (found.prob[0, 3] == 1).all()


def test_a_run_and_itself_segment_as_the_run(dual_run, scans):
    (case, *_) = find_cases([scans / "imagesTr"])
    scan = read_image(case, 1)
    alone = Segmenter(dual_run)(scan, probabilities=True)
    both = Segmenter(dual_run, others=[dual_run])(scan, probabilities=True, uncertainty=True)
    np.testing.assert_allclose(both.probabilities.array, alone.probabilities.array, atol=1e-6)
    assert np.abs(both.uncertainty.array).max() < 1e-5
    segmenter = Segmenter(dual_run, others=[dual_run])
    assert segmenter.needed_bytes(scan) > Segmenter(dual_run).needed_bytes(scan)


def test_runs_of_other_classes_and_a_region_are_refused(dual_run, tmp_path):
    foreign = shutil.copytree(dual_run, tmp_path / "foreign")
    manifest = foreign / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"organ"', '"liver"'))
    with pytest.raises(UserError, match="cannot be averaged with: its labels are"):
        Segmenter(dual_run, others=[foreign])
    with pytest.raises(UserError, match="leave one of them out"):
        Segmenter(dual_run, localiser=dual_run, others=[dual_run])
