"""How far probabilities are from how often the model is right."""

import numpy as np
import pytest

from dkuxnet.evaluation.calibration import (
    MOST,
    at_temperature,
    calibration,
    ece,
    in_question,
    temperature,
)

RNG = np.random.default_rng(0)


def drawn(count, heat=1.0, classes=3):
    """Probabilities and labels drawn from them; then the logits are multiplied by `heat`."""
    prob = RNG.dirichlet(np.ones(classes), count)
    label = (prob.cumsum(axis=1) > RNG.random((count, 1))).argmax(axis=1)
    return at_temperature(prob, 1 / heat), label


def test_labels_drawn_from_the_probabilities_have_no_error_and_no_temperature():
    prob, label = drawn(50_000)
    assert ece(prob, label) < 0.01 and temperature(prob, label) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("heat", [0.5, 3.0])
def test_the_temperature_undoes_what_made_a_model_too_sure_or_not_sure_enough(heat):
    found = calibration([drawn(5_000, heat) for _ in range(4)])
    assert found.temperature == pytest.approx(heat, rel=0.1)
    assert found.ece > 0.08 and found.ece_scaled < 0.03


def test_a_model_that_is_always_sure_and_half_of_the_time_right():
    prob = np.tile([0.0, 1.0], (10, 1))
    assert ece(prob, np.arange(10) % 2) == pytest.approx(0.5)


def test_only_voxels_in_question_count_and_no_case_more_than_its_share():
    prob = np.zeros((2, 10, 10, 10))
    prob[0] = 1
    label = np.zeros((10, 10, 10), int)
    prob[:, 0, 0, 0], label[1, 1, 1] = [0.9, 0.1], 1
    asked, truth = in_question(prob, label)
    np.testing.assert_allclose(asked, [[0.9, 0.1], [1, 0]])
    assert truth.tolist() == [0, 1]
    many, _ = in_question(np.full((2, 50, 50, 50), 0.5), np.zeros((50, 50, 50), int))
    assert MOST / 2 < len(many) <= MOST


def test_of_one_case_nothing_is_said():
    assert calibration([drawn(100), (np.zeros((0, 3)), np.zeros(0, int))]) is None
