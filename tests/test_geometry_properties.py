"""Whatever the affine, what is found lies where it is: files written by the program, read by other
readers or by hand.
"""

import gzip
import json
import struct
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import nn

import described
from dkuxnet.cli import commands as cli
from dkuxnet.core.config import validate
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Output, Volume
from dkuxnet.data import formats
from dkuxnet.data.affines import check_same_grid, check_straight, shear_of
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.prediction.predict import predict_scans

LPS = np.array([-1.0, -1.0, 1.0])
STRAIGHT = st.just(0.0)
ROUNDED = 7e-3  # mm a voxel of 5.5 mm: near half a turn nibabel's quaternion is rounded by 1e-3
few = settings(max_examples=12, deadline=None)
many = settings(max_examples=60, deadline=None)


class Threshold(nn.Module):
    """Class 1 where the image is more than one standard deviation above its mean."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(20.0))

    def forward(self, image: torch.Tensor) -> Output:
        score = self.slope * (image[:, 0] - 1)
        return Output(torch.stack([torch.zeros_like(score), score], dim=1))


@pytest.fixture(scope="module", autouse=True)
def run():
    """A run whose predictor is Threshold, on a grid of 2 mm."""
    manifest = described.manifest(plan=described.PLAN | {"spacing_mm": [2.0] * 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "dkuxnet.prediction.segment.load_predictor",
            lambda run, weights, device: (
                Threshold(),
                validate({"infer": {"overlap": 0.25, "batch": 8}}),
                manifest,
            ),
        )
        yield


# --- affines of every kind ---


def sheared(directions: np.ndarray, degrees: float) -> np.ndarray:
    """The second axis is turned towards the first, so that their angle is `degrees` off a right
    one.
    """
    result = directions.copy()
    result[:, 1] = (
        np.cos(np.radians(degrees)) * directions[:, 1]
        + np.sin(np.radians(degrees)) * directions[:, 0]
    )
    return result


@st.composite
def affines(draw, shear=STRAIGHT) -> np.ndarray:
    """Turned anyhow (whole quarter turns too), flipped, anisotropic, sheared, anywhere."""
    if draw(st.booleans()):
        turn = np.eye(3)[:, draw(st.permutations(range(3)))]
    else:
        turn = Rotation.from_euler(
            "xyz", [draw(st.floats(-180, 180)) for _ in range(3)], degrees=True
        ).as_matrix()
    spacing = draw(st.floats(0.8, 2.5)) * np.array([draw(st.floats(1, 2.2)) for _ in range(3)])
    affine = np.eye(4)
    affine[:3, :3] = (
        sheared(turn * [draw(st.sampled_from([-1, 1])) for _ in range(3)], draw(shear)) * spacing
    )
    affine[:3, 3] = [draw(st.floats(-400, 400)) for _ in range(3)]
    return affine


def blob(affine: np.ndarray) -> tuple[Volume, np.ndarray]:
    """A scan with a bright ball off its centre, and the ball's place in the world (mm, RAS+)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.round(28 * spacing.min() / spacing + 4).astype(int)
    place = (affine @ [*(shape * (0.62, 0.4, 0.55)), 1])[:3]
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    away = np.linalg.norm(voxels @ affine[:3, :3].T + affine[:3, 3] - place, axis=-1)
    return Volume(
        (1000 * np.exp(-0.5 * (away / (4 * spacing.min())) ** 2)).astype(np.float32), affine
    ), place


def store(scan: Volume, path: Path) -> None:
    """A scan's file as other programs write it."""
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(scan.array, scan.affine), path)
        return
    image = sitk.GetImageFromArray(scan.array.T)
    directions = scan.affine[:3, :3] / scan.spacing_mm * LPS[:, None]
    image.SetSpacing(scan.spacing_mm)
    image.SetDirection(directions.ravel())
    image.SetOrigin(scan.affine[:3, 3] * LPS)
    sitk.WriteImage(image, str(path))


def predict(scan: Volume, ending: str, folder: str) -> Path:
    """The label map that `predict` writes for a scan in a file; shear is told, and nothing else."""
    (Path(folder) / "in").mkdir(exist_ok=True)
    path = Path(folder) / "in" / f"{ending[1:4]}{ending}"
    store(scan, path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        (written,) = predict_scans(Path("run"), [path], Path(folder) / "out")
    assert all(
        "off a right angle" in str(each.message) for each in told if each.category is DataWarning
    )
    return written


# --- other readers, and readers by hand: (array (X, Y, Z), affine to RAS+) ---


def read_with_simpleitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(str(path))
    to_world = [
        [image.TransformContinuousIndexToPhysicalPoint([float(v) for v in row])]
        for row in np.eye(4, 3, -1)
    ]
    origin, *ends = np.array(to_world)[:, 0] * LPS
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = (np.array(ends) - origin).T, origin
    return sitk.GetArrayFromImage(image).T, affine


def read_nifti_by_hand(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = gzip.decompress(path.read_bytes())
    shape, offset = struct.unpack_from("<3h", data, 42), int(struct.unpack_from("<f", data, 108)[0])
    assert (
        struct.unpack_from("<h", data, 70) == (2,) and struct.unpack_from("<h", data, 254)[0] > 0
    )  # uint8, sform_code
    affine = np.vstack([np.reshape(struct.unpack_from("<12f", data, 280), (3, 4)), [0, 0, 0, 1]])
    return np.frombuffer(data, np.uint8, np.prod(shape), offset).reshape(shape, order="F"), affine


def read_nrrd_by_hand(path: Path) -> tuple[np.ndarray, np.ndarray]:
    header, data = path.read_bytes().split(b"\n\n", 1)
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    assert (fields["space"], fields["encoding"]) == ("left-posterior-superior", "gzip")

    def vectors(text: str) -> np.ndarray:
        return (
            np.array([[float(v) for v in each.strip("()").split(",")] for each in text.split()])
            * LPS
        )

    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = (
        vectors(fields["space directions"]).T,
        vectors(fields["space origin"])[0],
    )
    return np.frombuffer(gzip.decompress(data), np.uint8).reshape(
        list(map(int, fields["sizes"].split())), order="F"
    ), affine


def read_mha_by_hand(path: Path) -> tuple[np.ndarray, np.ndarray]:
    header, data = path.read_bytes().split(b"ElementDataFile = LOCAL\n", 1)
    fields = dict(line.split(" = ", 1) for line in header.decode().splitlines())

    def numbers(name: str) -> np.ndarray:
        return np.array([float(v) for v in fields[name].split()])

    affine = np.eye(4)  # three numbers an axis, one axis after the other
    axes = numbers("TransformMatrix").reshape(3, 3) * numbers("ElementSpacing")[:, None] * LPS
    affine[:3, :3], affine[:3, 3] = axes.T, numbers("Offset") * LPS
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(
        numbers("DimSize").astype(int), order="F"
    ), affine


BY_HAND = {".nii.gz": read_nifti_by_hand, ".nrrd": read_nrrd_by_hand, ".mha": read_mha_by_hand}


# --- through files ---


def assert_found_at(place: np.ndarray, array: np.ndarray, affine: np.ndarray) -> None:
    """The middle of what was found lies within half of the smallest voxel of the place in the
    world.
    """
    middle = np.argwhere(array == 1).mean(axis=0)
    away = np.linalg.norm(affine[:3, :3] @ middle + affine[:3, 3] - place)
    assert away < 0.5 * np.linalg.norm(affine[:3, :3], axis=0).min(), away


@few
@given(affines())
def test_what_is_found_lies_where_it_is_for_other_readers_and_in_every_format(affine):
    scan, place = blob(affine)
    with tempfile.TemporaryDirectory() as folder:
        arrays = []
        for ending, by_hand in BY_HAND.items():
            path = predict(scan, ending, folder)
            for read in (by_hand, read_with_simpleitk):
                array, found = read(path)
                np.testing.assert_allclose(found, affine, atol=ROUNDED)
                assert_found_at(place, array, found)
            arrays.append(array)
    for array in arrays[1:]:
        np.testing.assert_array_equal(array, arrays[0])


@few
@given(affines(shear=st.floats(0.5, 4.9)))
def test_a_sheared_scan_s_label_map_has_its_affine_and_lies_on_it(affine):
    scan, place = blob(affine)
    with tempfile.TemporaryDirectory() as folder:
        for ending, by_hand in BY_HAND.items():
            path = predict(scan, ending, folder)
            array, found = by_hand(path)
            np.testing.assert_allclose(found, affine, atol=1e-4)
            assert_found_at(place, array, found)
            if (
                ending == ".nii.gz"
            ):  # ITK cannot hold shear in NIfTI: it must refuse, not show it elsewhere
                with pytest.raises(RuntimeError, match="orthonormal"):
                    sitk.ReadImage(str(path))


@few
@given(affines(), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_the_same_anatomy_stored_in_another_orientation_gives_the_same_label_in_every_voxel(
    affine, axes, flips
):
    scan, _ = blob(affine)
    moved = [axes.index(i) for i in range(3)]
    to_old = np.eye(4)[:, [*axes, 3]]  # new voxel -> old voxel
    array = scan.array.transpose(axes)
    for axis, flip in enumerate(flips):
        if flip:
            to_old[axes[axis], axis], to_old[axes[axis], 3] = -1, scan.array.shape[axes[axis]] - 1
    flipped = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    other = Volume(np.ascontiguousarray(array[flipped]), affine @ to_old)
    with tempfile.TemporaryDirectory() as folder:
        first = formats.read(predict(scan, ".nrrd", folder)).array
        second = formats.read(predict(other, ".mha", folder)).array
    back = second[flipped].transpose(moved)
    assert (back != first).mean() < 1e-3  # a direction at 45 degrees may be taken for either axis
    assert first.sum() > 30


@many
@given(affines())
def test_every_straight_affine_is_written_as_sform_and_qform(affine):
    with tempfile.TemporaryDirectory() as folder:
        formats.write(Volume(np.zeros((3, 4, 5), np.uint8), affine), Path(folder) / "a.nii")
        header = nibabel.load(Path(folder) / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), affine, atol=ROUNDED)


# --- shear, and rounding between two files ---


@many
@given(affines(shear=st.floats(-20, 20)), st.tuples(*[st.integers(2, 300)] * 3))
def test_shear_is_measured_and_told_silent_within_a_bound_refused_beyond(affine, shape):
    degrees, mm = shear_of(affine, shape)
    first, second = (
        affine[:3, 0] / np.linalg.norm(affine[:3, 0]),
        affine[:3, 1] / np.linalg.norm(affine[:3, 1]),
    )
    assert degrees == pytest.approx(abs(90 - np.degrees(np.arccos(first @ second))), abs=1e-6)
    volume = Volume(np.broadcast_to(np.float32(0), shape), affine)
    expected = (
        "refused"
        if degrees > 5
        else "silent"
        if degrees <= 0.1 or mm <= 0.5 * min(volume.spacing_mm)
        else "told"
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        if expected == "refused":
            with pytest.raises(
                UserError, match=rf"^x: its axes are {degrees:.1f} degrees off .* at most 5 degrees"
            ):
                check_straight("x", volume)
        else:
            check_straight("x", volume)
    assert len(told) == (expected == "told")
    if told:
        assert f"{degrees:.2f} degrees off a right angle, {mm:.1f} mm at the far corner" in str(
            told[0].message
        )


def test_the_far_corner_by_hand():
    """Axes at 0 and 88 degrees: the nearest straight ones are at -1 and 89.

    The far corner is 100 and 200 mm along them.
    """
    affine = np.eye(4)
    affine[:3, :3] = sheared(np.eye(3), 2.0) * (1.0, 2.0, 3.0)

    def at(degrees: float) -> np.ndarray:
        return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])

    degrees, mm = shear_of(affine, (101, 101, 5))
    assert degrees == pytest.approx(2)
    assert mm == pytest.approx(np.linalg.norm(100 * (at(0) - at(-1)) + 200 * (at(88) - at(89))))


noise = st.tuples(*[st.floats(-1, 1)] * 3)


@many
@given(affines(), noise, st.tuples(*[noise] * 3), st.floats(0.2, 2.0))
def test_rounding_between_two_files_is_told_and_more_is_refused(affine, origin, directions, size):
    """size 1: a millimetre in the origin and 1e-3 in a direction at most."""
    other = affine.copy()
    other[:3, 3] += size * np.array(origin)
    other[:3, :3] += size * 1e-3 * np.array(directions) * np.linalg.norm(affine[:3, :3], axis=0)
    array = np.zeros((20, 30, 40), np.uint8)
    within = max(np.abs(origin).max(), np.abs(directions).max()) * size <= 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        if within:
            check_same_grid("x", "a", Volume(array, affine), "b", Volume(array, other))
        else:
            try:
                check_same_grid("x", "a", Volume(array, affine), "b", Volume(array, other))
            except UserError as error:
                assert "their affines must agree" in str(error)
            else:  # only what lies beside the bound by less than the slack
                assert max(np.abs(origin).max(), np.abs(directions).max()) * size < 1.001
    assert len(told) <= 1
    if told:
        assert "mm apart by their headers" in str(told[0].message)


def test_in_small_voxels_a_millimetre_is_no_rounding():
    affine = np.diag([0.2, 0.2, 0.2, 1])
    moved = affine.copy()
    moved[0, 3] = 0.5
    array = np.zeros((20, 30, 40), np.uint8)
    with pytest.raises(UserError, match=r"0\.5 mm apart"):
        check_same_grid("x", "a", Volume(array, affine), "b", Volume(array, moved))


@pytest.mark.parametrize(
    ("moved_mm", "turned", "codes", "told"),
    [
        (0.5, 0, (1, 1), False),
        (60, 0, (2, 1), True),
        (0, 20, (1, 1), True),
        (60, 20, (1, 0), False),
        (60, 20, (0, 1), False),
    ],
)
def test_a_nifti_with_two_places_is_told(tmp_path, moved_mm, turned, codes, told):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), None)
    sform, qform = np.diag([1.0, 2.0, 3.0, 1.0]), np.diag([1.0, 2.0, 3.0, 1.0])
    qform[:3, :3] = Rotation.from_euler("x", turned, degrees=True).as_matrix() * (1, 2, 3)
    qform[1, 3] = moved_mm
    image.set_sform(sform, code=codes[0])
    image.set_qform(qform, code=codes[1])
    nibabel.save(image, tmp_path / "a.nii")
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", DataWarning)
        read = formats.read(tmp_path / "a.nii")
    np.testing.assert_allclose(read.affine, sform if codes[0] else qform, atol=1e-5)
    assert ["its sform and its qform differ" in str(each.message) for each in given] == [
        True
    ] * told


def test_a_qform_that_is_no_rotation_is_passed_over(tmp_path):
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.diag([1.0, 2.0, 3.0, 1.0])),
        tmp_path / "a.nii",
    )
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into(
        "<h2x3f", data, 252, 1, 0.9, 0.9, 0.9
    )  # qform_code; the quaternion is longer than 1
    struct.pack_into("<h", data, 254, 2)  # sform_code, between the two
    (tmp_path / "a.nii").write_bytes(data)
    np.testing.assert_allclose(
        formats.read(tmp_path / "a.nii").affine, np.diag([1.0, 2.0, 3.0, 1.0])
    )


# --- told once a case, by each command ---


def source(folder: Path, shear: float = 2.0, moved_mm: float = 0.6) -> Path:
    """Three cases: one as it should be, one sheared, one whose label is moved."""
    straight = np.diag([1.5, 1.5, 2.0, 1])
    tilted = straight.copy()
    tilted[:3, :3] = sheared(np.eye(3), shear) * (1.5, 1.5, 2.0)
    moved = straight.copy()
    moved[1, 3] = moved_mm
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for name, image, label in (
        ("good", straight, straight),
        ("tilted", tilted, tilted),
        ("moved", straight, moved),
    ):
        array = np.random.default_rng(0).normal(size=(24, 22, 20)).astype(np.float32)
        formats.write(Volume(array, image), folder / "images" / f"{name}.nii.gz")
        formats.write(
            Volume((array > 1).astype(np.uint8), label), folder / "labels" / f"{name}.nii.gz"
        )
    return folder


def command(monkeypatch, capsys, *args) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["dkuxnet", *map(str, args)])
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("processes", [1, 2])
def test_prepare_tells_each_case_once_and_writes_it_down(monkeypatch, capsys, tmp_path, processes):
    scans = source(tmp_path / "scans")
    lines = command(
        monkeypatch, capsys, "prepare", scans, tmp_path / "prepared", "--processes", processes
    )
    assert lines == [
        "warning: case 'moved': the image moved.nii.gz and the label map moved.nii.gz lie 0.6 mm "
        "apart by their headers; that "
        "is taken for rounding and their voxels for the same places",
        "warning: case 'tilted': its axes are 2.00 degrees off a right angle, 0.8 mm at the far "
        "corner; used as it is, and its "
        "label map lies on it",
    ]
    notes = json.loads((tmp_path / "prepared" / "dataset.json").read_text())["notes"]
    assert [f"warning: {note}" for note in notes] == lines


def test_predict_tells_each_case_once(monkeypatch, capsys, tmp_path):
    scans = source(tmp_path / "scans")
    lines = command(
        monkeypatch, capsys, "predict", "run", scans / "images", "--output", tmp_path / "out"
    )
    assert len(lines) == 1 and lines[0].startswith(
        "warning: case 'tilted': its axes are 2.00 degrees off"
    )
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"shear": 6.0}, "case 'tilted': its axes are 6.0 degrees off"),
        (
            {"moved_mm": 1.5},
            "case 'moved': the image moved.nii.gz and the label map moved.nii.gz lie 1.5 mm apart",
        ),
    ],
)
def test_what_is_further_off_is_refused_and_nothing_stays(tmp_path, changed, part):
    scans = source(tmp_path / "scans", **changed)
    with pytest.raises(UserError) as error:
        prepare_scans(scans, tmp_path / "prepared", processes=1)
    assert part in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]


def test_a_python_user_gets_a_warning_of_its_own_category(tmp_path):
    with pytest.warns(DataWarning, match="case 'tilted'"):
        prepare_scans(source(tmp_path / "scans", moved_mm=0), tmp_path / "prepared", processes=1)
