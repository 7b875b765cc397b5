"""Organs that grow and shrink: how far their outline moves, what stays, and what a displacement
means.
"""

import numpy as np
import pytest
import torch

from dkuxnet.models.methods.outline import outline_displacement, warp

SIZE = (24, 32, 40)


def ball(radius: float, count: int = 1, centre=(12.0, 16.0, 20.0)) -> torch.Tensor:
    """(count, 1, X, Y, Z): 1 inside, 0 outside."""
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SIZE), indexing="ij")
    square = sum((place - middle) ** 2 for place, middle in zip(places, centre, strict=True))
    return (square <= radius**2).float().expand(count, 1, *SIZE)


def radius_of(organ: torch.Tensor) -> torch.Tensor:
    return ((organ > 0.5).sum(dim=(1, 2, 3, 4)) * 3 / (4 * np.pi)) ** (1 / 3)


def moved(
    organ: torch.Tensor, outwards: list[float], share: float, edges=(1, 1, 1)
) -> torch.Tensor:
    return warp(organ, outline_displacement(organ, torch.tensor(outwards), share, edges))


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("outwards", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("edges", [(1, 1, 1), (1, 1, 2)], ids=["cubes", "slices"])
def test_a_flat_outline_moves_by_most_of_the_displacement(axis, outwards, edges):
    """The outline m voxels on reads from m voxels back: m = 2 exp(-m^2 / (2 sigma^2)), sigma 3,
    solved by hand; it is as far in mm where voxels are long.
    """
    organ = torch.zeros(1, 1, 30, 30, 30)
    organ.narrow(axis, 0, 15).fill_(1)
    share = 2 / (13500 * edges[2] * 3 / 4 / np.pi) ** (1 / 3)
    line = moved(organ, [outwards], share, edges).mean(dim=[n for n in (2, 3, 4) if n != axis])[
        0, 0
    ]
    expected = {1.0: 1.70, 0.5: 0.95, -1.0: -1.70}[outwards]
    assert (line.sum() - 15) * edges[axis - 2] == pytest.approx(expected, abs=0.11)


def test_every_patch_moves_by_its_own_amount():
    result = moved(ball(8, 3), [1.0, 0.0, -1.0], 0.25)
    larger, _, smaller = radius_of(result) - radius_of(ball(8))
    assert larger > 1 and smaller < -1
    torch.testing.assert_close(result[1], ball(8)[0], rtol=0, atol=1e-4)


def test_the_displacement_grows_with_the_organ():
    shifts = [
        float(radius_of(moved(ball(radius), [1.0], 0.2)) / radius_of(ball(radius)))
        for radius in (5, 7, 9)
    ]
    assert min(shifts) > 1.1 and max(shifts) < 1.2 and np.ptp(shifts) < 0.04


def test_nothing_folds_and_far_away_nothing_moves():
    displacement = outline_displacement(ball(8), torch.tensor([-1.0]), 3 / 8)[0]
    for axis in range(3):
        # under 1: neighbouring voxels are read in their order
        assert displacement[axis].diff(dim=axis).abs().max() < 0.6
    assert displacement.norm(dim=0).max() > 2
    assert displacement[:, 0, 0, 0].norm() < 0.05


def test_where_there_is_no_organ_nothing_moves():
    for organ in (torch.zeros(1, 1, *SIZE), torch.ones(1, 1, *SIZE)):
        assert outline_displacement(organ, torch.ones(1), 0.25).abs().max() < 1e-5


def test_a_displacement_says_where_a_voxel_is_read_from():
    values = torch.randn(2, 3, *SIZE)
    displacement = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1, 1).expand(2, 3, *SIZE)
    result = warp(values, displacement)
    torch.testing.assert_close(
        result[:, :, 4:-4, 4:-4, 4:-4], values[:, :, 5:-3, 2:-6, 7:-1], rtol=1e-3, atol=1e-4
    )
    # beyond the border the last voxel is repeated
    assert torch.equal(result[:, :, -1, 5, 5], result[:, :, -2, 5, 5])


def test_places_stay_exact_under_bfloat16():
    values = torch.randn(1, 1, 80, 48, 32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            warp(values, torch.zeros(1, 3, 80, 48, 32)), values, rtol=0, atol=1e-3
        )
