"""Raw scans -> prepared cases: where every voxel goes, and that a bad input leaves one line and
nothing else.
"""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dkuxnet.core.errors import DataWarning, UserError, UserErrors
from dkuxnet.core.types import Volume
from dkuxnet.data import formats, phantom
from dkuxnet.data.geometry import from_ras
from dkuxnet.data.layouts import find_source
from dkuxnet.data.network_grid import normalise
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.metrics import dice
from dkuxnet.prediction.windows import label_on_scan, label_volume

LABELS = {"background": 0, "LA": 255, "wall": 7}
# array axes run along anterior, left, inferior, and the scan is tilted
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = (
    Rotation.from_euler("xyz", (8, -12, 20), degrees=True).as_matrix()
    @ np.array([[0, -1.0, 0], [1.0, 0, 0], [0, 0, -1.0]])
    * (2.0, 1.5, 4.0)
)
OBLIQUE[:3, 3] = (50, -20, 300)
SHAPE = (22, 30, 12)


def scan(seed: int = 0, shape=SHAPE, affine=OBLIQUE) -> tuple[Volume, Volume]:
    """Noise, brighter where the label is: an off-centre block of value 255 with a wall of value 7
    on one side.
    """
    label = np.zeros(shape, np.uint8)
    a, b, c = (n // 4 for n in shape)
    label[a : 3 * a, b : 2 * b, c : 3 * c] = 255
    label[a : 3 * a, 2 * b : 2 * b + 5, c : 3 * c] = 7
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1)
    return Volume((500 + 100 * noise + 2 * label).astype(np.int16), affine), Volume(label, affine)


def write_source(
    folder: Path, cases: int = 3, labelled: int = 2, channels: int = 1, **options
) -> Path:
    """An nnU-Net folder; channel number i holds i more than the first."""
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for n in range(cases):
        image, label = scan(n, **options)
        for i in range(channels):
            formats.write(
                Volume(image.array + np.int16(i), image.affine),
                folder / "imagesTr" / f"c{n}_{i:04d}.nii.gz",
            )
        if n < labelled:
            formats.write(label, folder / "labelsTr" / f"c{n}.nii.gz")
    names = {str(i): "MRI" for i in range(channels)}
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": names, "labels": LABELS, "file_ending": ".nii.gz"})
    )
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture(scope="module")
def oblique(tmp_path_factory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("oblique")
    prepare_scans(write_source(folder / "source"), folder / "prepared", processes=1)
    return PreparedSet(folder / "prepared")


def rewrite(path: Path, array=None, affine=None) -> None:
    volume = formats.read(path, kind="label" if "labelsTr" in str(path) else "image")
    formats.write(
        Volume(
            volume.array if array is None else array, volume.affine if affine is None else affine
        ),
        path,
    )


# --- what comes out ---


def test_cases_come_out_in_ras_order_at_the_spacing_of_the_plan_and_normalised(oblique):
    assert oblique.meta.plan.spacing_mm == pytest.approx(
        [1.5, 2.0, 4.0]
    )  # the array's axes, sorted to RAS
    assert [case.labelled for case in oblique.meta.cases] == [True, True, False]
    for name in oblique.names:
        image = oblique.array(name, "image")
        assert image.dtype == np.float32 and image.shape == (1, 30, 22, 12) == (
            1,
            *oblique.shape(name),
        )
        assert image.mean() == pytest.approx(0, abs=1e-5) and image.std() == pytest.approx(
            1, abs=1e-5
        )
        info = oblique.info(name)
        assert info.shape == SHAPE
        np.testing.assert_allclose(info.affine, OBLIQUE, atol=1e-4)
        np.testing.assert_allclose(info.spacing_mm, (2.0, 1.5, 4.0), rtol=1e-6)


def test_a_label_has_the_image_s_grid_and_class_indices_for_the_values_of_its_file(oblique):
    assert oblique.class_names == [
        "background",
        "wall",
        "LA",
    ]  # by value: index 1 is value 7, index 2 is value 255
    label, truth = oblique.array("c0", "label"), oblique.array("c0", "truth")
    original = scan(0)[1].array
    for index, value in enumerate((0, 7, 255)):
        np.testing.assert_array_equal(truth == index, original == value)
    np.testing.assert_array_equal(from_ras(label, OBLIQUE), truth)
    image = oblique.array("c0", "image")[0]
    assert image[label == 2].mean() > 1 > image[label == 1].mean() > image[label == 0].mean()


def test_a_case_without_label_has_no_label_file(oblique):
    cases = oblique.folder / "cases"
    assert sorted(p.name for p in cases.glob("c2.*")) == ["c2.image.b2nd", "c2.json"]
    assert sorted(p.name for p in cases.glob("c1.*")) == [
        f"c1.{e}" for e in ("image.b2nd", "json", "label.b2nd", "truth.b2nd")
    ]
    assert oblique.names_with_label == ["c0", "c1"]


def test_the_prepared_affine_puts_every_voxel_where_it_was(oblique):
    affine = np.array(oblique.info("c0").prepared_affine)
    image, original = oblique.array("c0", "image")[0], scan(0)[0].array
    flat = normalise(original[None].astype(np.float32), [{"kind": "z-score"}])[0]
    for voxel in np.random.default_rng(0).integers(0, image.shape, (20, 3)):
        place = np.linalg.inv(OBLIQUE) @ affine @ [*voxel, 1]
        assert image[tuple(voxel)] == pytest.approx(
            flat[tuple(np.round(place[:3]).astype(int))], abs=1e-3
        )


def test_the_truth_survives_the_way_to_another_spacing_and_back(source, tmp_path):
    prepare_scans(source, tmp_path / "prepared", spacing_mm=2.0, processes=1)
    data = PreparedSet(tmp_path / "prepared")
    assert data.meta.plan.spacing_mm == (2.0, 2.0, 2.0)
    assert data.shape("c0") == (22, 22, 24) == data.array("c0", "label").shape
    one_hot = np.stack([data.array("c0", "label") == k for k in range(3)]).astype(np.float32)
    back = label_volume(
        label_on_scan(one_hot, SHAPE, OBLIQUE), OBLIQUE, list(data.meta.labels.values())
    )
    original = formats.read(source / "labelsTr" / "c0.nii.gz", kind="label")
    assert dice(back.array == 255, original.array == 255) > 0.95
    assert dice(back.array == 7, original.array == 7) > 0.8  # five voxels thick


def test_channels_keep_their_order_and_their_own_normalisation(tmp_path):
    prepare_scans(write_source(tmp_path / "source", channels=2), tmp_path / "prepared", processes=1)
    data = PreparedSet(tmp_path / "prepared")
    image = data.array("c0", "image")
    assert image.shape == (2, 30, 22, 12) and data.meta.channels == ["MRI", "MRI"]
    np.testing.assert_allclose(
        image[0], image[1], atol=1e-4
    )  # they differ by an offset, which normalising takes away


def test_a_small_bright_organ_in_ct_is_neither_clipped_nor_drowned_by_the_air(source, tmp_path):
    fields = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps(fields | {"channel_names": {"0": "CT"}}))
    for file in (source / "imagesTr").iterdir():
        scan = np.full(SHAPE, -1000.0, np.float32)
        scan[5:-5, 5:-5, 2:-2] = np.random.default_rng(0).normal(
            40, 30, scan[5:-5, 5:-5, 2:-2].shape
        )
        scan[10:14, 10:14, 5:8] = 350  # less than a two-hundredth of the scan
        scan[16:18, 10:14, 5:8] = 180
        scan[0, 0, 0] = 3071  # metal
        rewrite(file, array=scan)
    how = prepare_scans(source, tmp_path / "prepared", processes=1).plan.normalisation[0]
    image = PreparedSet(tmp_path / "prepared").array("c0", "image")
    assert how.kind == "ct" and 30 < how.mean < 60 and 20 < how.std < 120
    assert image.max() == pytest.approx((1000 - how.mean) / how.std, rel=1e-5)
    assert image.min() == pytest.approx((-1000 - how.mean) / how.std, rel=1e-2)
    organ, other = ((value - how.mean) / how.std for value in (350, 180))
    assert (
        (np.abs(image - organ) < 0.05).any()
        and (np.abs(image - other) < 0.05).any()
        and organ - other > 1.5
    )


def test_a_constant_scan_becomes_zero_at_any_spacing(source, tmp_path):
    rewrite(source / "imagesTr" / "c2_0000.nii.gz", array=np.full(SHAPE, 301.7, np.float32))
    with pytest.warns(DataWarning, match="^case 'c2': .* has one value only"):
        prepare_scans(source, tmp_path / "prepared", spacing_mm=1.7, processes=1)
    assert not PreparedSet(tmp_path / "prepared").array("c2", "image").any()


def test_labels_have_no_say_in_the_plan(source, tmp_path):
    plan = prepare_scans(source, tmp_path / "first", processes=1).plan
    rewrite(source / "labelsTr" / "c0.nii.gz", array=np.full(SHAPE, 7, np.uint8))
    (source / "labelsTr" / "c1.nii.gz").unlink()
    again = prepare_scans(source, tmp_path / "second", processes=1)
    assert again.plan == plan
    assert again.fingerprint.label_share == {"7": 1.0}


def test_the_number_of_processes_changes_nothing(scans, prepared, tmp_path):
    done = []
    prepare_scans(scans, tmp_path / "two", processes=2, progress=lambda *args: done.append(args))
    files = sorted(p.relative_to(prepared) for p in prepared.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file()
    )
    one, two = PreparedSet(prepared), PreparedSet(tmp_path / "two")
    assert one.meta == two.meta
    for name in one.names:
        for kind in ("image", "label", "truth") if name in one.names_with_label else ("image",):
            np.testing.assert_array_equal(one.array(name, kind), two.array(name, kind))
    assert done == [(what, n, 5) for what in ("check", "store") for n in range(1, 6)]


def test_labels_without_a_map_take_the_values_that_occur(source, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(source / "imagesTr", folder / "images")
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    shutil.copytree(source / "labelsTr", folder / "labels")
    meta = prepare_scans(folder, tmp_path / "prepared", processes=1)
    assert meta.labels == {"background": 0, "class_7": 7, "class_255": 255}


# --- the synthetic scans ---


def test_synthetic_scans_are_a_function_of_their_seed(scans, tmp_path):
    again = phantom.write_dataset(tmp_path / "again", cases=5, labelled=3, seed=3, size=20)
    other = phantom.write_dataset(tmp_path / "other", cases=1, labelled=0, seed=4, size=20)
    for path in sorted(scans.rglob("*.nii.gz")):
        first, second = formats.read(path), formats.read(again / path.relative_to(scans))
        np.testing.assert_array_equal(first.array, second.array)
        np.testing.assert_array_equal(first.affine, second.affine)
    third = formats.read(other / "imagesTr" / "phantom_000_0000.nii.gz")
    assert not np.array_equal(
        third.affine, formats.read(scans / "imagesTr" / "phantom_000_0000.nii.gz").affine
    )


def test_only_the_first_synthetic_scans_show_their_label(scans):
    found = find_source(scans)
    assert [case.label is not None for case in found.cases] == [True] * 3 + [False] * 2
    assert sorted(path.name for path in (scans / "labelsHidden").iterdir()) == [
        "phantom_003.nii.gz",
        "phantom_004.nii.gz",
    ]


def test_a_synthetic_scan_holds_an_organ_that_is_brighter_than_its_body_but_no_threshold_finds():
    for seed in range(3):
        image, label = phantom.make_case(np.random.default_rng(seed), size=24)
        assert image.array.shape == label.array.shape and np.array_equal(image.affine, label.affine)
        assert set(np.unique(label.array)) == {0, 1, 2}
        organ, rest = image.array[label.array == 1], image.array[label.array == 0]
        assert organ.mean() > rest.mean() + 50
        assert max(dice(image.array > t, label.array > 0) for t in range(200, 700, 20)) < 0.8


# --- what is refused, and what stays behind: nothing ---


def stray_value(source: Path) -> None:
    label = scan(1)[1].array
    label[0, 0, :5] = 9
    rewrite(source / "labelsTr" / "c1.nii.gz", array=label)


def nan_voxels(source: Path) -> None:
    image = scan(1)[0].array.astype(np.float32)
    image[0, 0, :2] = np.nan, np.inf
    rewrite(source / "imagesTr" / "c1_0000.nii.gz", array=image)


def other_shape(source: Path) -> None:
    rewrite(source / "labelsTr" / "c1.nii.gz", array=np.zeros((22, 30, 11), np.uint8))


def other_place(source: Path) -> None:
    moved = OBLIQUE.copy()
    moved[0, 3] += 3
    rewrite(source / "labelsTr" / "c1.nii.gz", affine=moved)


def mirrored(source: Path) -> None:
    rewrite(source / "labelsTr" / "c1.nii.gz", affine=OBLIQUE @ np.diag([-1, 1, 1, 1]))


def one_slice(source: Path) -> None:
    for path in (source / "imagesTr" / "c1_0000.nii.gz", source / "labelsTr" / "c1.nii.gz"):
        rewrite(path, array=np.zeros((22, 30, 1), np.uint8))


def two_dimensions(source: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((22, 30), np.int16), OBLIQUE),
        source / "imagesTr" / "c1_0000.nii.gz",
    )


def time_series(source: Path) -> None:
    rewrite(source / "imagesTr" / "c1_0000.nii.gz", array=np.zeros((3, *SHAPE), np.int16))


def flat_voxels(source: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    image.set_sform(np.diag([0.0, 1, 1, 1]), code=1)
    nibabel.save(image, source / "imagesTr" / "c1_0000.nii.gz")


def no_labels(source: Path) -> None:
    shutil.rmtree(source / "labelsTr")


def cut_short(source: Path) -> None:
    path = source / "imagesTr" / "c1_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-3000])


def no_cases(source: Path) -> None:
    shutil.rmtree(source / "imagesTr")
    shutil.rmtree(source / "labelsTr")


def fractions(source: Path) -> None:
    rewrite(source / "labelsTr" / "c1.nii.gz", array=np.full(SHAPE, 0.5, np.float32))


BAD = [
    (stray_value, ["case 'c1'", "5 voxels", "label value 9", "'wall': 7", "correct"]),
    (nan_voxels, ["case 'c1'", "2 voxels are NaN or infinite", "c1_0000.nii.gz"]),
    (other_shape, ["case 'c1'", "(22, 30, 12)", "(22, 30, 11)"]),
    (other_place, ["case 'c1'", "3 mm apart"]),
    (mirrored, ["case 'c1'", "mm apart"]),
    (one_slice, ["case 'c1'", "(22, 30, 1)", "not a 3D scan"]),
    (two_dimensions, ["c1_0000.nii.gz", "3D", "(22, 30)"]),
    (time_series, ["case 'c1'", "3 channels", "expected 1"]),
    (flat_voxels, ["c1_0000.nii.gz", "singular"]),
    (no_labels, ["at least one labelled case"]),
    (cut_short, ["c1_0000.nii.gz"]),
    (no_cases, ["dataset.json"]),
    (fractions, ["c1.nii.gz", "whole numbers"]),
]


def refused(source: Path, prepared: Path, **options) -> str:
    """The one line of the refusal, after a look at what stayed behind."""
    before = sorted(p for p in source.parent.rglob("*") if source not in p.parents)
    with pytest.raises(UserError) as caught:
        prepare_scans(source, prepared, **{"processes": 1} | options)
    assert sorted(p for p in source.parent.rglob("*") if source not in p.parents) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("spoil", "parts"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_a_bad_source_is_one_clear_line_and_leaves_nothing_behind(source, tmp_path, spoil, parts):
    spoil(source)
    message = refused(source, tmp_path / "deep" / "down" / "prepared")
    for part in parts:
        assert part in message


def test_a_bad_case_is_refused_by_a_worker_too(source, tmp_path):
    stray_value(source)
    assert "label value 9" in refused(source, tmp_path / "prepared", processes=2)


def test_a_label_whose_axes_are_swapped_is_put_in_order_where_its_shape_fits_too(tmp_path):
    folder = tmp_path / "source"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    image, label = scan(shape=(8, 8, 5), affine=np.eye(4))
    formats.write(image, folder / "images" / "c.nii.gz")
    formats.write(Volume(label.array, np.eye(4)[:, [1, 0, 2, 3]]), folder / "labels" / "c.nii.gz")
    prepare_scans(folder, tmp_path / "prepared", processes=1)
    stored = PreparedSet(tmp_path / "prepared").array("c", "truth")
    indices = np.searchsorted([0, 7, 255], label.array)
    assert np.array_equal(stored, indices.transpose(1, 0, 2))


def test_negative_label_values_are_refused_and_the_background_comes_first(tmp_path):
    folder = tmp_path / "source"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    image, label = scan(affine=np.eye(4))
    formats.write(image, folder / "images" / "c.nii.gz")
    formats.write(
        Volume(label.array.astype(np.int16) - 1, np.eye(4)), folder / "labels" / "c.nii.gz"
    )
    assert "0 is background, the others are above it" in refused(folder, tmp_path / "prepared")


def test_channels_on_different_grids_are_refused(tmp_path):
    source = write_source(tmp_path / "source", channels=2)
    rewrite(source / "imagesTr" / "c1_0001.nii.gz", affine=OBLIQUE @ np.diag([1, 1, 1.2, 1]))
    assert "case 'c1': c1_0000.nii.gz and c1_0001.nii.gz lie" in refused(
        source, tmp_path / "prepared"
    )


@pytest.mark.parametrize("spacing_mm", [0.0, -1.0, float("nan"), float("inf"), (1, 0, 1), (1, 2)])
def test_a_spacing_must_be_a_number_above_zero(source, tmp_path, spacing_mm):
    assert "--spacing-mm must be a number above 0" in refused(
        source, tmp_path / "prepared", spacing_mm=spacing_mm
    )


@pytest.mark.parametrize("spacing_mm", [1e-3, 1e-300])
def test_a_spacing_that_no_memory_holds_is_refused_before_it_is_tried(source, tmp_path, spacing_mm):
    assert "choose a coarser --spacing-mm" in refused(
        source, tmp_path / "prepared", spacing_mm=spacing_mm
    )


def test_each_axis_can_have_a_spacing_of_its_own(source, tmp_path):
    plan = prepare_scans(source, tmp_path / "prepared", spacing_mm=(0.5, 0.5, 2), processes=1).plan
    assert plan.spacing_mm == (0.5, 0.5, 2.0)
    assert plan.strides[0] == (2, 2, 1)


def test_a_spacing_beyond_all_scans_is_refused_as_it_is_read_again_by_nobody(source, tmp_path):
    assert "choose a finer --spacing-mm" in refused(source, tmp_path / "prepared", spacing_mm=2e3)


def test_too_little_memory_is_one_clear_line(source, tmp_path, monkeypatch):
    def starve(*_):
        raise MemoryError

    monkeypatch.setattr("dkuxnet.data.storing.to_network_grid", starve)
    assert "case 'c0' or one after it: too little memory" in refused(source, tmp_path / "prepared")


def test_an_existing_output_is_refused_and_stays_as_it_is(source, tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "mine").write_text("mine")
    assert "exists already" in refused(source, tmp_path / "prepared")
    assert (tmp_path / "prepared" / "mine").read_text() == "mine"


def test_an_output_inside_a_file_is_refused(source, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write there" in refused(source, tmp_path / "file" / "prepared")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_rights_is_refused(source, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot write there" in refused(source, tmp_path / "locked" / "prepared")


def test_a_disk_that_fails_while_storing_leaves_nothing_behind(source, tmp_path, monkeypatch):
    def full(path, array):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dkuxnet.data.storing.write_array", full)
    assert "cannot write: No space left on device" in refused(source, tmp_path / "prepared")


def test_after_ctrl_c_there_is_no_set_and_the_same_again_goes_on(source, tmp_path):
    def interrupt(what: str, done: int, total: int) -> None:
        told.append(what)
        if what == "store":
            raise KeyboardInterrupt

    told: list[str] = []

    with pytest.raises(KeyboardInterrupt):
        prepare_scans(source, tmp_path / "prepared", processes=1, progress=interrupt)
    assert not (tmp_path / "prepared").exists()
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        prepare_scans(source, tmp_path / "prepared", processes=1, progress=interrupt)
    assert told == ["store"]
    prepare_scans(source, tmp_path / "prepared", processes=1)
    assert sorted(tmp_path.iterdir()) == sorted([source, tmp_path / "prepared"])


def test_all_bad_cases_are_told_at_once(source, tmp_path):
    for spoil in (stray_value, nan_voxels):
        spoil(source)
    cut = source / "imagesTr" / "c2_0000.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-3000])
    rewrite(source / "labelsTr" / "c0.nii.gz", array=np.full(SHAPE, 3, np.uint8))
    with pytest.raises(UserErrors) as caught:
        prepare_scans(source, tmp_path / "prepared", processes=1)
    first, second, third = caught.value.lines
    assert first.startswith("case 'c1': 2 voxels are NaN") and str(cut) in second
    assert third.startswith("case 'c0'") and "label value 3" in third
    shutil.copy(source / "imagesTr" / "c0_0000.nii.gz", cut)
    shutil.copy(cut, source / "imagesTr" / "c1_0000.nii.gz")
    told = refused(source, tmp_path / "prepared")
    assert "case 'c0'" in told and "label value 3" in told and "case 'c1'" in told


def plain(folder: Path, label: Volume, image: Volume | None = None) -> Path:
    for name, volume in (("images", image or scan()[0]), ("labels", label)):
        (folder / name).mkdir(parents=True)
        formats.write(volume, folder / name / "c.nii.gz")
    return folder


def test_what_is_no_label_map_is_named(tmp_path):
    many = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16) % 126
    told = refused(plain(tmp_path / "a", Volume(many, OBLIQUE)), tmp_path / "prepared")
    assert told.startswith("126 different label values, 126 of them in case 'c'")
    below = plain(tmp_path / "b", Volume(many % 3 - 1, OBLIQUE))
    assert "(below 0 in case 'c')" in refused(below, tmp_path / "prepared")
    large = plain(tmp_path / "c", Volume(many.astype(np.float64) % 2 * 1e12, OBLIQUE))
    told = refused(large, tmp_path / "prepared")
    assert told.startswith("case 'c'") and "1000000000000" in told


def test_scans_that_hardly_count_in_mm_are_told(tmp_path):
    image, label = scan(affine=np.diag([1e-3, 1e-3, 1e-3, 1]) @ OBLIQUE)
    with pytest.warns(DataWarning, match="far from a patient's size, such as 'c' of 0.0"):
        found = prepare_scans(plain(tmp_path / "a", label, image), tmp_path / "p", processes=1)
    assert any("unit of their headers" in note for note in found.notes)


def test_a_class_that_vanishes_at_the_spacing_is_told_by_case_and_class(source, tmp_path):
    label = scan(1)[1].array
    label[label == 7] = 0
    label[5, 5, 3:5] = 7
    rewrite(source / "labelsTr" / "c1.nii.gz", array=label)
    with pytest.warns(DataWarning) as caught:
        meta = prepare_scans(source, tmp_path / "prepared", spacing_mm=5.0, processes=1)
    (line,) = meta.notes
    assert line.startswith("case 'c1': all 2 voxels of 'wall' are lost at 5 x 5 x 5 mm")
    assert [str(each.message) for each in caught] == [line]


def test_ct_is_what_the_check_of_modalities_takes_for_ct(source, tmp_path):
    fields = json.loads((source / "dataset.json").read_text())
    for name, kind in (
        ("CT_venous", "ct"),
        ("CTA", "ct"),
        ("PET/CT", "z-score"),
        ("CTV", "z-score"),
    ):
        changed = fields | {"channel_names": {"0": name}}
        (source / "dataset.json").write_text(json.dumps(changed))
        target = tmp_path / name.replace("/", "")
        assert prepare_scans(source, target, processes=1).plan.normalisation[0].kind == kind


def test_a_header_in_metres_is_told(source, tmp_path):
    path = source / "imagesTr" / "c2_0000.nii.gz"
    image = nibabel.load(path)
    array = np.asarray(image.dataobj)
    metres = nibabel.Nifti1Image(array, np.diag([0.001, 0.001, 0.001, 1]) @ image.affine)
    metres.header.set_xyzt_units("meter")
    nibabel.save(metres, path)
    with pytest.warns(DataWarning, match=r"c2_0000.*counts in metres: .* taken as 2 x 1.5 x 4 mm"):
        meta = prepare_scans(source, tmp_path / "prepared", processes=1)
    assert meta.plan.spacing_mm == pytest.approx((1.5, 2, 4), rel=1e-5)


def test_a_set_finds_its_scans_from_everywhere_and_keeps_their_headers(
    source, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    prepare_scans("source", "prepared", processes=1)
    monkeypatch.chdir("/")
    info = PreparedSet(tmp_path / "prepared").info("c0")
    assert formats.read(info.images[0]).nifti == formats.place_of(info.nifti) != b""


def test_what_was_left_out_stays_in_the_notes(source, tmp_path):
    (source / "imagesTr" / "z.mnc").write_bytes(b"x")
    with pytest.warns(DataWarning, match=r"z\.mnc"):
        assert "z.mnc" in prepare_scans(source, tmp_path / "prepared", processes=1).notes[0]
