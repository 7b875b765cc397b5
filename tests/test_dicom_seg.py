"""DICOM SEG out: read back voxel for voxel by highdicom and by dcmqi, judged by dciodvfy, and with
the right codes.
"""

import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from dicom_series import AXIAL, CORONAL, SAGITTAL, Scan, items, noise, save
from dkuxnet.cli import commands as cli
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.dicom.codes import PRIVATE_SCHEME, codes_of
from dkuxnet.data.dicom.segmentation import write_label, write_probabilities, write_uncertainty
from dkuxnet.data.dicom.series import one_series
from dkuxnet.prediction.predict import ScansFailed, predict_scans
from test_predict import fake_run

DCMQI = Path(sys.executable).with_name("segimage2itkimage")
LABELS = {
    "background": 0,
    "left atrium": 255,
    "liver tumour": 3,
    "patch of sky": 7,
    "right_kidney": 9,
}
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = tuple(
    Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix()[:, :2].T.ravel()
)
ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": OBLIQUE}


def label_map(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random voxels of every class in a part of the grid: empty slices on both sides, and no
    symmetry.
    """
    rng, label = np.random.default_rng(seed), np.zeros(shape, np.uint8)
    inner = tuple(slice(1, -1) for _ in shape)
    label[inner] = rng.choice(
        list(LABELS.values()), label[inner].shape, p=[0.4, 0.2, 0.2, 0.1, 0.1]
    )
    return label


def source(folder: Path, name: str, enhanced: bool) -> Path:
    scan = Scan(noise((7, 9, 11)), ORIENTATIONS[name], (2.5, 0.9, 1.3))
    return save(
        [scan.enhanced([3, 1, 6, 0, 2, 5, 4])] if enhanced else scan.slices(),
        folder / "scan",
        seed=1,
    )


def values(segments: np.ndarray) -> np.ndarray:
    """Segment numbers -> label values."""
    return np.array(list(LABELS.values()))[segments]


def geometry(volume: Volume) -> hd.VolumeGeometry:
    return hd.VolumeGeometry(
        volume.affine, volume.shape, "PATIENT", from_reference_convention="RAS"
    )


def by_dcmqi(path: Path, like: Volume, folder: Path) -> np.ndarray:
    """The label map as dcmqi reads it, carried to the grid of `like` by world position alone."""
    folder.mkdir()
    subprocess.run(
        [
            DCMQI,
            "--inputDICOM",
            path,
            "--outputDirectory",
            folder,
            "--outputType",
            "nrrd",
            "--mergeSegments",
        ],
        check=True,
        capture_output=True,
    )
    (file,) = folder.glob("*.nrrd")
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    label = np.zeros(like.shape, np.int64)
    to_index = np.linalg.inv(like.affine) @ LPS_RAS
    for z, y, x in np.argwhere(array):
        place = to_index @ (*image.TransformIndexToPhysicalPoint((int(x), int(y), int(z))), 1)
        index = np.round(place[:3]).astype(int)
        assert np.abs(place[:3] - index).max() < 0.01
        label[tuple(index)] = array[z, y, x]
    return values(label)


def check_valid(path: Path, kind: str = "Segmentation") -> None:
    """No error by dciodvfy of Debian's dicom3tools; skips where it is not installed, except under
    CI.
    """
    program = shutil.which("dciodvfy")
    if program is None and not os.environ.get("CI"):
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    said = subprocess.run([program, path], capture_output=True, text=True)
    assert "Error" not in said.stderr + said.stdout, said.stderr
    assert kind in said.stderr + said.stdout  # it knew what to hold it against


@pytest.mark.parametrize("enhanced", [False, True], ids=["slices", "multi-frame"])
@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_label_map_comes_back_voxel_for_voxel(tmp_path, name, enhanced, kind):
    folder = source(tmp_path, name, enhanced)
    scan = formats.read(folder)
    label = Volume(label_map(scan.shape), scan.affine)
    path = tmp_path / "seg.dcm"
    write_label(label, LABELS, one_series(folder), path, kind)
    read = (
        hd.seg.segread(path)
        .get_volume(combine_segments=True)
        .match_geometry(geometry(scan), tol=1e-3)
    )
    assert np.array_equal(values(read.array), label.array)
    assert np.array_equal(by_dcmqi(path, scan, tmp_path / "dcmqi"), label.array)


@pytest.mark.parametrize("seed", range(4))
def test_a_spot_is_found_where_the_standard_puts_it(tmp_path, seed):
    """Random orientation, spacing and place: from the scanner's slices to the segment that dcmqi
    reads.
    """
    rng = np.random.default_rng(seed)
    voxels = np.zeros(rng.integers(3, 8, 3), np.int16)
    spot = tuple(int(rng.integers(n)) for n in voxels.shape)
    voxels[spot] = 1000
    rotation = Rotation.random(random_state=seed).as_matrix()
    scan = Scan(
        voxels,
        tuple(rotation[:, :2].T.ravel()),
        tuple(rng.uniform(0.5, 5, 3)),
        tuple(rng.uniform(-200, 200, 3)),
    )
    folder = scan.write(tmp_path / "scan", seed=seed)
    volume = formats.read(folder)
    write_label(
        Volume((volume.array > 500).astype(np.uint8), volume.affine),
        {"nothing": 0, "LA": 1},
        one_series(folder),
        tmp_path / "seg.dcm",
    )
    (tmp_path / "out").mkdir()
    subprocess.run(
        [DCMQI, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path / "out"],
        check=True,
        capture_output=True,
    )
    (file,) = (tmp_path / "out").glob("*.nrrd")
    image = sitk.ReadImage(str(file))
    (found,) = np.argwhere(sitk.GetArrayFromImage(image))
    place = image.TransformIndexToPhysicalPoint(tuple(int(i) for i in found[::-1]))
    assert np.allclose(place, (scan.lps @ (spot[2], spot[1], spot[0], 1))[:3], atol=0.01)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, Volume]:
    """A folder with a scan and the SEGs of each kind of it."""
    folder = tmp_path_factory.mktemp("seg")
    scan = formats.read(source(folder, "oblique", enhanced=False))
    series = one_series(folder / "scan")
    random = np.random.default_rng(0).random((len(LABELS), *scan.shape), np.float32)
    write_label(Volume(label_map(scan.shape), scan.affine), LABELS, series, folder / "label.dcm")
    write_label(
        Volume(np.zeros(scan.shape, np.uint8), scan.affine), LABELS, series, folder / "empty.dcm"
    )
    write_probabilities(Volume(random, scan.affine), LABELS, series, folder / "probabilities.dcm")
    write_uncertainty(Volume(random[0], scan.affine), series, folder / "uncertainty.dcm")
    return folder, Volume(random, scan.affine)


@pytest.mark.parametrize("name", ["label", "empty", "probabilities", "uncertainty"])
def test_an_independent_validator_finds_no_error(written, name):
    check_valid(written[0] / f"{name}.dcm")


def test_patient_study_and_place_carry_over_and_every_slice_is_cited(written):
    folder, _ = written
    seg, slices = (
        dcmread(folder / "label.dcm"),
        [dcmread(path) for path in (folder / "scan").iterdir()],
    )
    for name in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyID",
        "FrameOfReferenceUID",
    ):
        assert seg[name] == slices[0][name], name
    assert "ContentCreatorName" in seg  # of type 2: dcmqi warns without it
    assert seg.SeriesInstanceUID != slices[0].SeriesInstanceUID and seg.Modality == "SEG"
    (cited,) = seg.ReferencedSeriesSequence
    assert cited.SeriesInstanceUID == slices[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in cited.ReferencedInstanceSequence} == {
        s.SOPInstanceUID for s in slices
    }
    places = {ds.SOPInstanceUID: ds.ImagePositionPatient for ds in slices}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(places[image.ReferencedSOPInstanceUID], place, atol=1e-3)


def test_segments_say_what_they_are_and_who_made_them(written):
    segments = atrium, tumour, sky, kidney = dcmread(written[0] / "label.dcm").SegmentSequence
    assert [s.SegmentLabel for s in segments] == list(LABELS)[1:]
    assert {s.SegmentAlgorithmType for s in segments} == {"AUTOMATIC"}
    assert atrium.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "dkuxnet"
    assert atrium.SegmentedPropertyTypeCodeSequence[0].CodeValue == "82471001"
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert tumour.AnatomicRegionSequence[0].CodeMeaning == "Liver"
    assert sky.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "patch of sky"
    assert sky.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeMeaning, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == (
        "Kidney",
        "Right",
    )


def test_probabilities_and_uncertainty_come_back_in_steps(written):
    folder, random = written
    read = (
        hd.seg.segread(folder / "probabilities.dcm")
        .get_volume()
        .match_geometry(geometry(random), tol=1e-3)
    )
    assert np.abs(np.moveaxis(read.array, -1, 0) - random.array[1:]).max() <= 0.51 / 255
    read = (
        hd.seg.segread(folder / "uncertainty.dcm")
        .get_volume()
        .match_geometry(geometry(random), tol=1e-3)
    )
    assert np.abs(read.array[..., 0] - random.array[0]).max() <= 0.51 / 255


def test_an_empty_map_is_a_seg_with_its_segments(written):
    seg = hd.seg.segread(written[0] / "empty.dcm")
    assert seg.number_of_segments == len(LABELS) - 1 and not seg.pixel_array.any()


@pytest.mark.parametrize(
    "name, code, side, region",
    [
        ("LA", "82471001", None, None),
        ("Left Atrium", "82471001", None, None),
        ("kidneys", "64033007", None, None),
        ("left_kidney", "64033007", "Left", None),
        ("kidney right", "64033007", "Right", None),
        ("Spleen", "78961009", None, None),
        ("tumor", "108369006", None, None),
        ("lung lesions", "52988006", None, "Lung"),
        ("masses of snow", None, None, None),
        ("class_1", None, None, None),
    ],
)
def test_names_become_codes(name, code, side, region):
    found = codes_of(name)
    assert (found.side and found.side.meaning, found.region and found.region.meaning) == (
        side,
        region,
    )
    if code is None:
        assert found.property.scheme_designator == PRIVATE_SCHEME and found.property.meaning == name
        assert found == codes_of(name) != codes_of(name + "x")
    else:
        assert (found.property.value, found.property.scheme_designator) == (code, "SCT")


def test_without_highdicom_one_line_says_what_to_install(monkeypatch):
    name = "dkuxnet.data.dicom.segmentation"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("dkuxnet.core.extras.find_spec", lambda module: None)
    with pytest.raises(
        UserError, match=r"^this needs highdicom: pip install '\.\[dicom\]' in a clone"
    ):
        importlib.import_module(name)


# --- headers as scanners, converters and anonymisers leave them ---


def each(**attributes):
    """What sets attributes of every slice; None removes one."""

    def change(slices: list) -> None:
        for ds in slices:
            for name, value in attributes.items():
                if value is None:
                    delattr(ds, name)
                else:
                    setattr(ds, name, value)

    return change


def seventh_decimal(slices: list) -> None:
    for number, ds in enumerate(slices):
        cosine = -0.059771 if number % 2 else -0.0597709
        ds.ImageOrientationPatient = [0.9982121, cosine, 0, 0.0597709, 0.9982121, 0]


def jitter(slices: list) -> None:
    for number, ds in enumerate(slices):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, z + 0.02 * (-1) ** number]


ODD = {
    "directions to the seventh decimal": seventh_decimal,
    "positions with jitter": jitter,
    "no thickness": each(SliceThickness=None),
    "thickness that is no number": each(SliceThickness=""),
    "a thickness of 0 and a negative spacing": each(SliceThickness=0, SpacingBetweenSlices=-2.5),
    "Japanese": each(
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "Latin": each(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen"),
    "Latin in a sequence": each(
        SpecificCharacterSet="ISO_IR 100",
        ProcedureCodeSequence=[
            items(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning="Schädel")
        ],
    ),
    "numbers": each(
        PatientWeight="70.5",
        LossyImageCompression="01",
        LossyImageCompressionRatio=10,
        LossyImageCompressionMethod="ISO_10918_1",
    ),
    "an unknown character set": each(SpecificCharacterSet="utf8"),
    "words for dates": each(
        StudyDate="anonymous", StudyTime="noon", PatientBirthDate="unknown", PatientSex="X"
    ),
    "days that no month has": each(StudyDate="20260231"),
    "separators": each(StudyDate="2026-01-01", StudyTime="12:00:00", PatientSex="female"),
    "values of another kind": each(
        PatientAge="45", StudyDescription="a" * 70, ReferringPhysicianName=["a^b", "c^d"]
    ),
    "a backslash in a text": each(StudyDescription="CT\\abdomen", StudyID="1\\2"),
    "no SOP instance UID but the file's": each(SOPInstanceUID=None),
    "empty frame of reference text": each(PositionReferenceIndicator=None),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, which writes them
def test_odd_headers_become_valid_seg(tmp_path, name):
    slices = Scan(noise((7, 9, 11)), AXIAL, (2.5, 0.9, 1.3)).slices()
    names = {ds.file_meta.MediaStorageSOPInstanceUID for ds in slices}
    ODD[name](slices)
    folder = save(slices, tmp_path / "scan", seed=1)
    scan = formats.read(folder)
    label = Volume(label_map(scan.shape), scan.affine)
    path = tmp_path / "seg.dcm"
    write_label(label, LABELS, one_series(folder), path)
    assert np.array_equal(by_dcmqi(path, scan, tmp_path / "dcmqi"), label.array)
    seg = dcmread(path)
    (cited,) = seg.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in cited.ReferencedInstanceSequence} == names
    if name == "Japanese":
        assert (
            seg.PatientName.ideographic == "山田^太郎" and seg.SpecificCharacterSet == "ISO_IR 192"
        )
    if name == "Latin":
        assert seg.PatientName == "Müller^Jürgen"
    if name == "Latin in a sequence":
        assert seg.ProcedureCodeSequence[0].CodeMeaning == "Schädel"
    if name == "numbers":
        assert seg.PatientWeight == 70.5
        assert seg.LossyImageCompression == "01" and seg.LossyImageCompressionRatio == 10
    if name == "separators":
        assert (seg.StudyDate, seg.StudyTime, seg.PatientSex) == ("20260101", "120000", "F")
    if name == "words for dates":
        assert {seg.StudyDate, seg.StudyTime, seg.PatientBirthDate, seg.PatientSex} <= {None, ""}
    check_valid(path)


ODD_FRAMES = ("one file a frame", "two files", "orientation by frame", "spacing at the top")


@pytest.mark.parametrize("name", ODD_FRAMES)
def test_frames_of_any_number_of_files_become_seg(tmp_path, name):
    scan = Scan(noise((6, 9, 11)), OBLIQUE, (2.5, 0.9, 1.3))
    if name in ("one file a frame", "two files"):
        size = 1 if name == "one file a frame" else 3
        files = []
        for start in range(0, 6, size):
            part = replace(
                scan, voxels=scan.voxels[start : start + size], position=scan.place(start)
            )
            files.append(part.enhanced())
    else:
        (ds,) = files = [scan.enhanced([3, 1, 5, 0, 2, 4])]
        (shared,) = ds.SharedFunctionalGroupsSequence
        if name == "orientation by frame":
            for frame in ds.PerFrameFunctionalGroupsSequence:
                frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
            del shared.PlaneOrientationSequence
        else:
            ds.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
            del shared.PixelMeasuresSequence
    folder = save(files, tmp_path / "scan", seed=1)
    volume = formats.read(folder)
    label = Volume(label_map(volume.shape), volume.affine)
    path = tmp_path / "seg.dcm"
    write_label(label, LABELS, one_series(folder), path)
    assert np.array_equal(by_dcmqi(path, volume, tmp_path / "dcmqi"), label.array)
    check_valid(path)
    sources = {ds.SOPInstanceUID: ds for ds in files}
    seg = dcmread(path)
    assert {item.ReferencedSOPInstanceUID for item in seg.SourceImageSequence} == set(sources)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        source = sources[image.ReferencedSOPInstanceUID]
        number = image.get("ReferencedFrameNumber", 1)
        assert image.ReferencedSOPClassUID == source.SOPClassUID
        assert ("ReferencedFrameNumber" in image) == (name != "one file a frame")
        group = source.PerFrameFunctionalGroupsSequence[number - 1]
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        there = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(there, place, atol=1e-3)


def test_class_names_of_any_letters_stay_whole(tmp_path):
    folder = source(tmp_path, "axial", enhanced=False)
    scan = formats.read(folder)
    names = ["腫瘍", "Größe", "a\\b", "x" * 70, " "]
    labels = {"background": 0} | {name: number for number, name in enumerate(names, 1)}
    label = Volume(np.zeros(scan.shape, np.uint8), scan.affine)
    path = tmp_path / "seg.dcm"
    write_label(label, labels, one_series(folder), path)
    seg, shown = dcmread(path), ["腫瘍", "Größe", "a b", "x" * 64, "unnamed"]
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == shown
    codes = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in seg.SegmentSequence]
    assert [code.CodeMeaning for code in codes] == shown
    assert len({code.CodeValue for code in codes}) == len(names)
    check_valid(path)


# --- by the command ---


def blobs() -> np.ndarray:
    return (
        (1000 * gaussian_filter(np.random.default_rng(0).normal(size=(14, 20, 22)), 2))
        .round()
        .astype(np.int16)
    )


def test_predict_writes_seg_that_equals_its_nifti(tmp_path, monkeypatch):
    scan = Scan(blobs(), OBLIQUE)
    scan.write(tmp_path / "anna", seed=1)
    fake_run(monkeypatch)
    command = [
        "predict",
        "run",
        str(tmp_path / "anna"),
        "--output",
        str(tmp_path / "seg"),
        "--format",
        "dicom-seg",
        "--save-uncertainty",
        "--series-uid",
        scan.series_uid,
        "--segmentation-type",
        "labelmap",
    ]
    for _ in range(2):  # a SEG of an earlier run is replaced
        result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    (nifti,) = predict_scans(Path("run"), [tmp_path / "anna"], tmp_path / "nifti")
    label = formats.read(nifti, "label")
    seg = hd.seg.segread(tmp_path / "seg" / "anna.dcm")
    assert seg.SegmentationType == "LABELMAP" and label.array.any()
    read = seg.get_volume(combine_segments=True).match_geometry(geometry(label), tol=1e-3)
    assert np.array_equal(read.array * 255, label.array)
    assert dcmread(tmp_path / "seg" / "uncertainty" / "anna.dcm").SegmentationType == "FRACTIONAL"


def refused(job, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        job()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_what_cannot_become_seg_is_one_line(tmp_path, monkeypatch):
    run, scan = fake_run(monkeypatch), Scan(blobs())
    folder = scan.write(tmp_path / "anna")
    formats.write(formats.read(folder), tmp_path / "ben.nii.gz")

    def predict(path: Path, output: str = "out", **options) -> None:
        predict_scans(run, [path], tmp_path / output, **{"form": "dicom-seg"} | options)

    refused(lambda: predict(tmp_path / "ben.nii.gz"), "ben.nii.gz is not DICOM")
    refused(lambda: predict(folder, form="dicomseg"), "did you mean 'dicom-seg'")
    refused(lambda: predict(folder, segmentation_type="fractional"), "binary", "labelmap")
    (folder / "IM0000.dcm").rename(folder / "anna.dcm")
    before = (folder / "anna.dcm").read_bytes()
    refused(lambda: predict(folder, output="anna"), "anna.dcm is there already and is no DICOM SEG")
    assert (folder / "anna.dcm").read_bytes() == before
    scan.write(tmp_path / "nowhere", FrameOfReferenceUID=None)
    refused(lambda: predict(tmp_path / "nowhere"), "no frame of reference")
    nameless = scan.slices(SOPInstanceUID=None)
    for number, ds in enumerate(nameless):
        del ds.file_meta
        ds.preamble = None
        (tmp_path / "nameless").mkdir(exist_ok=True)
        ds.save_as(
            tmp_path / "nameless" / str(number),
            implicit_vr=True,
            little_endian=True,
            enforce_file_format=False,
        )
    refused(lambda: predict(tmp_path / "nameless"), "no SOP instance UID")
    assert not (tmp_path / "out").exists()


def test_what_the_library_refuses_is_no_other_scan_s_trouble(tmp_path, monkeypatch):
    """Also where it finds it only when it writes, after the work."""
    for name in ("anna", "ben"):
        Scan(blobs()).write(tmp_path / "in" / name)
    save_as = hd.seg.Segmentation.save_as

    def refuse(segmentation, path, *rest, **more):
        if "anna" in str(path):
            raise UnicodeEncodeError("ascii", "ü", 0, 1, "odd")
        return save_as(segmentation, path, *rest, **more)

    monkeypatch.setattr(hd.seg.Segmentation, "save_as", refuse)
    with pytest.raises(ScansFailed) as caught:
        predict_scans(fake_run(monkeypatch), [tmp_path / "in"], tmp_path / "out", form="dicom-seg")
    assert list(caught.value.failed) == ["anna"] and "DICOM SEG" in caught.value.failed["anna"]
    assert [path.name for path in caught.value.written] == ["ben.dcm"]
    names = os.listdir(tmp_path / "out")
    assert "ben.dcm" in names and not any("anna" in name for name in names)


def test_a_damaged_scan_is_no_other_scan_s_trouble(tmp_path, monkeypatch):
    """Its voxels can be read, but no segmentation can be written of what its headers say."""
    run, scan = fake_run(monkeypatch), Scan(blobs())
    scan.write(tmp_path / "in" / "anna")
    Scan(blobs()).write(tmp_path / "in" / "ben", FrameOfReferenceUID=["1.2.3", "1.2.4"])
    assert (
        formats.read(tmp_path / "in" / "ben").shape == formats.read(tmp_path / "in" / "anna").shape
    )
    with pytest.raises(ScansFailed) as caught:
        predict_scans(run, [tmp_path / "in"], tmp_path / "out", form="dicom-seg")
    assert list(caught.value.failed) == ["ben"] and "\n" not in caught.value.failed["ben"]
    assert [path.name for path in caught.value.written] == ["anna.dcm"]


def test_a_source_without_patient_is_enough(tmp_path):
    """As anonymisers leave it."""
    gone = dict.fromkeys(
        (
            "PatientName",
            "PatientID",
            "PatientBirthDate",
            "PatientSex",
            "StudyDate",
            "StudyTime",
            "StudyID",
            "AccessionNumber",
            "ReferringPhysicianName",
            "SeriesNumber",
            "Manufacturer",
        )
    )
    folder = Scan(noise()).write(tmp_path / "scan", **gone)
    scan = formats.read(folder)
    write_label(
        Volume(label_map(scan.shape), scan.affine), LABELS, one_series(folder), tmp_path / "seg.dcm"
    )
    check_valid(tmp_path / "seg.dcm")
