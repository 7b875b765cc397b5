"""Prediction: which files are a case, and label maps that lie on their scans."""

import errno
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from torch import nn
from typer.testing import CliRunner

import described
from dkuxnet.cli import commands as cli
from dkuxnet.core.config import validate
from dkuxnet.core.errors import DataWarning, UserError, UserErrors, data_warnings
from dkuxnet.core.types import Output, Volume
from dkuxnet.data import formats, inputs
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.data.layouts import find_source
from dkuxnet.evaluation.metrics import dice
from dkuxnet.prediction import ahead, predict
from dkuxnet.prediction.predict import ScansFailed, is_of_memory, predict_scans
from dkuxnet.prediction.segment import Segmenter

THRESHOLD = 0.5
SHAPE = (26, 21, 15)
SPACING_MM = (1.5, 2.0, 3.0)
TURN = Rotation.from_euler("xyz", (10, -15, 25), degrees=True).as_matrix()
DIRECTIONS = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "permuted": np.array([[0, 0, -1.0], [1.0, 0, 0], [0, -1.0, 0]]),
    "oblique": TURN @ np.diag([-1.0, -1.0, 1.0]),
}


class Threshold(nn.Module):
    """Class 1 where the last channel is above THRESHOLD; how sure it is grows with the distance."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(20.0))

    def forward(self, image: torch.Tensor) -> Output:
        score = self.slope * (image[:, -1] - THRESHOLD)
        return Output(torch.stack([torch.zeros_like(score), score], dim=1))


@pytest.fixture
def run(monkeypatch) -> Path:
    """A run whose predictor is Threshold, with labels 0 and 255 and a grid of 1.8 mm."""
    return fake_run(monkeypatch)


def fake_run(monkeypatch, channels: int = 1, edge_mm: float = 1.8) -> Path:
    z_scores = [{"kind": "z-score"}] * channels
    manifest = described.manifest(
        labels={"background": 0, "LA": 255},
        channels=["MRI"] * channels,
        plan=described.PLAN | {"spacing_mm": [edge_mm] * 3, "normalisation": z_scores},
        network_shape=described.MANIFEST["network_shape"] | {"in_channels": channels},
    )
    monkeypatch.setattr(
        "dkuxnet.prediction.segment.load_predictor",
        lambda run, weights, device: (Threshold(), validate({}), manifest),
    )
    return Path("run")


def scan(direction: str = "straight", seed: int = 0) -> Volume:
    """Smooth random blobs: no symmetry that could hide a mirrored or shifted map."""
    array = 1000 * gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 3)
    affine = np.eye(4)
    affine[:3, :3] = DIRECTIONS[direction] * SPACING_MM
    affine[:3, 3] = (40, -60, 512.5)
    return Volume(array.astype(np.float32), affine)


def write(path: Path, volume: Volume | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    formats.write(volume or scan(), path)
    return path


def expected(volume: Volume) -> np.ndarray:
    return (volume.array - volume.array.mean()) / volume.array.std() > THRESHOLD


def names(*inputs: Path) -> dict[str, list[str]]:
    return {case.name: [path.name for path in case.images] for case in find_cases(inputs)}


# --- which files are a case ---


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_and_folders_give_cases_by_name(tmp_path):
    touch(
        tmp_path / "b.nrrd",
        tmp_path / "in" / "c.nii.gz",
        tmp_path / "in" / "a.mha",
        tmp_path / "in" / "notes.txt",
    )
    assert names(tmp_path / "b.nrrd", tmp_path / "in") == {
        "b": ["b.nrrd"],
        "a": ["a.mha"],
        "c": ["c.nii.gz"],
    }


def test_a_source_folder_gives_its_cases(scans):
    assert names(scans) == {f"phantom_{i:03d}": [f"phantom_{i:03d}_0000.nii.gz"] for i in range(5)}


@pytest.mark.parametrize("given", ["folder", "first", "second", "both"])
def test_numbered_channels_come_together(tmp_path, given):
    files = [tmp_path / f"case[1]_{i:04d}.nii.gz" for i in range(2)]
    touch(*files)
    inputs = {"folder": [tmp_path], "first": files[:1], "second": files[1:], "both": files}[given]
    assert names(*inputs) == {"case[1]": [path.name for path in files]}


@pytest.mark.parametrize("name", ["c{}_0000.nii.gz", "patient_{:04d}.nii.gz"])
def test_the_folder_of_many_files_is_listed_once(tmp_path, monkeypatch, name):
    files, listed, grouped = [tmp_path / name.format(n) for n in range(1, 30)], [], []
    touch(*files)
    for module, attribute, calls in (
        (Path, "iterdir", listed),
        (inputs, "group_channels", grouped),
    ):
        real = getattr(module, attribute)
        monkeypatch.setattr(
            module,
            attribute,
            lambda first, *a, real=real, calls=calls: calls.append(first) or real(first, *a),
        )
    assert len(names(*files)) == 29
    assert len(listed) == 1 and sum(map(len, grouped)) == 29


def test_a_number_that_is_no_channel_stays_in_the_name(tmp_path):
    touch(
        tmp_path / "patient_0012.nii.gz",
        tmp_path / "patient_0013.nii.gz",
        tmp_path / "scan_2018.NII.GZ",
    )
    both = {"patient_0012": ["patient_0012.nii.gz"], "patient_0013": ["patient_0013.nii.gz"]}
    assert names(tmp_path) == both | {"scan_2018": ["scan_2018.NII.GZ"]}
    assert names(tmp_path / "patient_0012.nii.gz") == {"patient_0012": ["patient_0012.nii.gz"]}


def test_a_file_that_is_called_the_same_for_everybody_is_named_after_its_folder(
    tmp_path, monkeypatch
):
    touch(tmp_path / "P1" / "lgemri.nrrd", tmp_path / "P2" / "mri_norm2.h5")
    assert list(names(tmp_path / "P1" / "lgemri.nrrd", tmp_path / "P2" / "mri_norm2.h5")) == [
        "P1",
        "P2",
    ]
    monkeypatch.chdir(tmp_path / "P1")
    assert list(names(Path("lgemri.nrrd"))) == ["P1"]


def test_an_input_given_twice_counts_once(tmp_path):
    touch(tmp_path / "a.nii.gz", tmp_path / "b_0000.nii.gz")
    assert list(
        names(tmp_path, tmp_path / "a.nii.gz", tmp_path / "a.nii.gz", tmp_path / "b_0000.nii.gz")
    ) == ["a", "b"]


def test_two_scans_of_one_name_are_refused(tmp_path):
    touch(tmp_path / "x" / "a.nii.gz", tmp_path / "y" / "a.nrrd")
    with pytest.raises(
        UserError, match=r"two inputs give the case name 'a'.*x/a\.nii\.gz and .*y/a\.nrrd"
    ):
        find_cases([tmp_path / "x", tmp_path / "y" / "a.nrrd"])


def test_missing_and_unknown_inputs_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_cases([tmp_path / "none.nii.gz"])
    touch(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png"):
        find_cases([tmp_path / "a.png"])


# --- numbers that count channels, or patients: the channels of the model decide ---


def found(channels: int, *inputs: Path, listed: Path | None = None) -> dict[str, list[str]]:
    cases = find_cases(inputs, channels=channels, listed=listed)
    return {case.name: [path.name for path in case.images] for case in cases}


def numbered(folder: Path, *names: str) -> None:
    touch(*(folder / f"{name}.nii.gz" for name in names))


@pytest.mark.filterwarnings("ignore::dkuxnet.core.errors.DataWarning")
@pytest.mark.parametrize("given", ["folder", "files"])
def test_a_model_of_one_channel_takes_numbered_patients_one_by_one(run, tmp_path, given):
    files = [write(tmp_path / "in" / f"case_{i:04d}.nii.gz", scan(seed=i)) for i in range(3)]
    inputs = [tmp_path / "in"] if given == "folder" else files
    written = predict_scans(run, inputs, tmp_path / "out")
    assert [path.name for path in written] == [path.name for path in files]
    for i, path in enumerate(written):
        assert dice(formats.read(path).array == 255, expected(scan(seed=i))) > 0.95


def test_preparation_and_prediction_take_the_same_cases(tmp_path):
    numbered(tmp_path, "case_0000", "case_0001", "case_0002", "b_0000", "scan_2018")
    with data_warnings() as told:
        there = {
            case.name: [path.name for path in case.images] for case in find_source(tmp_path).cases
        }
        assert found(1, tmp_path) == there
    assert set(told) == {
        "files with numbers like those of channels (case_0000, case_0001, ...) are taken for a "
        "case each, since a case has one channel here"
    }
    assert list(there) == ["b", "case_0000", "case_0001", "case_0002", "scan_2018"]
    for name in there:  # each by itself, too
        (file,) = there[name]
        assert found(1, tmp_path / file) == {name: [file]}


def test_a_model_of_two_channels_takes_pairs_and_asks_where_there_are_none(tmp_path):
    numbered(tmp_path, "a_0000", "a_0001", "b_0000", "b_0001")
    pairs = {name: [f"{name}_000{i}.nii.gz" for i in range(2)] for name in "ab"}
    assert found(2, tmp_path) == found(2, tmp_path / "b_0001.nii.gz", tmp_path) == pairs
    numbered(tmp_path, "c_0001", "d_0000", "d_0001", "d_0002")
    with pytest.raises(UserErrors) as caught:
        found(2, tmp_path)
    assert [line.partition(": case ")[2] for line in caught.value.lines] == [
        "'c': expected 2 channel files, but c_0000.nii.gz is missing; correct one or the other",
        "'d': expected 2 channel files, but d_0002.nii.gz is too many; correct one or the other",
    ]


def test_numbered_files_that_hold_all_channels_are_patients(tmp_path):
    both = Volume(np.stack([scan(seed=i).array for i in range(2)]), np.eye(4))
    for i in range(2):
        write(tmp_path / f"case_{i:04d}.nii.gz", both)
    assert list(found(2, tmp_path)) == ["case_0000", "case_0001"]
    (tmp_path / "case_0001.nii.gz").unlink()
    assert list(found(2, tmp_path)) == ["case"]


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_of_a_data_set_the_scans_for_testing_are_taken_and_that_is_told(tmp_path, layout):
    fields = {"labels": {"background": 0, "LA": 1}, "file_ending": ".nii.gz"}
    fields |= {"channel_names": {"0": "MRI"}} if layout == "nnunet" else {}
    if layout == "msd":
        fields = {"labels": {"0": "background", "1": "LA"}, "modality": {"0": "MRI"}}
        fields |= {"training": [{"image": "imagesTr/a_0000.nii.gz"}], "test": []}
    numbered(tmp_path, "imagesTr/a_0000")
    (tmp_path / "dataset.json").write_text(json.dumps(fields))
    assert list(found(1, tmp_path)) == ["a" if layout == "nnunet" else "a_0000"]
    numbered(tmp_path, "imagesTs/t_0000")
    with pytest.warns(
        DataWarning, match=r"cases of imagesTs are taken, no others; give .*imagesTr"
    ):
        assert list(found(1, tmp_path)) == ["t"]
    assert list(found(1, tmp_path / "imagesTr")) == ["a"]


def test_of_the_left_atrium_the_test_list_is_taken_and_any_other_by_its_file(tmp_path):
    for name in "ABC":
        write(tmp_path / name / "mri_norm2.h5")
    for part, names_in_it in (("train", "AB"), ("test", "C"), ("some", "AC"), ("wrong", "AZ")):
        (tmp_path / f"{part}.list").write_text("\n".join(names_in_it))
    with pytest.warns(DataWarning, match=r"cases of test.list are taken, .*--cases"):
        assert list(found(1, tmp_path)) == ["C"]
    assert list(found(1, tmp_path, listed=tmp_path / "train.list")) == ["A", "B"]
    assert list(found(1, tmp_path, listed=tmp_path / "some.list")) == ["A", "C"]
    with pytest.raises(UserError, match=r"'Z/mri_norm2\.h5'"):
        found(1, tmp_path, listed=tmp_path / "wrong.list")
    (tmp_path / "test.list").unlink()
    assert list(found(1, tmp_path)) == ["A", "B"]


def test_a_list_chooses_cases_of_any_input(tmp_path):
    numbered(tmp_path / "in", "a", "b", "c")
    (tmp_path / "cases.txt").write_text("c\na\n")
    assert list(found(1, tmp_path / "in", listed=tmp_path / "cases.txt")) == ["a", "c"]
    (tmp_path / "cases.txt").write_text("c\nz\n")
    with pytest.raises(UserError, match=r"cases\.txt: no input holds the cases z"):
        found(1, tmp_path / "in", listed=tmp_path / "cases.txt")


def test_all_that_is_wrong_with_the_inputs_is_told_at_once(tmp_path):
    with pytest.raises(UserErrors) as caught:
        find_cases([tmp_path / f"{i}.nii.gz" for i in range(30)])
    assert len(caught.value.lines) == 21 and caught.value.lines[-1] == "and 10 more"


@pytest.mark.parametrize(
    ("name", "ending"), [("a.mhd", ".mha"), ("a.hdr", ".nii.gz"), ("a.mgz", ".nii.gz")]
)
def test_a_scan_in_a_format_that_is_read_only_gets_a_map_in_one_file(run, tmp_path, name, ending):
    volume, path = scan("oblique"), tmp_path / name
    if name == "a.mhd":
        write(tmp_path / "b.mha", volume)
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "b.mha")), str(path))
    else:
        form = nibabel.Nifti1Pair if name == "a.hdr" else nibabel.MGHImage
        nibabel.save(form(volume.array, volume.affine), path)
    (written,) = predict_scans(run, [path], tmp_path / "out")
    assert written.name == f"a{ending}"
    np.testing.assert_allclose(formats.read(written).affine, volume.affine, atol=1e-4)
    assert dice(formats.read(written).array == 255, expected(volume)) > 0.95
    if name == "a.hdr":
        assert corners(written)[:4] == corners(path)[:4]


# --- label maps ---


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".h5"])
def test_a_label_map_lies_on_its_scan_in_its_format(run, tmp_path, ending, direction):
    volume = scan(direction)
    path = write(tmp_path / "in" / f"case{ending}", volume)
    (written,) = predict_scans(run, [path], tmp_path / "out")
    assert (
        written == tmp_path / "out" / f"case{'.nii.gz' if ending == '.h5' else ending}"
    )  # no viewer opens h5
    label = formats.read(written, kind="label")
    assert label.array.shape == SHAPE and label.array.dtype == np.uint8
    np.testing.assert_allclose(label.affine, volume.affine, atol=1e-4)  # NIfTI stores it as float32
    np.testing.assert_allclose(label.affine, formats.read(path).affine, atol=1e-5)
    assert set(np.unique(label.array)) == {0, 255}
    assert dice(label.array == 255, expected(volume)) > 0.95
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == {
        "labels": {"background": 0, "LA": 255}
    }


def test_probabilities_and_uncertainty_lie_on_the_scan_too(run, tmp_path):
    volume = scan("oblique")
    path = write(tmp_path / "in" / "case.nii.gz", volume)
    (written,) = predict_scans(
        run, [path], tmp_path / "out", save_probabilities=True, save_uncertainty=True
    )
    prob, doubt, label = (
        formats.read(tmp_path / "out" / folder / "case.nii.gz")
        for folder in ("probabilities", "uncertainty", ".")
    )
    assert prob.array.shape == (2, *SHAPE) and doubt.array.shape == SHAPE
    assert prob.array.dtype == doubt.array.dtype == np.float32
    for other in (prob, doubt):
        np.testing.assert_array_equal(other.affine, label.affine)
    np.testing.assert_allclose(prob.array.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(prob.array[1] > prob.array[0], label.array == 255)
    assert doubt.array.min() >= 0 and doubt.array.max() <= 1
    sure = np.abs(prob.array[1] - 0.5)
    assert doubt.array[sure < 0.1].mean() > 0.3 > 0.05 > doubt.array[sure > 0.499].mean()
    assert written.parent == tmp_path / "out"


def corners(path: Path) -> list:
    """Where nibabel and ITK put the corners of a file, or that ITK refuses it."""
    affine, ends = nibabel.load(path).affine, [(0, 0, 0), (25, 0, 0), (0, 20, 0), (0, 0, 14)]
    found = [(affine @ [*end, 1])[:3].tolist() for end in ends]
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return [*found, "refused"]
    more = (0,) * (image.GetDimension() - 3)
    return found + [image.TransformIndexToPhysicalPoint((*end, *more))[:3] for end in ends]


def with_forms(
    path: Path, sform: int, qform: int, unit: str = "mm", form=nibabel.Nifti1Image, shear: float = 0
) -> Path:
    """A scan whose sform and qform differ, by their codes."""
    volume = scan("oblique")
    image, moved = form(volume.array, None), volume.affine.copy()
    image.header["pixdim"][1:4] = SPACING_MM
    sheared = volume.affine.copy()
    sheared[:3, 1] += shear * sheared[:3, 0]
    moved[:3, 3] += (0, 0.4, 7)
    image.set_sform(sheared, code=sform)
    image.set_qform(moved, code=qform, update_affine=False)
    image.header.set_xyzt_units(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


PLACES = {
    "no codes": (0, 0),
    "sform": (2, 0),
    "qform": (0, 1),
    "both": (1, 2),
    "talairach": (3, 4),
    "micrometres": (1, 1, "micron"),
    "metres without codes": (0, 0, "meter"),
    "NIfTI-2": (0, 0, "mm", nibabel.Nifti2Image),
    "sheared": (1, 1, "mm", nibabel.Nifti1Image, 0.05),
    "sheared, sform alone": (1, 0, "mm", nibabel.Nifti1Image, 0.05),
}


@pytest.mark.filterwarnings("ignore::dkuxnet.core.errors.DataWarning")
@pytest.mark.parametrize("place", PLACES)
def test_every_reader_puts_a_map_where_it_puts_the_nifti_scan(monkeypatch, tmp_path, place):
    edge = {"micron": 1.8e-3, "meter": 1000.0}.get([*PLACES[place], "mm", "mm"][2], 1.8)
    path = with_forms(tmp_path / "in" / "case.nii.gz", *PLACES[place])
    (written,) = predict_scans(
        fake_run(monkeypatch, edge_mm=edge), [path], tmp_path / "out", True, True
    )
    before = nibabel.load(path).header
    for each in (written, *(written.parent).glob("*/case.nii.gz")):
        assert corners(each) == corners(path)
        after = nibabel.load(each).header
        for name in ("sform_code", "qform_code", "xyzt_units", "sizeof_hdr"):
            assert after[name] == before[name]


def test_a_download_of_the_server_lies_there_too(monkeypatch, tmp_path):
    from dkuxnet.serve import reading

    monkeypatch.setattr(reading, "limit_memory", lambda most: None)  # of this very process
    path, voxels = with_forms(tmp_path / "case.nii.gz", 0, 0), tmp_path / "voxels"
    answer = reading.read_file(str(path), str(voxels), 10**6, ["MRI"])
    read = reading.read_back(answer, voxels, 1, 10**6).volume
    write(tmp_path / "out.nii.gz", replace(read, array=np.zeros(SHAPE, np.uint8)))
    assert corners(tmp_path / "out.nii.gz") == corners(path)


def test_a_volume_that_was_moved_does_not_keep_the_header_of_its_scan(tmp_path):
    read = formats.read(with_forms(tmp_path / "case.nii.gz", 1, 1))
    moved = read.affine.copy()
    moved[0, 3] += 5
    write(tmp_path / "out.nii.gz", replace(read, affine=moved))
    np.testing.assert_allclose(nibabel.load(tmp_path / "out.nii.gz").affine, moved, atol=1e-4)


def test_only_what_was_asked_for_is_written(run, tmp_path):
    predict_scans(run, [write(tmp_path / "in" / "case.nii.gz")], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "case.nii.gz",
        "classes.csv",
        "dataset.json",
    ]


def test_channels_reach_the_predictor_in_their_order(monkeypatch, tmp_path):
    first, second = scan(seed=1), scan(seed=2)
    write(tmp_path / "in" / "case_0000.nii.gz", first)
    write(tmp_path / "in" / "case_0001.nii.gz", second)
    (written,) = predict_scans(
        fake_run(monkeypatch, channels=2), [tmp_path / "in"], tmp_path / "out"
    )
    assert written.name == "case.nii.gz"
    assert dice(formats.read(written).array == 255, expected(second)) > 0.95


def test_progress_tells_each_case_and_the_end(run, tmp_path):
    for name in "ab":
        write(tmp_path / "in" / f"{name}.nii.gz")
    told = []
    predict_scans(
        run, [tmp_path / "in"], tmp_path / "out", progress=lambda *args: told.append(args)
    )
    assert [args[1:] for args in told] == [(0, 2), (1, 2), (2, 2)]
    assert told[0][0].startswith("a: 26 x 21 x 15 voxels, 22 x 23 x 25 for the network")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            NotImplementedError(
                "The operator 'aten::x' is not currently implemented for the MPS device."
            ),
            "--device mps: torch has no aten::x there; set PYTORCH_ENABLE_MPS_FALLBACK=1 and the "
            "CPU does it, or use --device cpu",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out of memory: use a smaller infer.batch",
        ),
    ],
)
def test_what_the_device_cannot_do_is_one_line(run, tmp_path, monkeypatch, error, told):
    """For the served page too, which asks the segmenter."""
    monkeypatch.setattr(Threshold, "forward", Mock(side_effect=error))
    path = write(tmp_path / "a.nii.gz")
    with pytest.raises(ScansFailed, match=f"^case 'a': {re.escape(told)}$"):
        predict_scans(run, [path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=f"^{re.escape(told)}$") as alone:
        Segmenter(run)(read_image(find_cases([path])[0], 1))
    assert is_of_memory(alone.value) is told.startswith("out of memory")


class OnGpu(Segmenter):
    """One whose device computes while the CPU has time to read."""

    def __init__(self, *given):
        super().__init__(*given)
        self.device = Mock(type="cuda")

    def __call__(self, *given):
        self.device = torch.device("cpu")
        return super().__call__(*given)


def test_the_next_scan_is_read_meanwhile_by_another_process(run, tmp_path, monkeypatch):
    """Maps, faults, warnings and their order are those of scans that are read one by one."""
    bad = scan()
    bad.array[3, 3, 3] = np.nan
    as_label = Volume((scan().array > 0).astype(np.float32), scan().affine)
    scans = {"a": scan("oblique"), "b": bad, "c": as_label, "d": scan("flipped", 2), "e": scan()}
    for name, volume in scans.items():
        write(tmp_path / "in" / f"{name}.nii.gz", volume)

    def predicted(out: Path) -> tuple[list[str], str, list[str]]:
        with data_warnings() as told, pytest.raises(ScansFailed) as failure:
            predict_scans(run, [tmp_path / "in"], out)
        return [path.name for path in failure.value.written], str(failure.value), told

    plainly, here = predicted(tmp_path / "plainly"), []
    with monkeypatch.context() as patched:
        patched.setattr(predict, "Segmenter", OnGpu)
        patched.setattr(
            ahead, "read_image", lambda case, n: here.append(case.name) or read_image(case, n)
        )
        assert predicted(tmp_path / "ahead") == plainly
    assert here == ["a", "b", "c"]  # the first, what went wrong, and the one after it
    for name in plainly[0]:
        first, second = (tmp_path / each / name for each in ("plainly", "ahead"))
        assert first.read_bytes() == second.read_bytes()
    assert any("c.nii.gz" in text or "'c'" in text for text in plainly[2])


def test_no_scan_is_read_ahead_where_memory_holds_one_alone(run, tmp_path, monkeypatch):
    for name in "ab":
        write(tmp_path / "in" / f"{name}.nii.gz")
    here = []
    monkeypatch.setattr(predict, "Segmenter", OnGpu)
    monkeypatch.setattr(
        ahead, "read_image", lambda case, n: here.append(case.name) or read_image(case, n)
    )
    monkeypatch.setattr(ahead, "free_bytes", lambda: 10**5)
    predict_scans(run, [tmp_path / "in"], tmp_path / "out")
    assert here == ["a", "b"]


def test_ctrl_c_ends_the_process_that_reads(run, tmp_path, monkeypatch):
    for name in "ab":
        write(tmp_path / "in" / f"{name}.nii.gz")
    monkeypatch.setattr(predict, "Segmenter", OnGpu)
    began = []

    class Process(subprocess.Popen):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            began.append(self)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(OnGpu, "__call__", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        predict_scans(run, [tmp_path / "in"], tmp_path / "out")
    assert began and all(process.poll() is not None for process in began)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoiled", [np.nan, np.inf])
def test_a_bad_scan_is_named_and_leaves_no_map_while_all_others_are_done(run, tmp_path, spoiled):
    bad = scan()
    bad.array[3, 3, 3] = spoiled
    for name, volume in (("a", bad), ("b", scan()), ("c", bad), ("d", scan())):
        write(tmp_path / "in" / f"{name}.nii.gz", volume)
    (tmp_path / "in" / "e.nrrd").write_text("no NRRD")
    with pytest.raises(ScansFailed) as failure:
        predict_scans(run, [tmp_path / "in"], tmp_path / "out")
    assert list(failure.value.failed) == ["a", "c", "e"]
    for name in "ac":
        assert failure.value.failed[name].startswith(f"case '{name}': 1 voxels are NaN or infinite")
    assert "e.nrrd: expected" in failure.value.failed["e"]
    assert failure.value.written == [tmp_path / "out" / f"{name}.nii.gz" for name in "bd"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "b.nii.gz",
        "classes.csv",
        "d.nii.gz",
        "dataset.json",
    ]


def test_where_every_scan_is_bad_no_folder_is_made(run, tmp_path):
    (tmp_path / "a.nii.gz").write_text("no NIfTI")
    with pytest.raises(UserError, match=r"a\.nii\.gz: expected"):
        predict_scans(run, [tmp_path / "a.nii.gz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_takes_no_map_ends_the_work(run, tmp_path, monkeypatch):
    """The next scan's map would find no room either."""
    for name in "abc":
        write(tmp_path / "in" / f"{name}.nii.gz")
    kind = type(formats.nifti.NIFTI)
    real = kind.write

    def full(self, volume: Volume, path: Path) -> None:
        if path.name.endswith("-b.nii.gz"):
            raise OSError(errno.ENOSPC, "full")
        real(self, volume, path)

    monkeypatch.setattr(kind, "write", full)
    with pytest.raises(ScansFailed, match=r"b\.nii\.gz: cannot write: No space left") as failure:
        predict_scans(run, [tmp_path / "in"], tmp_path / "out")
    assert list(failure.value.failed) == ["b"]
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["a.nii.gz"]


def test_a_map_that_cannot_be_written_is_no_other_scan_s_trouble(run, tmp_path):
    for name in "ab":
        write(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "out" / "a.nii.gz").mkdir(parents=True)  # where a map cannot go
    (tmp_path / "out" / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "LA": 255}}, indent=1)
    )
    with pytest.raises(ScansFailed, match=r"a\.nii\.gz: cannot write") as failure:
        predict_scans(run, [tmp_path / "in"], tmp_path / "out")
    assert list(failure.value.failed) == ["a"]
    assert failure.value.written == [tmp_path / "out" / "b.nii.gz"]


def test_the_command_tells_each_bad_scan_in_a_line_and_ends_with_1(run, tmp_path):
    for name in "bc":
        write(tmp_path / "in" / f"{name}.nii.gz")
    for name in "ad":
        (tmp_path / "in" / f"{name}.nii.gz").write_text("no NIfTI")
    done = CliRunner().invoke(
        cli.app, ["predict", "run", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    )
    assert done.exit_code == 1
    told = done.stderr.splitlines()
    assert len(told) == 2 and all(line.startswith("error: ") for line in told)
    assert "a.nii.gz" in told[0] and "d.nii.gz" in told[1]
    assert f"2 label maps in {tmp_path / 'out'}" in done.stdout.replace("\n", "")


def test_another_number_of_channels_is_refused(monkeypatch, tmp_path):
    path = write(tmp_path / "case.nii.gz")
    with pytest.raises(UserError, match=r"case 'case': 1 channels .* expected 2"):
        predict_scans(fake_run(monkeypatch, channels=2), [path], tmp_path / "out")


def test_a_scan_is_never_replaced_by_its_label_map(run, tmp_path):
    path = write(tmp_path / "case.nii.gz")
    before = path.read_bytes()
    with pytest.raises(UserError, match="is a scan, and its label map would replace it"):
        predict_scans(run, [path], tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_label_maps_that_no_prediction_wrote_are_never_replaced(run, tmp_path):
    """Labels have the names of their scans: `predict scans/images --output scans/labels` must not
    cost them.
    """
    path, label = (
        write(tmp_path / "images" / "case.nii.gz"),
        write(tmp_path / "labels" / "case.nii.gz"),
    )
    before = label.read_bytes()
    with pytest.raises(
        UserError, match=r"case\.nii\.gz is there already and was not written by `dkuxnet predict`"
    ):
        predict_scans(run, [path], label.parent)
    assert label.read_bytes() == before and list(label.parent.iterdir()) == [label]


def test_a_data_set_s_description_is_never_replaced(run, tmp_path):
    path = write(tmp_path / "data" / "imagesTr" / "case_0000.nii.gz")
    description = tmp_path / "data" / "dataset.json"
    description.write_text('{"labels": {"background": 0}}')
    told = []
    with pytest.raises(UserError, match=r"dataset\.json describes other data"):
        predict_scans(run, [path], tmp_path / "data", progress=lambda *words: told.append(words))
    assert not told  # before the work
    assert description.read_text() == '{"labels": {"background": 0}}'


def test_predicting_again_into_the_same_folder_works(run, tmp_path):
    path = write(tmp_path / "in" / "case.nii.gz")
    assert predict_scans(run, [path], tmp_path / "out") == predict_scans(
        run, [path], tmp_path / "out"
    )


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_an_output_that_cannot_be_a_folder_is_refused_before_the_work(run, tmp_path, place):
    path, told = write(tmp_path / "case.nii.gz"), []
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write there: .*file is a file; choose another --output"
    ):
        predict_scans(run, [path], tmp_path / place, progress=lambda *words: told.append(words))
    assert not told
