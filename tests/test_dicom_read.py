"""DICOM in: voxels, units and places of a series, against the standard's equation and ITK's own
reader; and what is refused.
"""

import base64
import io
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from scipy.spatial.transform import Rotation

from dicom_series import AXIAL, CORONAL, SAGITTAL, Scan, decimals, items, noise, save
from dkuxnet.core.errors import DataWarning, UserError, data_warnings
from dkuxnet.data import formats
from dkuxnet.data.dicom import tree
from dkuxnet.data.inputs import find_cases

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix()
ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "oblique": tuple(OBLIQUE[:, :2].T.ravel()),
}


def refused(path, *parts: str, series_uid: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        formats.read(path, series_uid=series_uid)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 700
    for part in parts:
        assert part in message, message
    return message


def itk_series(folder) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) voxels and the affine to RAS+ by GDCM, which shares no code with pydicom."""
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, LPS_RAS @ affine


# --- what is read ---


def test_peek_promises_what_read_gives(tmp_path, monkeypatch):
    folder = Scan(noise()).write(tmp_path / "scan")
    volume = formats.read(folder)
    header = formats.peek(folder)
    assert header.shape == volume.array.shape and header.dtype == volume.array.dtype
    assert header.nbytes == volume.array.nbytes
    monkeypatch.setattr("dkuxnet.data.dicom.read.MAX_VOXELS", header.voxels - 1)
    refused(folder, f"has {header.shape[::-1]} voxels, more than")


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_series_in_random_order_is_what_itk_reads(tmp_path, name):
    scan = Scan(noise(), ORIENTATIONS[name])
    folder = scan.write(tmp_path / "scan", seed=3, RescaleSlope=1.5, RescaleIntercept=-100)
    volume = formats.read(folder)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, 1.5 * scan.voxels.T.astype(float) - 100)
    assert (
        np.allclose(volume.affine, LPS_RAS @ scan.lps, atol=1e-6)
        and np.linalg.det(volume.affine) > 0
    )
    array, affine = itk_series(folder)
    assert np.allclose(volume.array, array) and np.allclose(volume.affine, affine, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_stored_numbers_of_either_sign(tmp_path, dtype):
    scan = Scan(noise(dtype=dtype))
    assert np.array_equal(formats.read(scan.write(tmp_path / "scan")).array, scan.voxels.T)


def test_every_slice_has_its_own_rescale(tmp_path):
    """PET scanners choose it slice by slice."""
    scan = Scan(noise(), modality="PT")
    slices = scan.slices()
    for index, ds in enumerate(slices):
        ds.RescaleSlope, ds.RescaleIntercept = index + 0.5, -index
    volume = formats.read(save(slices, tmp_path / "scan", seed=1))
    scale = np.arange(len(slices))[:, None, None]
    assert np.array_equal(volume.array, (scan.voxels * (scale + 0.5) - scale).T.astype(np.float32))


RESCALES = {
    "both": {"RescaleSlope": 2, "RescaleIntercept": -1000},
    "slope alone": {"RescaleSlope": 2},
    "intercept alone": {"RescaleIntercept": -1000},
    "empty slope": {"RescaleSlope": "", "RescaleIntercept": -1000},
}


@pytest.mark.parametrize("groups", [None, [], [items()]], ids=["none", "empty", "empty item"])
@pytest.mark.parametrize("name", RESCALES)
def test_slices_have_the_units_that_gdcm_gives_them(tmp_path, name, groups):
    """Whatever functional groups a converter left in them."""
    slices = Scan(noise() // 100, modality="CT").slices(**RESCALES[name])
    for ds in slices if groups is not None else ():
        ds.PerFrameFunctionalGroupsSequence = ds.SharedFunctionalGroupsSequence = groups
    folder = save(slices, tmp_path / "scan")
    assert np.array_equal(formats.read(folder).array, itk_series(folder)[0])


def enhanced_ct(voxels: np.ndarray) -> Dataset:
    ds = Scan(voxels, modality="CT").enhanced()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    return ds


@pytest.mark.parametrize("level", ["top", "shared", "per frame", "slope shared, intercept at top"])
def test_frames_have_their_units_wherever_these_stand(tmp_path, level):
    voxels = noise() // 100
    ds = enhanced_ct(voxels)
    rescale = items(RescaleSlope=2, RescaleIntercept=-1000)
    if level == "top":
        ds.update(rescale)
    elif level == "shared":
        ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [rescale]
    elif level == "per frame":
        for frame in ds.PerFrameFunctionalGroupsSequence:
            frame.PixelValueTransformationSequence = [rescale]
    else:
        ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [
            items(RescaleSlope=2)
        ]
        ds.RescaleIntercept = -1000
    save([ds], tmp_path)
    array = formats.read(tmp_path / "IM0000.dcm").array
    assert np.array_equal(array, 2.0 * voxels.T - 1000)
    if level != "slope shared, intercept at top":
        image = sitk.ReadImage(str(tmp_path / "IM0000.dcm"))
        assert np.array_equal(array, sitk.GetArrayFromImage(image).T)


@pytest.mark.parametrize("name", ["ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("level", ["top", "per frame"])
def test_frames_lie_where_they_do_wherever_that_stands(tmp_path, name, level):
    scan = Scan(noise(), ORIENTATIONS["oblique"])
    ds = scan.enhanced()
    group = {"PixelSpacing": "PixelMeasuresSequence"}.get(name, "PlaneOrientationSequence")
    shared = ds.SharedFunctionalGroupsSequence[0]
    value = shared[group].value[0][name].value
    del shared[group].value[0][name]
    if level == "top":
        setattr(ds, name, value)
    else:
        for frame in ds.PerFrameFunctionalGroupsSequence:
            setattr(frame, group, [items(**{name: value})])
    save([ds], tmp_path)
    affine = formats.read(tmp_path / "IM0000.dcm").affine
    assert np.allclose(affine, LPS_RAS @ scan.lps, atol=1e-6)


def test_single_frames_whose_place_stands_in_functional_groups_are_a_stack(tmp_path):
    scan = Scan(noise())
    frames = []
    for index, plane in enumerate(scan.voxels):
        ds = Scan(plane[None], position=scan.place(index), series_uid="1.5").enhanced()
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = scan.study_uid, scan.frame_uid
        frames.append(ds)
    volume = formats.read(save(frames, tmp_path / "scan", seed=1))
    assert np.array_equal(volume.array, scan.voxels.T)
    assert np.allclose(volume.affine, LPS_RAS @ scan.lps)


@pytest.mark.parametrize("name", ["SamplesPerPixel", "PhotometricInterpretation"])
def test_grey_images_that_do_not_say_so_are_grey(tmp_path, name):
    folder = Scan(noise()).write(tmp_path / "scan", **{name: None})
    assert np.array_equal(formats.read(folder).array, itk_series(folder)[0])


def test_what_numbers_may_not_mean_is_told(tmp_path):
    scan = Scan(noise())
    folder = scan.write(tmp_path / "slope", RescaleSlope=0, RescaleIntercept=-10)
    with pytest.warns(DataWarning, match="slope of 0"):
        array = formats.read(folder).array
    assert np.array_equal(array, itk_series(folder)[0])
    folder = scan.write(tmp_path / "inverse", PhotometricInterpretation="MONOCHROME1")
    with pytest.warns(DataWarning, match="MONOCHROME1"):
        assert np.array_equal(formats.read(folder).array, scan.voxels.T)


def test_slices_without_the_units_of_the_others_and_odd_bits_are_told(tmp_path):
    slices = Scan(noise()).slices(RescaleSlope=2, RescaleIntercept=-1000)
    del slices[2].RescaleSlope, slices[2].RescaleIntercept
    with pytest.warns(DataWarning, match="slices without rescale slope .* beside others"):
        formats.read(save(slices, tmp_path / "some"))
    twelve = noise(dtype=np.uint16) & 0xFFF
    folder = Scan(twelve).write(tmp_path / "bits", BitsStored=12, HighBit=15)
    with pytest.warns(DataWarning, match="HighBit"):
        assert np.array_equal(formats.read(folder).array.T, twelve)


def test_a_modality_table_is_applied(tmp_path):
    scan = Scan(noise(dtype=np.uint8) % 4)
    table = items(LUTDescriptor=[4, 0, 16], LUTData=[7, 100, 30, 2], ModalityLUTType="US")
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    slices = scan.slices()
    for ds in slices:
        ds.ModalityLUTSequence = [table]
    assert np.array_equal(
        formats.read(save(slices, tmp_path / "scan")).array,
        np.array([7, 100, 30, 2])[scan.voxels.T],
    )


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_multi_frame_file_equals_its_slices(tmp_path, name):
    scan = Scan(noise(), ORIENTATIONS[name])
    rescale = [(1 + 0.5 * index, -index) for index in range(6)]
    save([scan.enhanced([3, 1, 5, 0, 2, 4], rescale)], tmp_path)
    volume = formats.read(tmp_path / "IM0000.dcm")
    scale = np.arange(6)[:, None, None]
    assert np.array_equal(
        volume.array, (scan.voxels * (1 + 0.5 * scale) - scale).T.astype(np.float32)
    )
    assert np.allclose(volume.affine, LPS_RAS @ scan.lps, atol=1e-6)
    assert np.array_equal(formats.read(tmp_path).array, volume.array)  # and by its folder


def test_compression_that_can_be_undone_is(tmp_path):
    scan = Scan(noise())
    slices = scan.slices()
    for ds in slices:
        ds.compress(RLELossless)
    assert np.array_equal(formats.read(save(slices, tmp_path / "scan")).array, scan.voxels.T)


def jpeg_2000(plane: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(plane).save(file, "JPEG2000", no_jp2=True, irreversible=False, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (np.uint8, {}),
        (np.uint16, {}),
        (np.uint8, {"tile_size": (64, 64)}),
        (np.uint16, {"precinct_size": (64, 64)}),
    ],
)
def test_jpeg_2000_is_read_as_it_was_packed(tmp_path, dtype, options):
    scan = Scan(noise((4, 150, 130), dtype))
    slices = scan.slices()
    for ds, plane in zip(slices, scan.voxels, strict=True):
        ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
        ds.PixelData = encapsulate([jpeg_2000(plane, **options)])
        ds["PixelData"].VR = "OB"
    assert np.array_equal(formats.read(save(slices, tmp_path / "scan")).array, scan.voxels.T)


# (np.arange(120).reshape(10, 12) * 541 % 65521) of 16 bits by OpenJPEG: opj_compress -t 8,8 -n 2
TILED = (
    r"|4;u>04V?f0000C0000A000000000000008000080000000000009pH0sm3}3;+NC0RRC61ONg5TmT0^fQX2Y|Bw"
    r"I*0000008Ib^|C8VNkr)yWL1f03mMTy1c|KjMR410k#4=E5ppOJGu?^bFqhwY8f51Orct7v}kRlor@hY}U1AddNo"
    r"mqvF82^v}3IG8B0021v0soWF{4huoT6jO|PDoj=23u@C)kYG4@xVV|ct7v}U>Dc!3y}IB18#KmC<FhH015yC0000"
    r"l00IA#&-^eb0&Ch&6Yxzd|9`+gU^qYU0DuqHUjk=!HV?RAtN)My3IGED001Wd0soWF{4f*&w~I-iz&~I(Kkxuh3x"
    r"wYR$9@Sv|Je"
)


def test_tiles_of_jpeg_2000_with_16_bits_are_read_as_openjpeg_packed_them(tmp_path):
    """Pillow, which packs the other tests' frames, mixes such tiles up."""
    scan = Scan(np.stack([np.arange(120).reshape(10, 12) * 541 % 65521] * 3).astype(np.uint16))
    slices = scan.slices()
    for ds in slices:
        ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
        ds.PixelData = encapsulate([base64.b85decode(TILED)])
        ds["PixelData"].VR = "OB"
    assert np.array_equal(formats.read(save(slices, tmp_path / "scan")).array, scan.voxels.T)


def test_jpeg_ls_and_several_frames_and_fragments_are_read_as_they_were_packed(tmp_path):
    pytest.importorskip("jpeg_ls")
    scan = Scan(noise(dtype=np.uint16))
    slices = scan.slices()
    for ds in slices:
        ds.compress(JPEGLSLossless)
    packed = [next(generate_frames(ds.PixelData, number_of_frames=1)) for ds in slices]
    assert np.array_equal(formats.read(save(slices, tmp_path / "scan")).array, scan.voxels.T)
    for number, options in enumerate(({}, {"has_bot": False}, {"fragments_per_frame": 3})):
        whole = scan.enhanced()
        whole.file_meta.TransferSyntaxUID = JPEGLSLossless
        whole.PixelData = encapsulate(packed, **options)
        whole["PixelData"].VR = "OB"
        folder = save([whole], tmp_path / f"whole{number}")
        assert np.array_equal(formats.read(folder).array, scan.voxels.T)
    tabled = scan.enhanced()
    tabled.file_meta.TransferSyntaxUID = JPEGLSLossless
    tabled.PixelData, tabled.ExtendedOffsetTable, tabled.ExtendedOffsetTableLengths = (
        encapsulate_extended(packed)
    )
    tabled["PixelData"].VR = "OB"
    folder = save([tabled], tmp_path / "tabled")
    assert np.array_equal(formats.read(folder).array, scan.voxels.T)


def test_jpeg_is_read_as_the_eye_sees_it(tmp_path):
    smooth = np.indices((4, 40, 50)).sum(axis=0).astype(np.uint8)
    scan = Scan(smooth)
    slices = scan.slices()
    for ds, plane in zip(slices, smooth, strict=True):
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "JPEG", quality=95)
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds.PixelData = encapsulate([file.getvalue()])
        ds["PixelData"].VR = "OB"
    array = formats.read(save(slices, tmp_path / "scan")).array
    assert np.abs(array - smooth.T).max() <= 3


def test_files_without_preamble_are_read_and_other_files_passed_over(tmp_path):
    scan = Scan(noise())
    folder = scan.write(tmp_path / "scan")
    for path in folder.iterdir():
        dcmread(path).save_as(path, enforce_file_format=False)
        ds = dcmread(path)
        del ds.file_meta
        ds.preamble = None
        ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert not tree.has_preamble(path.read_bytes())
    (folder / "starts-like-one").write_bytes(b"\x08\x00\x05\x00" + bytes(range(256)) * 20)
    (folder / "notes.txt").write_text("the scan of Monday")
    assert np.array_equal(formats.read(folder).array, scan.voxels.T)
    assert [case.name for case in find_cases([folder])] == ["scan"]


def test_rounded_decimals_are_no_fault(tmp_path):
    """Positions to a hundredth of a millimetre and directions to six digits, as scanners write
    them.
    """
    scan = Scan(noise((12, 5, 6)), ORIENTATIONS["oblique"], spacing_mm=(0.7, 0.4, 0.4))
    slices = scan.slices()
    for ds in slices:
        ds.ImagePositionPatient = [round(float(value), 2) for value in ds.ImagePositionPatient]
        ds.ImageOrientationPatient = [
            round(float(value), 6) for value in ds.ImageOrientationPatient
        ]
    volume = formats.read(save(slices, tmp_path / "scan"))
    corners = np.array([[0, 0, 0, 1], [5, 4, 11, 1]]).T
    assert np.abs((volume.affine - LPS_RAS @ scan.lps) @ corners).max() < 0.015
    directions = volume.affine[:3, :3] / volume.spacing_mm
    assert np.allclose(
        directions.T @ directions, np.eye(3), atol=1e-12
    )  # as qform, ITK and viewers want it


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_bright_spot_is_where_the_standard_says(tmp_path_factory, seed, enhanced):
    rng = np.random.default_rng(seed)
    voxels = np.zeros(rng.integers(2, 7, 3), np.int16)
    spot = tuple(int(rng.integers(n)) for n in voxels.shape)
    voxels[spot] = 1000
    rotation = Rotation.random(random_state=seed).as_matrix()
    scan = Scan(
        voxels,
        tuple(rotation[:, :2].T.ravel()),
        tuple(rng.uniform(0.3, 6, 3)),
        tuple(rng.uniform(-300, 300, 3)),
    )
    folder = tmp_path_factory.mktemp("spot")
    save(
        [scan.enhanced(rng.permutation(len(voxels)))] if enhanced else scan.slices(),
        folder,
        seed=seed,
    )
    volume = formats.read(folder)
    found = np.unravel_index(volume.array.argmax(), volume.shape)
    world = LPS_RAS @ scan.lps @ (spot[2], spot[1], spot[0], 1)
    assert np.allclose(volume.affine @ (*found, 1), world, atol=1e-3)
    formats.write(volume, folder / "as.nii.gz")
    image = sitk.ReadImage(str(folder / "as.nii.gz"))
    index = np.unravel_index(sitk.GetArrayFromImage(image).argmax(), image.GetSize()[::-1])[::-1]
    place = image.TransformIndexToPhysicalPoint(tuple(map(int, index)))
    assert np.allclose(LPS_RAS[:3, :3] @ place, world[:3], atol=1e-2)


# --- which series ---


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    scans = [
        Scan(noise(seed=seed), series_uid=f"1.2.3.{seed}", study_uid="1.9", description=f"T{seed}")
        for seed in (1, 2)
    ]
    for scan in scans:
        scan.write(tmp_path, seed=int(scan.description[1:]))
    refused(tmp_path, "got 2", "1.2.3.1 (T1, 6 images)", "1.2.3.2 (T2, 6 images)", "--series-uid")
    assert np.array_equal(formats.read(tmp_path, series_uid="1.2.3.2").array, scans[1].voxels.T)
    refused(tmp_path, "1.2.3.7", "1.2.3.1 (T1, 6 images)", series_uid="1.2.3.7")


def test_localizers_and_what_is_no_image_are_left_out(tmp_path):
    scan = Scan(noise(), study_uid="1.9")
    scan.write(tmp_path / "scan")
    Scan(noise(seed=1), SAGITTAL).write(
        tmp_path / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    for kind in (SegmentationStorage, BasicTextSRStorage, EncapsulatedPDFStorage):
        Scan(noise((1, 4, 4))).write(tmp_path / kind.keyword, SOPClassUID=kind)
    Scan(noise(seed=2)).write(
        tmp_path / "screenshot", ImagePositionPatient=None, ImageOrientationPatient=None
    )
    assert np.array_equal(formats.read(tmp_path).array, scan.voxels.T)


def test_a_localizer_and_screenshots_in_the_series_are_left_out_by_name(tmp_path):
    scan = Scan(noise())
    folder = scan.write(tmp_path / "scan")
    alone = formats.read(folder)
    (scout,) = Scan(noise((1, 30, 40)), SAGITTAL, series_uid=scan.series_uid).slices()
    plain, colour = (
        Scan(noise((1, 9, 11), np.uint8), series_uid=scan.series_uid).slices()[0] for _ in range(2)
    )
    plain.SOPClassUID = SecondaryCaptureImageStorage
    del plain.ImagePositionPatient
    colour.SamplesPerPixel, colour.PhotometricInterpretation = 3, "RGB"
    for name, ds in (("scout", scout), ("shot", plain), ("dose", colour)):
        ds.FrameOfReferenceUID = scan.frame_uid
        ds.save_as(folder / name, enforce_file_format=True)
    with data_warnings() as told:
        volume = formats.read(folder)
    (line,) = told
    assert "is read without dose, shot (no slice) and scout (across the slices)" in line
    assert np.array_equal(volume.array, alone.array)
    assert np.array_equal(volume.affine, alone.affine)
    assert formats.peek(folder).shape == volume.shape


def test_a_copy_of_a_slice_counts_once(tmp_path):
    scan = Scan(noise())
    folder = scan.write(tmp_path / "scan")
    for number in (2, 5):
        shutil.copy(folder / f"IM000{number}.dcm", folder / f"copy of {number}.dcm")
    assert np.array_equal(formats.read(folder).array, scan.voxels.T)
    other = dcmread(folder / "copy of 2.dcm")
    other.PixelData = other.PixelData[::-1]
    other.save_as(folder / "copy of 2.dcm")
    refused(folder, "1 image at positions that others hold")


def moved(slices: list, offsets: dict[int, tuple[float, float, float]]) -> list:
    for index, offset in offsets.items():
        slices[index].ImagePositionPatient = decimals(
            np.add(slices[index].ImagePositionPatient, offset)
        )
    return slices


def changed(slices: list, index: int, **attributes) -> list:
    for name, value in attributes.items():
        setattr(slices[index], name, value)
    return slices


SLICES = Scan(noise()).slices


# --- slices off their places ---


def jittered(scan: Scan, shift) -> list:
    """Slices, each moved by what `shift` gives for its index, in mm along x, y and z."""
    slices = scan.slices()
    for index, ds in enumerate(slices):
        ds.ImagePositionPatient = decimals(np.add(ds.ImagePositionPatient, shift(index)))
    return slices


def rounded(scan: Scan) -> list:
    slices = scan.slices()
    for ds in slices:
        ds.ImagePositionPatient = [round(float(value), 1) for value in ds.ImagePositionPatient]
    return slices


THIN = Scan(noise((40, 5, 6)), spacing_mm=(0.625, 0.7, 0.7))
JITTER = np.random.default_rng(0).uniform(-0.02, 0.02, (40, 3))
UNEVEN = {
    "one is 0.05 mm off": lambda: moved(SLICES(), {3: (0, 0, 0.05)}),
    "stored with one decimal": lambda: rounded(THIN),
    "0.02 mm of jitter": lambda: jittered(THIN, lambda index: (0, 0, JITTER[index, 2])),
    "and across": lambda: jittered(THIN, lambda index: JITTER[index]),
    "almost a quarter": lambda: moved(SLICES(), {2: (0, 0, 0.74)}),
    "pixel spacing": lambda: changed(SLICES(), 2, PixelSpacing=[2.0, 1.51]),
    "directions": lambda: changed(SLICES(), 2, ImageOrientationPatient=[1, 0.001, 0, 0, 1, 0]),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_slices_a_little_off_their_places_are_read_as_gdcm_reads_them_and_told(tmp_path, name):
    folder = save(UNEVEN[name](), tmp_path / "scan", seed=2)
    with pytest.warns(DataWarning, match="mm off an even stack, most of all at"):
        volume = formats.read(folder)
    array, affine = itk_series(folder)
    assert np.array_equal(volume.array, array)
    corner = np.array(volume.shape) - 1
    assert np.allclose((volume.affine - affine) @ (*corner, 1), 0, atol=0.05)


@pytest.mark.parametrize("shift", [(0, 0, 0.8), (0.5, 0, 0), (0, 0.6, 0)])
def test_more_than_a_quarter_of_a_voxel_is_refused(tmp_path, shift):
    refused(save(moved(SLICES(), {3: shift}), tmp_path / "scan"), "apart" if shift[2] else "shift")


def test_a_missing_slice_is_found_among_rounded_ones(tmp_path):
    refused(save(np.delete(rounded(THIN), [20]).tolist(), tmp_path), "misses 1 slice of 0.6")


# --- what is refused ---


CASES = {
    "uneven": (
        lambda: moved(SLICES(), {3: (0, 0, 0.9)}),
        ["2.1 to 3.9 mm apart", "uneven between", "110.4"],
    ),
    "missing": (
        lambda: np.delete(SLICES(), [3]).tolist(),
        ["misses 1 slice of 3 mm", "106.5) mm and", "112.5) mm"],
    ),
    "several missing": (
        lambda: np.delete(SLICES(), [1, 3]).tolist(),
        ["misses 2 slices", "100.5) mm and", "106.5) mm"],
    ),
    "duplicates": (
        lambda: moved(SLICES(), {3: (0, 0, -3)}),
        ["1 image at positions that others hold", "106.5) mm ("],
    ),
    "tilted": (
        lambda: moved(SLICES(), {i: (0, 0.8 * i, 0) for i in range(6)}),
        ["sheared", "14.93 degrees"],
    ),
    "shifted": (
        lambda: moved(SLICES(), {2: (1.5, 0, 0)}),
        ["shifted against each other", "1.5 mm"],
    ),
    "orientations": (
        lambda: changed(
            changed(SLICES(), 2, ImageOrientationPatient=list(SAGITTAL)),
            4,
            ImageOrientationPatient=list(CORONAL),
        ),
        ["mixes orientations"],
    ),
    "a localizer in the place of a slice": (
        lambda: changed(SLICES(), 2, ImageOrientationPatient=list(SAGITTAL)),
        ["without", "(across the slices) misses 1 slice of 3 mm"],
    ),
    "directions": (
        lambda: Scan(noise(), (1, 0, 0, 0.5, 0.8, 0)).slices(),
        ["two perpendicular directions"],
    ),
    "spacings": (
        lambda: changed(SLICES(), 2, PixelSpacing=[2.0, 1.6]),
        ["pixel spacings from 1.5 to 2 mm"],
    ),
    "sizes": (
        lambda: changed(SLICES(), 2, Rows=8),
        ["several sizes", "11 x 8 in", "and 11 x 9 in"],
    ),
    "frames": (lambda: changed(SLICES(), 2, FrameOfReferenceUID="1.2"), ["2 frames of reference"]),
    "unplaced": (
        lambda: changed(SLICES(), 2, ImagePositionPatient=None),
        ["1 of 6 images do not say where"],
    ),
    "one": (lambda: SLICES()[:1], ["one image", "give the folder of all its slices"]),
    "colour": (
        lambda: SLICES(SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        ["colour images"],
    ),
    "nowhere": (lambda: SLICES(ImagePositionPatient=None), ["do not say where they lie"]),
    "no number": (lambda: changed(SLICES(), 2, ImagePositionPatient=["nan", 0, 0]), ["no numbers"]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_even_upright_stack_is_refused(tmp_path, name):
    make, parts = CASES[name]
    refused(save(make(), tmp_path / "scan", seed=5), *parts)


def test_the_files_that_make_no_stack_are_named(tmp_path):
    twin = save(moved(SLICES(), {3: (0, 0, -3)}), tmp_path / "twin")
    refused(twin, "106.5) mm (IM0002.dcm, IM0003.dcm)")
    sizes = save(changed(SLICES(), 2, Rows=8), tmp_path / "sizes")
    refused(sizes, "11 x 8 in IM0002.dcm and 11 x 9 in IM0000.dcm")
    nowhere = SLICES()
    del nowhere[4].ImagePositionPatient
    refused(save(nowhere, tmp_path / "nowhere"), "1 of 6 images", "(IM0004.dcm)")


def test_a_multi_frame_file_of_several_volumes_is_refused(tmp_path):
    scan = Scan(noise())
    save([scan.enhanced([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])], tmp_path)
    refused(tmp_path / "IM0000.dcm", "6 images at positions that others hold", "time points")


def test_a_multi_frame_file_that_describes_fewer_frames_than_it_has_is_refused(tmp_path):
    ds = Scan(noise()).enhanced()
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]
    save([ds], tmp_path)
    refused(tmp_path / "IM0000.dcm", "got 6 and 5")


def test_a_series_of_several_time_points_is_refused(tmp_path):
    scan = Scan(noise())
    refused(
        save(scan.slices() + scan.slices(), tmp_path / "scan"),
        "6 images at positions that others hold",
    )


def test_compression_without_a_decoder_names_it_and_the_package(tmp_path):
    slices = SLICES()
    for ds in slices:
        ds.compress(RLELossless)
        ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    folder = save(slices, tmp_path / "scan")
    refused(folder, "JPEG Lossless", "pip install pylibjpeg pylibjpeg-libjpeg")


@pytest.mark.parametrize("keep", [140, 200, 700, 1100, -5])
def test_a_file_that_is_cut_short_is_refused(tmp_path, keep):
    folder = Scan(noise()).write(tmp_path / "scan")
    path = folder / "IM0003.dcm"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "IM0003.dcm", "copy")


def test_no_image_and_nothing_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "none of its 0 files")
    (tmp_path / "text.dcm").write_text("hello")
    refused(tmp_path / "text.dcm", "none of its 1 files")
    refused(tmp_path / "none.dcm", "there is nothing")


def test_dicom_is_no_label_map(tmp_path):
    with pytest.raises(UserError, match="expected a label map"):
        formats.read(Scan(noise()).write(tmp_path / "scan"), kind="label")
