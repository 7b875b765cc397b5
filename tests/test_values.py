"""What a scan's voxels say about the file."""

import warnings

import numpy as np
import pytest

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.data.values import check_modality, check_values

SHAPE = (1, 40, 50, 60)


def told(array: np.ndarray) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_values("case 'a'", "a.nii", array)
    assert all(each.category is DataWarning for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value):
    array = np.zeros(SHAPE, np.float32)
    array[0, 1:3, 4, 5] = value
    with pytest.raises(UserError, match=r"^case 'a': 2 voxels are NaN or infinite in a\.nii"):
        check_values("case 'a'", "a.nii", array)


def test_a_label_map_and_an_empty_image_are_told_and_a_scan_is_not():
    rng = np.random.default_rng(0)
    assert told(rng.normal(size=SHAPE)) == told(rng.integers(0, 40, SHAPE)) == []
    (line,) = told(np.zeros(SHAPE))
    assert (
        line
        == "case 'a': a.nii has one value only, as a label map or an empty image has; check that "
        "it is the scan"
    )
    assert "has 4 different values only" in told(rng.integers(0, 4, SHAPE))[0]
    two_channels = np.concatenate([rng.normal(size=SHAPE), np.zeros(SHAPE)])
    assert len(told(two_channels)) == 1


@pytest.mark.parametrize(
    ("modality", "channels", "expected"),
    [
        ("MR", ["CT"], "CT"),
        ("CT", ["MRI"], "MR"),
        ("CT", ["MR T1", "MR T2"], "MR"),
        ("MR", ["CT venous", "PET"], "CT or PT"),
    ],
)
def test_another_modality_than_the_channels_name_is_told(modality, channels, expected):
    with pytest.warns(DataWarning) as caught:
        check_modality("case 'a'", modality, channels)
    (line,) = (str(each.message) for each in caught)
    assert (
        line
        == f"case 'a': DICOM calls it {modality}, where {expected} is expected; check that it is "
        "the scan"
    )


@pytest.mark.parametrize(
    ("modality", "channels"),
    [
        ("CT", ["CT"]),
        ("MR", ["MRI"]),
        ("PT", ["CT", "PET"]),
        ("", ["CT"]),
        ("OT", ["CT"]),
        ("MR", ["image"]),
        ("MR", ["CT1"]),  # one of the two says nothing of it
    ],
)
def test_where_nothing_contradicts_the_modality_nothing_is_told(modality, channels, recwarn):
    check_modality("case 'a'", modality, channels)
    assert not recwarn.list
