"""Every format: what is written comes back, the formats agree on where a voxel is, a bad file gets
one clear line.
"""

import gzip
import os
import re

import h5py
import hypothesis.extra.numpy as hnp
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.checks import Header
from dkuxnet.data.formats import FORMATS

DTYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")
SHAPE = (5, 6, 7)


def rotation(quaternion) -> np.ndarray:
    w, x, y, z = np.asarray(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def affine_of(
    quaternion=(0.9, 0.2, -0.3, 0.25), spacing_mm=(0.7, 1.1, 2.5), origin_mm=(-123.4, 45.67, 890.1)
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(quaternion) * spacing_mm
    affine[:3, 3] = origin_mm
    return affine


def oblique(dtype="float32", shape=SHAPE) -> Volume:
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    return Volume(array + array.dtype.type(0.25) if array.dtype.kind == "f" else array, affine_of())


def kind_of(ending: str, dtype: str) -> str:
    return "label" if ending == ".h5" and np.dtype(dtype).kind in "iu" else "image"


def assert_same(volume: Volume, expected: Volume) -> None:
    assert volume.array.dtype == expected.array.dtype
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_allclose(volume.affine, expected.affine, rtol=1e-5, atol=1e-5)
    assert volume.affine.dtype == np.float64


def refused(path, *parts: str, kind="image") -> None:
    """`read` gives one line that names the file and holds the parts."""
    with pytest.raises(UserError) as caught:
        formats.read(path, kind)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ending", FORMATS)
def test_round_trip(tmp_path, ending, dtype):
    volume = oblique(dtype)
    formats.write(volume, tmp_path / f"a{ending}")
    assert_same(formats.read(tmp_path / f"a{ending}", kind_of(ending, dtype)), volume)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]


@pytest.mark.parametrize("ending", FORMATS)
def test_round_trip_of_channels(tmp_path, ending):
    volume = oblique(shape=(3, *SHAPE))
    formats.write(volume, tmp_path / f"a{ending}")
    assert_same(formats.read(tmp_path / f"a{ending}"), volume)


@pytest.mark.parametrize("ending", FORMATS)
def test_one_channel_is_squeezed(tmp_path, ending):
    volume = oblique(shape=(1, *SHAPE))
    formats.write(volume, tmp_path / f"a{ending}")
    assert_same(formats.read(tmp_path / f"a{ending}"), Volume(volume.array[0], volume.affine))


@pytest.mark.parametrize(
    ("given_type", "kept_type"), [("bool", "uint8"), ("float16", "float32"), (">i2", "<i2")]
)
@pytest.mark.parametrize("ending", FORMATS)
def test_types_that_not_all_formats_have_are_widened(tmp_path, ending, given_type, kept_type):
    array = (np.arange(210).reshape(SHAPE) % 2).astype(given_type)
    formats.write(Volume(array, affine_of()), tmp_path / f"a{ending}")
    back = formats.read(tmp_path / f"a{ending}", kind_of(ending, kept_type))
    assert_same(back, Volume(array.astype(kept_type), affine_of()))


quaternions = hnp.arrays(float, 4, elements=st.floats(-1, 1)).filter(
    lambda q: np.linalg.norm(q) > 0.1
)
spacings = st.tuples(*[st.floats(0.1, 10)] * 3)
origins = st.tuples(*[st.floats(-1000, 1000)] * 3)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(quaternion=quaternions, spacing_mm=spacings, origin_mm=origins, mirrored=st.booleans())
@pytest.mark.parametrize("ending", FORMATS)
def test_affines_come_back(tmp_path_factory, ending, quaternion, spacing_mm, origin_mm, mirrored):
    affine = affine_of(quaternion, spacing_mm, origin_mm) @ np.diag(
        [-1.0 if mirrored else 1.0, 1, 1, 1]
    )
    path = tmp_path_factory.mktemp("affine") / f"a{ending}"
    formats.write(Volume(np.zeros((2, 3, 4), np.float32), affine), path)
    back = formats.read(path)
    # NIfTI stores float32: relative to the largest number in play
    np.testing.assert_allclose(back.affine, affine, rtol=1e-5, atol=1e-6 * np.abs(affine).max())
    np.testing.assert_allclose(back.spacing_mm, spacing_mm, rtol=1e-5)


# Headers


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("shape", [SHAPE, (3, *SHAPE)])
@pytest.mark.parametrize("ending", FORMATS)
def test_peek_promises_what_read_gives(tmp_path, ending, shape, dtype):
    volume, kind = oblique(dtype, shape), kind_of(ending, dtype)
    if kind == "label" and len(shape) == 4:
        pytest.skip("a label map has no channels")
    formats.write(volume, tmp_path / f"a{ending}")
    header = formats.peek(tmp_path / f"a{ending}", kind)
    assert sorted(header.shape) == sorted(shape) and header.dtype == volume.array.dtype
    assert header.voxels == volume.array.size and header.nbytes == volume.array.nbytes
    assert_same(formats.read(tmp_path / f"a{ending}", kind), volume)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_peek_reads_no_voxel(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).random((16, 17, 18)).astype(np.float32)
    formats.write(Volume(noise, affine_of()), path)
    os.truncate(path, path.stat().st_size // 2)
    assert formats.peek(path).shape == noise.shape
    refused(path, "expected")


@pytest.mark.parametrize("ending", FORMATS)
def test_read_goes_by_what_peek_promises(tmp_path, monkeypatch, ending):
    """Else two readers of a header could disagree, and the sizes that were checked be others."""
    formats.write(oblique(), tmp_path / f"a{ending}")
    monkeypatch.setattr(Header, "nbytes", 2**60)
    refused(tmp_path / f"a{ending}", f"expected {2**60} bytes of voxels")


# The formats agree with each other and with the libraries


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("channels", [0, 3])
def test_simpleitk_sees_the_same_voxels_in_the_same_places(tmp_path, ending, channels):
    volume = oblique(shape=(channels, *SHAPE) if channels else SHAPE)
    formats.write(volume, tmp_path / f"a{ending}")
    if channels and ending.startswith(".nii"):
        pytest.skip("SimpleITK sees a fourth axis there, not channels")
    image = sitk.ReadImage(str(tmp_path / f"a{ending}"))
    for index in [(0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 6), (4, 5, 6)]:
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(
            (volume.affine @ [*index, 1])[:3], [-x, -y, z], rtol=1e-5, atol=1e-3
        )
        np.testing.assert_array_equal(image.GetPixel(index), volume.array[(..., *index)])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("vector", [False, True])
def test_files_of_simpleitk(tmp_path, ending, vector):
    volume = oblique(shape=(3, *SHAPE) if vector else SHAPE)
    image = sitk.GetImageFromArray(
        volume.array.T if not vector else volume.array.transpose(3, 2, 1, 0), isVector=vector
    )
    lps = np.diag([-1, -1, 1, 1]) @ volume.affine
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((lps[:3, :3] / volume.spacing_mm).ravel())
    image.SetOrigin(lps[:3, 3])
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    assert_same(formats.read(tmp_path / f"a{ending}"), volume)


def test_nibabel_reads_the_affine_that_was_written(tmp_path):
    volume = oblique()
    formats.write(volume, tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(affine, volume.affine, rtol=1e-5, atol=1e-4)
        assert code == 1


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".h5"])
def test_shear_survives(tmp_path, ending):
    affine = affine_of()
    affine[:3, 1] += 0.3 * affine[:3, 0]
    formats.write(Volume(np.zeros(SHAPE, np.float32), affine), tmp_path / f"a{ending}")
    np.testing.assert_allclose(
        formats.read(tmp_path / f"a{ending}").affine, affine, rtol=1e-5, atol=1e-5
    )


def test_scaled_nifti_is_float32_and_unscaled_keeps_its_type(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii")
    stored = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj.get_unscaled())
    back = formats.read(tmp_path / "a.nii").array
    assert stored.dtype == np.int16 and back.dtype == np.float32
    np.testing.assert_allclose(back, stored * 0.5 + 10)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_2_and_foreign_byte_order(tmp_path, ending):
    volume = oblique("int16")
    nibabel.save(nibabel.Nifti2Image(volume.array, volume.affine), tmp_path / f"a{ending}")
    assert_same(formats.read(tmp_path / f"a{ending}"), volume)
    for form in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        header = form.header_class(endianness=">")
        header.set_data_dtype(np.int16)
        nibabel.save(form(volume.array, volume.affine, header), tmp_path / f"b{ending}")
        assert nibabel.load(tmp_path / f"b{ending}").header.endianness == ">"
        assert_same(formats.read(tmp_path / f"b{ending}"), volume)


def test_nifti_in_metres_is_read_in_mm(tmp_path):
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([0.001, 0.001, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(formats.read(tmp_path / "a.nii").spacing_mm, (1, 1, 2), rtol=1e-5)


def test_array_is_independent_of_the_file(tmp_path):
    formats.write(oblique(), tmp_path / "a.nii")
    array = formats.read(tmp_path / "a.nii").array
    while array is not None:
        assert not isinstance(array, np.memmap)
        array = getattr(array, "base", None)


def test_trailing_single_axis_of_nifti_is_squeezed(tmp_path):
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((*SHAPE, 1), np.float32), np.eye(4)), tmp_path / "a.nii"
    )
    assert formats.read(tmp_path / "a.nii").array.shape == SHAPE


# Formats that are read only


def write_foreign(path, volume: Volume) -> None:
    """As ITK or nibabel writes it; .zraw stands for a packed .mhd."""
    array, vector = volume.array, volume.array.ndim == 4
    if path.suffix == ".mhd":
        turned = array.transpose(3, 2, 1, 0) if vector else array.T
        image = sitk.GetImageFromArray(np.ascontiguousarray(turned), isVector=vector)
        lps = np.diag([-1, -1, 1, 1]) @ volume.affine
        image.SetSpacing(volume.spacing_mm)
        image.SetDirection((lps[:3, :3] / volume.spacing_mm).ravel())
        image.SetOrigin(lps[:3, 3])
        sitk.WriteImage(image, str(path), "packed" in path.name)
        return
    array = np.moveaxis(array, 0, -1) if vector else array
    form = nibabel.Nifti1Pair if path.suffix == ".hdr" else nibabel.MGHImage
    image = form(array, volume.affine)
    image.header.set_data_dtype(array.dtype)
    nibabel.save(image, path)


FOREIGN = ("a.mhd", "packed.mhd", "a.hdr", "a.mgz", "a.mgh")


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_read_only(tmp_path, name, dtype, channels):
    volume = oblique(dtype, (channels, *SHAPE) if channels else SHAPE)
    write_foreign(tmp_path / name, volume)
    assert_same(formats.read(tmp_path / name), volume)
    header = formats.peek(tmp_path / name)
    assert sorted(header.shape) == sorted(volume.array.shape) and header.nbytes == header.voxels * (
        np.dtype(dtype).itemsize
    )
    assert formats.stem(tmp_path / name) == name.split(".")[0]
    with pytest.raises(UserError, match="read only"):
        formats.write(volume, tmp_path / f"b{name[-4:]}")
    if not channels:
        assert_same(formats.read(tmp_path / name, "label"), volume) if dtype != "float32" else None


def test_mgh_that_does_not_say_where_it_lies(tmp_path):
    nibabel.save(nibabel.MGHImage(np.zeros(SHAPE, np.float32), affine_of()), tmp_path / "a.mgh")
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[28:30] = b"\0\0"
    (tmp_path / "a.mgh").write_bytes(content)
    refused(tmp_path / "a.mgh", "goodRASFlag")


@pytest.mark.parametrize("name", FOREIGN)
def test_read_only_files_cut_short(tmp_path, name):
    write_foreign(tmp_path / name, oblique())
    voxels = next((p for p in tmp_path.iterdir() if p.suffix in (".raw", ".zraw", ".img")), None)
    path = voxels or tmp_path / name
    for size in (path.stat().st_size - 40, 100):  # MGH has 20 bytes behind the voxels
        os.truncate(path, size)
        refused(tmp_path / name if path.suffix in (".mgz", ".mgh") else path.with_suffix(""))
    if voxels:
        voxels.unlink()
        refused(tmp_path / name, "there is none")


@pytest.mark.parametrize("name", ["a.mhd", "packed.mhd", "a.hdr"])
def test_voxels_of_another_length_than_the_header_says(tmp_path, name):
    write_foreign(tmp_path / name, oblique())
    voxels = next(p for p in tmp_path.iterdir() if p.name != name)
    voxels.write_bytes(voxels.read_bytes() + b"x")
    with pytest.raises(UserError, match="one of the two is not of this scan"):
        formats.read(tmp_path / name)


def test_analyze_is_refused_since_it_does_not_tell_left_from_right(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(np.zeros(SHAPE, np.int16), np.eye(4)), tmp_path / "a.hdr")
    refused(tmp_path / "a.hdr", "Analyze 7.5", "left from right")


def test_the_voxels_of_a_pair_are_no_scan_by_themselves(tmp_path):
    with pytest.raises(UserError, match=r"give its header, \.mhd, instead"):
        formats.read(tmp_path / "a.raw")


@pytest.mark.parametrize("name", ["e\u0301.mhd", "\xe9.mhd"])
def test_voxels_whose_name_is_in_another_form_of_unicode(tmp_path, name):
    write_foreign(tmp_path / name, oblique())
    (raw,) = tmp_path.glob("*.raw")
    raw.rename(tmp_path / ("\xe9.raw" if len(name) > 5 else "e\u0301.raw"))
    assert_same(formats.read(tmp_path / name), oblique())
    assert formats.stem(tmp_path / name) == "\xe9"


def test_libraries_say_nothing_past_the_warnings(tmp_path, capfd, caplog):
    formats.write(oblique(), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[76:80] = np.array([0.5], "<f4").tobytes()  # pixdim[0]
    (tmp_path / "a.nii").write_bytes(content)
    formats.read(tmp_path / "a.nii")
    assert capfd.readouterr().err == "" and not caplog.records


# The benchmark's h5


def test_h5_reads_the_dataset_of_its_kind_and_the_benchmark_s_spacing(tmp_path):
    image, label = oblique().array, oblique("uint8").array
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"], file["label"] = image, label
    scan, truth = formats.read(tmp_path / "a.h5"), formats.read(tmp_path / "a.h5", kind="label")
    assert_same(scan, Volume(image, np.diag([0.625, 0.625, 0.625, 1])))
    assert_same(truth, Volume(label, np.diag([0.625, 0.625, 0.625, 1])))


def test_h5_never_opens_the_other_dataset(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.zeros(SHAPE, np.float32)
        file["label"] = h5py.ExternalLink("gone.h5", "/label")
    assert formats.read(tmp_path / "a.h5").array.shape == SHAPE


def test_h5_without_the_dataset(tmp_path):
    formats.write(oblique(), tmp_path / "a.h5")
    refused(tmp_path / "a.h5", "'label'", "'image'", kind="label")


# Label maps


@pytest.mark.parametrize(("high", "dtype"), [(255, "uint8"), (256, "uint16"), (70000, "uint32")])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_whole_floats_become_the_smallest_integers(tmp_path, ending, high, dtype):
    array = np.zeros(SHAPE, np.float32)
    array[0] = high
    formats.write(Volume(array, affine_of()), tmp_path / f"a{ending}")
    assert_same(
        formats.read(tmp_path / f"a{ending}", kind="label"),
        Volume(array.astype(dtype), affine_of()),
    )


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e30])
def test_label_map_of_other_floats_is_refused(tmp_path, value):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    formats.write(Volume(array, affine_of()), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "label", kind="label")
    np.testing.assert_array_equal(formats.read(tmp_path / "a.nii").array, array)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_label_map_of_channels_is_refused(tmp_path, ending):
    formats.write(oblique("uint8", (2, *SHAPE)), tmp_path / f"a{ending}")
    refused(tmp_path / f"a{ending}", "(2, 5, 6, 7)", kind="label")


# Bad files


@pytest.mark.parametrize("ending", FORMATS)
def test_missing_folder_and_empty(tmp_path, ending):
    refused(tmp_path / f"none{ending}", "there is none")
    (tmp_path / f"folder{ending}").mkdir()
    refused(tmp_path / f"folder{ending}", "this is a folder")
    (tmp_path / f"empty{ending}").touch()
    refused(tmp_path / f"empty{ending}", "0 bytes")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_truncated(tmp_path, capfd, ending, part):
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).random((16, 17, 18)).astype(np.float32)
    formats.write(Volume(noise, affine_of()), path)
    os.truncate(path, int(path.stat().st_size * part))
    refused(path, "expected")
    if ending == ".mha":
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compressed", [True, False])
def test_truncated_mha_and_nrrd_of_others(tmp_path, capfd, compressed):
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((9, 9, 9)))
    for name in ("a.mha", "a.nrrd"):
        sitk.WriteImage(image, str(tmp_path / name), compressed)
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 20)
        refused(tmp_path / name, "expected")
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("other", [*FORMATS, "text", "noise"])
@pytest.mark.parametrize("ending", FORMATS)
def test_renamed(tmp_path, ending, other):
    if other == ending:
        pytest.skip("not renamed")
    path = tmp_path / f"a{ending}"
    if other in FORMATS:
        formats.write(oblique(), tmp_path / f"b{other}")
        os.replace(tmp_path / f"b{other}", path)
    else:
        path.write_bytes(
            b"not a scan\n" * 60 if other == "text" else np.random.default_rng(0).bytes(900)
        )
    holds = {
        ".nii.gz": "gzip",
        ".nii": "NIfTI",
        ".nrrd": "NRRD",
        ".mha": "MetaImage",
        ".h5": "HDF5",
        "text": "text",
    }
    refused(path, f"holds {holds.get(other, 'unknown data')}")


@pytest.mark.parametrize("said", ["", "CompressedDataSize = 0", "half", "CompressedXataSize = 9"])
def test_mha_without_the_size_of_its_packed_voxels(tmp_path, said):
    """MetaIO then returns memory that it has not filled, and no error."""
    path = tmp_path / "a.mha"
    formats.write(oblique(shape=(20, 21, 22)), path)
    before, size, after = re.split(rb"CompressedDataSize = (\d+)\n", path.read_bytes())
    line = f"CompressedDataSize = {int(size) // 2}" if said == "half" else said
    path.write_bytes(before + f"{line}\n".encode() * bool(line) + after)
    refused(path, "expected the size of the packed voxels", size.decode())


def test_packed_text(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"not a scan\n" * 60))
    refused(tmp_path / "a.nii.gz", "NIfTI")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".h5"])
@pytest.mark.parametrize("part", [0.4, 0.7, 0.95])
def test_damage_in_compressed_voxels(tmp_path, ending, part):
    path = tmp_path / f"a{ending}"
    formats.write(oblique(shape=(30, 30, 30)), path)
    content = bytearray(path.read_bytes())
    start = int(len(content) * part)
    content[start : start + 40] = bytes(byte ^ 0x5A for byte in content[start : start + 40])
    path.write_bytes(content)
    refused(path, "readable")


def test_headers_that_promise_absurd_sizes(tmp_path):
    for ending in (".nii", ".nii.gz"):
        header = nibabel.Nifti1Header()
        header.set_data_shape((32767, 32767, 32767))
        header.set_sform(np.eye(4), code=1)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        content = header.binaryblock + bytes(4000)
        (tmp_path / f"a{ending}").write_bytes(
            gzip.compress(content) if ending == ".nii.gz" else content
        )
        refused(tmp_path / f"a{ending}", "bytes of voxels")
    for ending, size in ((".nrrd", b"sizes: 5 6 7"), (".mha", b"DimSize = 5 6 7")):
        formats.write(oblique(), tmp_path / f"a{ending}")
        content = (tmp_path / f"a{ending}").read_bytes()
        assert size in content
        (tmp_path / f"a{ending}").write_bytes(
            content.replace(size, size.replace(b"5 6 7", b"50000 60000 70000"))
        )
        refused(tmp_path / f"a{ending}", "bytes of voxels")


def test_raw_nrrd_that_promises_an_absurd_size(tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(oblique().array.T), str(path), useCompression=False)
    path.write_bytes(path.read_bytes().replace(b"sizes: 5 6 7", b"sizes: 50000 60000 70000"))
    refused(path, "bytes of voxels")


def test_metaimage_of_more_axes_than_its_library_has_room_for(tmp_path):
    formats.write(oblique(), tmp_path / "a.mha")
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content.replace(b"NDims = 3", b"NDims = 93"))
    refused(tmp_path / "a.mha", "NDims", "93")


def test_nifti_of_negative_size(tmp_path):
    formats.write(oblique(), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[42:46] = np.array([-5, -6], "<i2").tobytes()  # dim[1], dim[2]
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", "(-5, -6, 7)")


@pytest.mark.parametrize("ending", FORMATS)
def test_2d_is_refused(tmp_path, ending):
    path, array = str(tmp_path / f"a{ending}"), np.zeros((8, 9), np.float32)
    if ending == ".h5":
        with h5py.File(path, "w") as file:
            file["image"] = array.T
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), path)
    refused(path, "3D", "(9, 8)")
    with pytest.raises(UserError, match="3D"):
        formats.write(Volume(array, np.eye(4)), tmp_path / f"b{ending}")


@pytest.mark.parametrize(("ending", "header"), [(".nrrd", "a.nhdr"), (".mha", "a.mhd")])
def test_header_without_its_voxels_is_refused(tmp_path, ending, header):
    sitk.WriteImage(sitk.GetImageFromArray(oblique().array), str(tmp_path / header))
    os.replace(tmp_path / header, tmp_path / f"b{ending}")
    refused(tmp_path / f"b{ending}", "one file")


@pytest.mark.parametrize("bad", [np.diag([1.0, 0.0, 1.0, 1.0]), np.diag([1.0, np.nan, 1.0, 1.0])])
def test_impossible_affine(tmp_path, bad):
    formats.write(oblique(), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[280:328] = bad[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", "affine")
    for ending in FORMATS:
        with pytest.raises(UserError, match="affine"):
            formats.write(Volume(np.zeros(SHAPE, np.float32), bad), tmp_path / f"b{ending}")


@pytest.mark.parametrize("ending", [".nii", ".nrrd"])
def test_voxels_that_are_no_numbers(tmp_path, ending):
    if ending == ".nii":
        colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii")
        refused(tmp_path / "a.nii", "real number")
    with pytest.raises(UserError, match="real number"):
        formats.write(Volume(np.zeros(SHAPE, np.complex64), np.eye(4)), tmp_path / f"b{ending}")


# Names and writing


def test_suffix_and_stem():
    assert formats.suffix("x/A.NII.GZ") == ".nii.gz" and formats.stem("x/A.b.NII.GZ") == "A.b"
    assert formats.suffix("a.nii") == ".nii"
    for name in ("a.txt", "a", "nii", "a.nii.gz.txt"):
        with pytest.raises(UserError, match=r"\.nrrd"):
            formats.suffix(name)


@pytest.mark.parametrize("ending", FORMATS)
def test_upper_case_suffix(tmp_path, ending):
    formats.write(oblique(), tmp_path / f"A{ending.upper()}")
    assert_same(formats.read(tmp_path / f"A{ending.upper()}"), oblique())


@pytest.mark.parametrize("ending", FORMATS)
def test_unwritable_folder(tmp_path, ending):
    (tmp_path / "file").touch()
    (tmp_path / f"taken{ending}").mkdir()
    for path in (
        tmp_path / "none" / f"a{ending}",
        tmp_path / "file" / f"a{ending}",
        tmp_path / f"taken{ending}",
    ):
        with pytest.raises(UserError, match="cannot write") as caught:
            formats.write(oblique(), path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", f"taken{ending}"]


@pytest.mark.parametrize("ending", FORMATS)
def test_write_is_all_or_nothing(tmp_path, monkeypatch, ending):
    path = tmp_path / f"a{ending}"
    formats.write(oblique(), path)

    class Breaks:
        def write(self, volume, beside):
            beside.write_bytes(b"half")
            raise OSError("No space left on device")

    monkeypatch.setattr(formats, "lookup", lambda *_: Breaks())
    with pytest.raises(UserError, match="No space left"):
        formats.write(oblique("float64"), path)
    monkeypatch.undo()
    assert_same(formats.read(path), oblique())
    assert list(tmp_path.iterdir()) == [path]


def test_a_nifti_header_that_had_to_be_corrected_is_told_with_its_file(tmp_path, capfd):
    path = tmp_path / "a.nii"
    formats.write(oblique(), path)
    header = bytearray(path.read_bytes())
    header[252:254] = np.int16(77).tobytes()  # qform_code
    path.write_bytes(header)
    with pytest.warns(DataWarning) as given:
        volume = formats.read(path)
    (told,) = (str(each.message) for each in given)
    assert told.startswith(f"{path}: its header is wrong") and "qform_code 77" in told
    np.testing.assert_allclose(volume.affine, affine_of(), rtol=1e-5)
    assert capfd.readouterr().err == ""
