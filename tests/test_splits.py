"""Who trains and who judges: in the data set's order, disjoint, or refused."""

import json
from itertools import chain
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Split
from dkuxnet.data.splits import make_split

CASES = tuple("abcdefgh")


def split(labelled, unlabelled, validation=(), test=()) -> Split:
    return Split(labelled=labelled, unlabelled=unlabelled, validation=validation, test=test)


def split_file(folder, **lists):
    path = folder / "split.json"
    path.write_text(json.dumps(lists))
    return path


def test_the_first_cases_keep_their_labels_in_the_order_of_the_data_set():
    cases = ("d", "a", "c", "b")
    assert make_split(cases, cases, labelled=2) == split(("d", "a"), ("c", "b"))


def test_a_seed_draws_the_cases_that_keep_their_labels():
    def drawn(labelled: int, seed: int, cases=CASES) -> tuple[str, ...]:
        made = make_split(cases, CASES[:7], labelled, labelled_seed=seed)
        assert set(made.labelled) | set(made.unlabelled) == set(cases)
        assert list(made.labelled) == sorted(made.labelled, key=cases.index)
        return made.labelled

    assert drawn(3, 1) == tuple("acg"), "the same on every machine, for ever"
    assert len({drawn(3, seed) for seed in range(20)}) > 10
    for seed in range(5):
        assert set(drawn(2, seed)) < set(drawn(5, seed))
        assert set(drawn(3, seed, CASES[::-1])) == set(drawn(3, seed))
    with pytest.raises(UserError, match="give both, or neither"):
        make_split(CASES, CASES, labelled_seed=1)


def test_all_labels_are_kept_where_no_number_is_given():
    assert make_split(CASES, "bdf") == split(tuple("bdf"), tuple("acegh"))


def test_cases_without_a_label_do_not_count_as_labelled():
    assert make_split(CASES, "bdf", labelled=2) == split(tuple("bd"), tuple("acefgh"))


def test_the_last_cases_test_and_the_last_labelled_ones_validate():
    assert make_split(CASES, CASES, labelled=4, validation_cases=1, test_cases=2) == split(
        tuple("abc"), tuple("ef"), tuple("d"), tuple("gh")
    )


def test_the_last_labelled_cases_test_where_the_unlabelled_come_last():
    assert make_split(CASES, "abcd", test_cases=1) == split(tuple("abc"), tuple("efgh"), (), ("d",))


def test_a_test_case_without_a_label_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="case 'h' is in the validation or test list but has no label"
    ):
        make_split(CASES, "bdf", file=split_file(tmp_path, train=["b"], test=["h"]))


def test_a_file_names_train_validation_and_test_and_the_others_stay_out(tmp_path):
    file = split_file(tmp_path, train=["h", "a", "c"], validation=["b"], test=["d", "e"])
    assert make_split(CASES, CASES, labelled=1, test_cases=3, file=file) == split(
        ("h",), ("a", "c"), ("b",), ("d", "e")
    )


def test_a_file_names_labelled_and_unlabelled_and_the_labels_of_the_latter_stay_closed(tmp_path):
    file = split_file(tmp_path, labelled=["c", "a"], unlabelled=["b", "d"])
    assert make_split(CASES, CASES, file=file) == split(("c", "a"), ("b", "d"))


@given(st.data())
def test_the_lists_are_disjoint_and_hold_every_case_once(data):
    count = data.draw(st.integers(1, 12))
    cases = [f"case{i}" for i in range(count)]
    with_label = [name for name in cases if data.draw(st.booleans())]
    numbers = [data.draw(st.integers(0, count + 1)) for _ in range(3)]
    try:
        split = make_split(cases, with_label, *numbers)
    except UserError:
        return
    lists = list(split.to_json().values())
    assert sorted(chain(*lists)) == sorted(cases)
    assert split.labelled
    assert {*split.labelled, *split.validation, *split.test} <= set(with_label)
    assert len(split.labelled) + len(split.validation) == numbers[0]
    assert all(names == sorted(names, key=cases.index) for names in lists)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"labelled": 4}, "--labelled 4: the training pool has 3 labelled cases of 8"),
        ({"labelled": 2, "validation_cases": 2}, "data.validation_cases=2 leaves none of 2"),
        ({"test_cases": 3}, "data.test_cases=3 leaves none of 3 labelled"),
    ],
)
def test_what_cannot_be_is_refused(options, part):
    with pytest.raises(UserError) as caught:
        make_split(CASES, "bdf", **options)
    assert part in str(caught.value)


def test_a_data_set_without_labels_is_refused():
    with pytest.raises(UserError, match="no labelled case is left"):
        make_split(CASES, ())


@pytest.mark.parametrize(
    ("lists", "part"),
    [
        ({"train": ["a", "a"]}, "'a' is in more than one list, or twice in one"),
        ({"train": ["a"], "test": ["a"]}, "'a' is in more than one list"),
        ({"train": ["a"], "validation": ["b"], "test": ["b"]}, "'b' is in more than one list"),
        ({"labelled": ["a"], "unlabelled": ["a"]}, "'a' is in more than one list"),
        ({"train": ["a", "x"]}, "'x' is not in the prepared data set"),
        ({"train": ["a"], "test": ["h"]}, "'h' is in the validation or test list but has no label"),
        (
            {"train": ["a"], "validation": ["h"]},
            "'h' is in the validation or test list but has no label",
        ),
        ({"labelled": ["a", "h"]}, "'h' is in the labelled list but has no label"),
        ({"train": ["h"]}, "no labelled case is left"),
        ({"train": ["a"], "tset": []}, "keys: train, labelled"),
        ({"train": "a"}, "JSON object of lists of case names"),
        ({"train": [1]}, "JSON object of lists of case names"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path, lists, part):
    with pytest.raises(UserError) as caught:
        make_split(CASES, "abc", file=split_file(tmp_path, **lists))
    assert part in str(caught.value)


def test_validation_comes_from_the_file_or_from_a_number_not_from_both(tmp_path):
    file = split_file(tmp_path, train=["a", "b"], validation=["c"])
    with pytest.raises(UserError, match=r"set data\.validation_cases=0"):
        make_split(CASES, CASES, validation_cases=1, file=file)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "\xff"])
def test_an_unreadable_file_is_refused_by_its_name(tmp_path, text):
    path = tmp_path / "split.json"
    if text is not None:
        path.write_text(text, "latin-1")
    with pytest.raises(UserError, match=r"split\.json"):
        make_split(CASES, CASES, file=path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_a_file_may_be_in_another_form_of_unicode(tmp_path, form):
    cases = [normalize("NFC" if form == "NFD" else "NFD", name) for name in ("Größe", "é", "a")]
    file = split_file(tmp_path, train=[normalize(form, "Größe"), "a"], test=[normalize(form, "é")])
    found = make_split(cases, cases, file=file)
    assert found == split((cases[0], "a"), (), test=(cases[1],))
    again = split_file(tmp_path, train=[cases[0], normalize(form, "Größe")])
    with pytest.raises(UserError, match="twice in one"):
        make_split(cases, cases, file=again)
