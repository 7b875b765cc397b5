"""Prepared cases on disk, and the patches that a step gets from them."""

import json
from pathlib import Path

import numpy as np
import pytest

from described import FINGERPRINT
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.data.arrays import read_box
from dkuxnet.data.prepared_set import VERSION, PreparedSet, write_array
from dkuxnet.training.experiment import patch_streams
from dkuxnet.training.job import new_job
from dkuxnet.training.patches import PatchStream, read_ahead

SHAPES = {"a": (9, 12, 10), "b": (12, 9, 9), "c": (10, 10, 14), "d": (4, 11, 9), "e": (9, 9, 9)}
PATCH = (6, 8, 8)
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("prepared"))


def write_set(folder: Path, shapes: dict = SHAPES) -> Path:
    """Two channels: in case number i every voxel holds 10000 i + its own number, and minus that;
    labels are random.
    """
    (folder / "cases").mkdir(parents=True)
    for i, (name, shape) in enumerate(shapes.items()):
        numbers = 10_000 * i + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        write_array(folder / "cases" / f"{name}.image.b2nd", np.stack([numbers, -numbers]))
        label = np.random.default_rng(i).integers(0, 3, shape, np.uint8)
        write_array(folder / "cases" / f"{name}.label.b2nd", label)
        (folder / "cases" / f"{name}.json").write_text("{}")
    cases = [{"name": name, "labelled": True, "shape": shape} for name, shape in shapes.items()]
    meta = {
        "version": VERSION,
        "channels": ["x", "y"],
        "labels": {"background": 0, "organ": 1, "tumour": 2},
        "cases": cases,
        "plan": {
            "spacing_mm": [1, 1, 1],
            "normalisation": [{"kind": "z-score"}] * 2,
            "patch": [16, 16, 16],
            "network": "none",
        },
        "fingerprint": FINGERPRINT,
    }
    (folder / "dataset.json").write_text(json.dumps(meta))
    return folder


def stream(
    folder: Path,
    with_label: bool = True,
    cache_gib: float = 0.0,
    cases="abcde",
    batch: int = 2,
    seed: int = 7,
    foreground_share: float = 0.5,
) -> PatchStream:
    return PatchStream(
        PreparedSet(folder, cache_gib),
        list(cases),
        PATCH,
        batch,
        seed,
        with_label,
        foreground_share,
    )


def same(first, second) -> bool:
    return all(
        np.array_equal(x, y)
        for a, b in zip(first, second, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def case_of(patch: np.ndarray) -> str:
    return "abcde"[int(patch[0].max()) // 10_000]


# --- arrays on disk ---


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 70, 65, 3), (5, 6, 7)])
def test_an_array_comes_back_as_it_was_written(tmp_path, dtype, shape):
    array = np.random.default_rng(0).normal(size=shape, scale=50).astype(dtype)
    write_array(tmp_path / "case.image.b2nd", array)
    result = read_box(tmp_path / "case.image.b2nd", shape, dtype)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize("bytes_of_cache", [0, 5000, GIB])
def test_a_crop_is_the_slice_of_the_whole_with_and_without_cache(folder, bytes_of_cache):
    data, rng = PreparedSet(folder, bytes_of_cache / GIB), np.random.default_rng(0)
    for _ in range(3):
        for name, shape in SHAPES.items():
            start = [int(rng.integers(n - 2)) for n in shape]
            size = [int(rng.integers(1, n - s + 1)) for s, n in zip(start, shape, strict=True)]
            box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
            for kind in ("image", "label"):
                expected = PreparedSet(folder).array(name, kind)[(..., *box)]
                np.testing.assert_array_equal(data.crop(name, kind, start, size), expected)


def test_the_cache_holds_what_fits_and_a_crop_of_what_does_not_fit_reads_no_whole_case(
    folder, monkeypatch
):
    one = 2 * 4 * np.prod(SHAPES["a"])
    data = PreparedSet(folder, (one + 100) / GIB)
    assert data.array("a", "image") is data.array("a", "image")
    assert data.array("b", "image") is not data.array("b", "image")
    whole = []
    monkeypatch.setattr(data, "array", lambda *key: whole.append(key))
    data.crop("b", "image", (0, 0, 0), (2, 2, 2))
    assert not whole


def test_a_set_knows_its_cases(folder):
    data = PreparedSet(folder)
    assert data.names == list("abcde") == data.names_with_label
    assert data.class_names == ["background", "organ", "tumour"]
    assert data.shape("c") == (10, 10, 14)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "scrambled"])
@pytest.mark.parametrize("read", ["array", "crop"])
def test_a_damaged_array_is_one_clear_line(tmp_path, damage, read):
    write_set(tmp_path / "p", {"a": (40, 40, 40)})
    path = tmp_path / "p" / "cases" / "a.image.b2nd"
    content = path.read_bytes()
    middle = bytes(b ^ 0xFF for b in content[2000:-2000])
    changed = {
        "missing": None,
        "empty": b"",
        "cut": content[: len(content) // 2],
        "scrambled": content[:2000] + middle + content[-2000:],
    }[damage]
    path.unlink() if changed is None else path.write_bytes(changed)
    data = PreparedSet(tmp_path / "p")
    with pytest.raises(
        UserError, match=r"a\.image\.b2nd is missing or damaged .* prepare the data set again"
    ):
        data.array("a", "image") if read == "array" else data.crop(
            "a", "image", (5, 5, 5), (9, 9, 9)
        )


@pytest.mark.parametrize("read", ["array", "crop"])
def test_a_class_that_the_set_does_not_have_never_reaches_a_loss(tmp_path, read):
    write_set(tmp_path / "p")
    write_array(tmp_path / "p" / "cases" / "a.label.b2nd", np.full(SHAPES["a"], 3, np.uint8))
    data = PreparedSet(tmp_path / "p")
    with pytest.raises(UserError, match="class 3 in a data set of 3 classes"):
        data.array("a", "label") if read == "array" else data.crop(
            "a", "label", (0, 0, 0), (2, 2, 2)
        )


def test_an_unknown_case_gets_the_near_match(folder):
    with pytest.raises(UserError, match="unknown case 'aa'; did you mean 'a'"):
        PreparedSet(folder).array("aa", "image")


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '{"version": 99}', "{}"])
def test_a_folder_that_was_not_prepared_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match="prepare"):
        PreparedSet(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_missing_or_broken_json_names_its_case(tmp_path, text):
    write_set(tmp_path / "p")
    path = tmp_path / "p" / "cases" / "a.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r"case 'a'.*missing or damaged"):
        PreparedSet(tmp_path / "p").info("a")


def test_an_array_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"x\.b2nd: cannot write"):
        write_array(tmp_path / "missing" / "x.b2nd", np.zeros((2, 2, 2)))


# --- patches ---


def test_a_patch_is_a_box_of_its_case_with_the_label_of_the_same_box(folder):
    data = PreparedSet(folder)
    for step in range(12):
        images, labels = stream(folder).at(step)
        assert images.shape == (2, 2, *PATCH) and images.dtype == np.float32
        assert labels.shape == (2, *PATCH) and labels.dtype == np.uint8
        for image, label in zip(images, labels, strict=True):
            name = case_of(image)
            if name == "d":
                continue  # smaller than the patch: see below
            first = np.argwhere(data.array(name, "image")[0] == image[0, 0, 0, 0])[0]
            box = tuple(slice(s, s + n) for s, n in zip(first, PATCH, strict=True))
            np.testing.assert_array_equal(image, data.array(name, "image")[(..., *box)])
            np.testing.assert_array_equal(label, data.array(name, "label")[box])


def test_a_smaller_case_is_padded_evenly_with_its_lowest_value_and_background(folder):
    image, label = (part[0] for part in stream(folder, cases="d", batch=1).at(0))
    assert (image[:, [0, -1]] == image[:, 1:-1].min()).all()
    assert (label[[0, -1]] == 0).all()
    assert (np.diff(image[0, 1:5], axis=2) == 1).all()


def test_a_patch_is_a_function_of_seed_stream_and_step_alone(folder):
    forwards, backwards = stream(folder), stream(folder, cache_gib=1)
    first = [forwards.at(step) for step in range(6)]
    assert same(first, [backwards.at(step) for step in reversed(range(6))][::-1])
    assert not same(first, [stream(folder, seed=8).at(step) for step in range(6)])
    labelled, unlabelled = stream(folder, foreground_share=0), stream(folder, with_label=False)
    assert any(
        not np.array_equal(labelled.at(step)[0], unlabelled.at(step)[0]) for step in range(6)
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(folder, workers):
    def read(workers: int, first: int) -> list:
        streams = [stream(folder, cache_gib=1), stream(folder, with_label=False, batch=3)]
        return [
            [a for pair in step for a in pair if a is not None]
            for step in read_ahead(streams, first, 11, workers)
        ]

    alone = read(0, 2)
    assert len(alone) == 9
    assert same(alone, read(workers, 2))
    assert same(alone[3:], read(workers, 5)), (
        "a resumed run sees what the first one would have seen"
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_every_case_comes_once_an_epoch_in_a_new_order(folder, batch):
    patches = stream(folder, batch=batch, with_label=False)
    seen = [case_of(image) for step in range(15) for image in patches.at(step)[0]]
    epochs = ["".join(seen[i : i + 5]) for i in range(0, 15, 5)]
    assert all(sorted(epoch) == list("abcde") for epoch in epochs)
    assert len(set(epochs)) > 1


@pytest.fixture
def one_voxel(tmp_path) -> Path:
    """A case whose foreground is one voxel in a corner's neighbourhood."""
    write_set(tmp_path / "p", {"a": (30, 30, 30)})
    label = np.zeros((30, 30, 30), np.uint8)
    label[20, 3, 29] = 2
    write_array(tmp_path / "p" / "cases" / "a.label.b2nd", label)
    return tmp_path / "p"


def test_foreground_patches_hold_their_voxel_in_the_middle_or_as_near_as_the_border_lets(one_voxel):
    for step in range(5):
        _, label = stream(one_voxel, cases="a", batch=1, foreground_share=1.0).at(step)
        assert [int(n) for n in np.argwhere(label[0] == 2)[0]] == [3, 3, 7]


def test_the_foreground_share_is_a_share_and_other_patches_come_from_everywhere(one_voxel):
    def hits(share: float) -> int:
        patches = stream(one_voxel, cases="a", batch=1, foreground_share=share)
        return sum(bool(patches.at(step)[1].any()) for step in range(100))

    assert hits(0.0) < 15
    assert 35 < hits(0.5) < 70
    corners = [
        stream(one_voxel, False, cases="a", batch=1).at(step)[0][0, 0, 0, 0, 0]
        for step in range(100)
    ]
    starts = np.array(np.unravel_index(np.array(corners, int), (30, 30, 30)))
    assert (starts.min(axis=1) < 3).all() and (
        starts.max(axis=1) > np.subtract(30, PATCH) - 3
    ).all()


@pytest.fixture
def lesion_beside_organ(tmp_path) -> Path:
    """Two cases with a large organ; in one of them a lesion of 8 voxels, far from it."""
    write_set(tmp_path / "p", {"a": (40, 40, 40), "b": (40, 40, 40)})
    for name in "ab":
        label = np.zeros((40, 40, 40), np.uint8)
        label[:20] = 1
        if name == "a":
            label[36:38, 20:22, 20:22] = 2
        write_array(tmp_path / "p" / "cases" / f"{name}.label.b2nd", label)
    return tmp_path / "p"


def test_every_class_of_a_case_is_in_the_middle_of_as_many_foreground_patches(lesion_beside_organ):
    def shares(name: str, share: float, class_first: bool = True) -> list[float]:
        patches = stream(
            lesion_beside_organ, cases=name, batch=1, foreground_share=share, cache_gib=1
        )
        patches.class_first = class_first
        labels = [patches.at(step)[1] for step in range(400)]
        return [np.mean([(label == k).any() for label in labels]) for k in (1, 2)]

    organ, lesion = shares("a", 1.0)
    assert 0.44 < organ < 0.56 and 0.44 < lesion < 0.56  # by voxels the lesion has 0.0003
    assert 0.2 < shares("a", 0.5)[1] < 0.3
    assert shares("a", 1.0, class_first=False)[1] == 0
    assert shares("b", 1.0) == [1.0, 0.0]


@pytest.mark.parametrize("labels", [["background", "organ"], ["background", "organ", "tumour"]])
def test_of_a_single_class_the_patches_are_those_of_earlier_versions(lesion_beside_organ, labels):
    description = lesion_beside_organ / "dataset.json"
    meta = json.loads(description.read_text())
    meta["labels"] = {name: index for index, name in enumerate(labels)}
    description.write_text(json.dumps(meta))
    settings = load_settings(overrides={"network.name": "uxnet-tiny", "train.patch": [16, 16, 16]})
    (labelled,) = patch_streams(new_job(lesion_beside_organ, settings))
    assert labelled.class_first == (len(labels) > 2)


def test_the_unlabelled_stream_opens_no_label(tmp_path):
    write_set(tmp_path / "p")
    expected = [stream(tmp_path / "p", with_label=False).at(step)[0] for step in range(5)]
    for i, path in enumerate(sorted((tmp_path / "p" / "cases").glob("*.label.b2nd"))):
        path.unlink() if i % 2 else path.write_bytes(b"not a label")
    images = [
        stream(tmp_path / "p", with_label=False, foreground_share=1.0).at(step)[0]
        for step in range(5)
    ]
    assert same([images], [expected])
    with pytest.raises(UserError, match="label"):
        stream(tmp_path / "p").at(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_in_a_worker_arrives_with_its_reason(tmp_path, workers):
    write_set(tmp_path / "p")
    (tmp_path / "p" / "cases" / "c.image.b2nd").unlink()
    with pytest.raises(UserError, match=r"c\.image\.b2nd"):
        list(read_ahead([stream(tmp_path / "p", with_label=False)], 0, 9, workers))


def test_reading_ahead_stops_with_its_reader(folder):
    steps = read_ahead([stream(folder)], 0, 10**9, 2)
    next(steps)
    steps.close()


@pytest.mark.parametrize("with_label", [True, False])
def test_a_margin_is_read_around_the_same_patches_and_ends_where_the_case_does(folder, with_label):
    plain, wide = (stream(folder, with_label, cases="abce") for _ in range(2))
    wide.margin = 3
    beyond = 0
    for step in range(20):
        (images, labels), (wide_images, wide_labels) = plain.at(step), wide.at(step)
        assert wide_images.shape[2:] == tuple(n + 6 for n in PATCH)
        middle = np.s_[..., 3:-3, 3:-3, 3:-3]
        np.testing.assert_array_equal(wide_images[middle], images)
        if with_label:
            np.testing.assert_array_equal(wide_labels[middle], labels)
        for name, image in zip(wide.names_at(step), wide_images[:, 0], strict=True):
            whole = PreparedSet(folder).array(name, "image")[0]
            start = np.argwhere(whole == image[3, 3, 3])[0]
            places = [
                np.clip(np.arange(a - 3, a + p + 3), 0, n - 1)
                for a, p, n in zip(start, PATCH, whole.shape, strict=True)
            ]
            np.testing.assert_array_equal(image, whole[np.ix_(*places)])
            beyond += any(a < 3 for a in start)
    assert beyond, "no patch is near a border"
    wide.cases = ["d"]  # four voxels along X: padded
    (image, *_), label = wide.at(0)
    assert image.shape[1:] == tuple(n + 6 for n in PATCH)
    assert (image[0, :4] == image[0].min()).all() and (
        image[0, 4:8, 3:-3, 3:-3] > image.min()
    ).any()
    assert label is None or not label[0, :4].any()
