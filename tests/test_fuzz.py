"""Spoilt files of every kind, others in each run of the tests: a reader raises UserError or
nothing. See measurements/fuzz.py.
"""

import json
import sys
import warnings
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dkuxnet.core.errors import DataWarning, UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "measurements"))
from fuzz_targets import TARGETS, spoilt

SLOW = ("dicom", "dicom-zip", "dicom-tree")


def outcome(name: str, data: bytes) -> str:
    """The message of the UserError that comes of reading `data`, "" for none; every other
    exception comes through.
    """
    with TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        try:
            TARGETS[name].read(data, Path(folder))
            return ""
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 2100
            return str(error)
        finally:
            assert not [each for each in told if issubclass(each.category, RuntimeWarning)]
            assert all(
                str(each.message).isprintable()
                for each in told
                if issubclass(each.category, DataWarning)
            )


@pytest.mark.parametrize("name", TARGETS)
def test_a_valid_file_is_read(name):
    """Else spoiling it would try out nothing but its first check."""
    assert "" in {outcome(name, data) for data in TARGETS[name].seeds()}


@pytest.mark.parametrize("name", TARGETS)
def test_a_spoilt_file_is_a_user_error_or_nothing(name):
    seeds = TARGETS[name].seeds()

    @settings(
        max_examples=40 if name in SLOW else 150,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
    )
    @given(st.sampled_from(seeds), st.integers(0, 2**32))
    def read(data, state):
        outcome(name, spoilt(TARGETS[name], data, Random(state)))

    read()


TREES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
DOCUMENTS = (
    st.binary(max_size=200)
    | st.text(max_size=100).map(str.encode)
    | TREES.map(lambda tree: json.dumps(tree).encode())
)


@pytest.mark.parametrize(
    "name", ["settings", "split", "source", "run", "prepared", "metrics", "set"]
)
@settings(max_examples=40, deadline=None, database=None)
@given(data=DOCUMENTS)
def test_any_text_or_tree_is_a_user_error_or_nothing(name, data):
    outcome(name, data)
