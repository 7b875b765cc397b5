"""Every layout: its cases, their order and labels, and one clear line for a folder that is not as
it should be.
"""

import json
from pathlib import Path, PurePath
from unicodedata import normalize

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from dicom_series import Scan, noise
from dkuxnet.core.errors import UserError, UserErrors, data_warnings
from dkuxnet.core.types import Source, Volume
from dkuxnet.data import formats
from dkuxnet.data.inputs import find_cases
from dkuxnet.data.layouts import LAYOUTS, find_source

NNUNET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "LA": 1},
    "file_ending": ".nii.gz",
}
MSD = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "LA"}, "training": []}


def scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    formats.write(Volume(np.zeros((2, 3, 4), np.float32), np.eye(4)), path)
    return path


def h5(path: Path, *datasets: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name in datasets:
            file[name] = np.zeros((2, 3, 4), np.uint8)
    return path


def describe(folder: Path, fields) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(fields if isinstance(fields, str) else json.dumps(fields))


def listing(source: Source) -> dict[str, tuple]:
    """Case name -> (paths of its images, path of its label), relative to the folder."""

    def relative(path: Path) -> str:
        return path.relative_to(source.folder).as_posix()

    return {
        case.name: (tuple(map(relative, case.images)), case.label and relative(case.label))
        for case in source.cases
    }


def refused(folder: Path, *parts: str, layout: str = "auto") -> None:
    with pytest.raises(UserError) as caught:
        find_source(folder, layout)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def build_nnunet(folder: Path) -> None:
    describe(folder, NNUNET)
    for name in (
        "imagesTr/b_0000",
        "labelsTr/b",
        "imagesTr/a_0000",
        "labelsTr/a",
        "imagesTr/a1_0000",
        "imagesTs/t_0000",
    ):
        scan(folder / f"{name}.nii.gz")
    scan(folder / "imagesUn" / "u_0000.nii.gz")
    scan(folder / "imagesTr" / "other_0000.nrrd")  # not of the file_ending


def build_nnunet_v1(folder: Path) -> None:
    training = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("b", "a")
    ]
    describe(folder, {**MSD, "training": training, "numTraining": 2})
    for name in ("b", "a"):
        scan(folder / "imagesTr" / f"{name}_0000.nii.gz")
        scan(folder / "labelsTr" / f"{name}.nii.gz")


def build_msd(folder: Path) -> None:
    names = ("b", "a")
    for name in (*names, "u", "v"):
        scan(folder / "imagesTr" / f"{name}.nii.gz")
        scan(folder / "labelsTr" / f"{name}.nii.gz")
    training = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names
    ]
    training += [{"image": "./imagesTr/._b.nii.gz", "label": "./labelsTr/._b.nii.gz"}]
    unlabeled = ["./imagesTr/u.nii.gz", {"image": "imagesTr/v.nii.gz"}]
    describe(
        folder,
        {**MSD, "training": training, "unlabeled": unlabeled, "test": ["./imagesTs/t.nii.gz"]},
    )


def build_la_h5(folder: Path) -> None:
    for name in ("A", "B", "C", "D"):
        datasets = ("image",) if name == "C" else ("image", "label")
        h5(folder / "2018LA_Seg_Training Set" / name / "mri_norm2.h5", *datasets)
    (folder / "train.list").write_text("B\nA\n\nC\n")
    (folder / "test.list").write_text("D\n")


def build_la_challenge(folder: Path) -> None:
    for name in ("P2/lgemri", "P2/laendo", "P1/lgemri"):
        scan(folder / f"{name}.nrrd")


def build_folder(folder: Path) -> None:
    for name in (
        "images/b.nii.gz",
        "images/a.mha",
        "images/c.nrrd",
        "labels/a.nii.gz",
        "labels/b.nii.gz",
    ):
        scan(folder / name)
    (folder / "images" / "notes.txt").touch()
    (folder / "images" / "._a.nii.gz").write_bytes(b"macOS")


def build_dicom(folder: Path) -> None:
    for name, seed in (("b/study/series", 1), ("a", 2)):
        Scan(noise((3, 4, 5), seed=seed), series_uid=f"1.2.{seed}").write(folder / name, seed)
    scan(folder / "labels" / "b.nii.gz")


BUILD = {
    "nnunet": build_nnunet,
    "nnunet-v1": build_nnunet_v1,
    "msd": build_msd,
    "la-h5": build_la_h5,
    "la-challenge": build_la_challenge,
    "dicom": build_dicom,
    "folder": build_folder,
}
B = "2018LA_Seg_Training Set/{}/mri_norm2.h5"
EXPECTED = {
    "nnunet": {
        "a": (("imagesTr/a_0000.nii.gz",), "labelsTr/a.nii.gz"),
        "a1": (("imagesTr/a1_0000.nii.gz",), None),
        "b": (("imagesTr/b_0000.nii.gz",), "labelsTr/b.nii.gz"),
        "u": (("imagesUn/u_0000.nii.gz",), None),
    },
    "nnunet-v1": {
        "a": (("imagesTr/a_0000.nii.gz",), "labelsTr/a.nii.gz"),
        "b": (("imagesTr/b_0000.nii.gz",), "labelsTr/b.nii.gz"),
    },
    "msd": {
        "b": (("imagesTr/b.nii.gz",), "labelsTr/b.nii.gz"),
        "a": (("imagesTr/a.nii.gz",), "labelsTr/a.nii.gz"),
        "u": (("imagesTr/u.nii.gz",), None),
        "v": (("imagesTr/v.nii.gz",), None),
    },
    "la-h5": {
        "B": ((B.format("B"),), B.format("B")),
        "A": ((B.format("A"),), B.format("A")),
        "C": ((B.format("C"),), None),
    },
    "la-challenge": {
        "P1": (("P1/lgemri.nrrd",), None),
        "P2": (("P2/lgemri.nrrd",), "P2/laendo.nrrd"),
    },
    "dicom": {"a": (("a",), None), "b": (("b/study/series",), "labels/b.nii.gz")},
    "folder": {
        "a": (("images/a.mha",), "labels/a.nii.gz"),
        "b": (("images/b.nii.gz",), "labels/b.nii.gz"),
        "c": (("images/c.nrrd",), None),
    },
}
LABELS = {
    "nnunet": {"background": 0, "LA": 1},
    "nnunet-v1": {"background": 0, "LA": 1},
    "msd": {"background": 0, "LA": 1},
    "la-h5": {"background": 0, "LA": 1},
    "la-challenge": {"background": 0, "LA": 255},
    "dicom": None,
    "folder": None,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("asked", ["auto", "by name"])
def test_cases_in_order(tmp_path, layout, asked):
    BUILD[layout](tmp_path)
    source = find_source(tmp_path, "auto" if asked == "auto" else layout)
    assert source.layout == layout and source.folder == tmp_path
    assert list(listing(source).items()) == list(EXPECTED[layout].items())
    assert source.labels == LABELS[layout]
    assert source.channels == ({"folder": "image", "dicom": "MR"}.get(layout, "MRI"),)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_no_folder_of_this_layout(tmp_path, layout):
    for name in (layout, "auto"):
        refused(tmp_path / "none", str(tmp_path / "none"), "there is none", layout=name)
        (tmp_path / "file").touch()
        refused(tmp_path / "file", "file", layout=name)
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused(tmp_path / "empty", str(tmp_path / "empty"), layout=name)


def test_unknown_layout_and_unknown_folder(tmp_path):
    refused(tmp_path, "did you mean 'nnunet'", "auto", layout="nunet")
    (tmp_path / "notes.txt").touch()
    refused(tmp_path, str(tmp_path), "notes.txt", *LAYOUTS)


# nnU-Net


def test_nnunet_channels(tmp_path):
    describe(tmp_path, {**NNUNET, "channel_names": {"1": "CT", "0": "PET"}})
    for name in ("a_0001", "a_0000"):
        scan(tmp_path / "imagesTr" / f"{name}.nii.gz")
    source = find_source(tmp_path)
    assert source.channels == ("PET", "CT")
    assert listing(source) == {"a": (("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"), None)}
    scan(tmp_path / "imagesTr" / "b_0000.nii.gz")
    refused(tmp_path, "'b'", "b_0001.nii.gz is missing")


def test_nnunet_too_many_channels_stray_label_and_odd_name(tmp_path):
    build_nnunet(tmp_path)
    extra = scan(tmp_path / "imagesTr" / "b_0001.nii.gz")
    refused(tmp_path, "b_0001.nii.gz is too many")
    extra.unlink()
    stray = scan(tmp_path / "labelsTr" / "z.nii.gz")
    refused(tmp_path, "'z'", str(stray))
    stray.unlink()
    scan(tmp_path / "imagesTr" / "b.nii.gz")
    refused(tmp_path, "CASE_0000.nii.gz")


def test_nnunet_listed_cases_keep_their_order(tmp_path):
    for name in (
        "x/b.nii.gz",
        "x/a.nii.gz",
        "y/b.nii.gz",
        "imagesUn/u_0000.nii.gz",
        "imagesUn/v_0000.nii.gz",
    ):
        scan(tmp_path / name)
    listed = {
        "b": {"images": ["x/b.nii.gz"], "label": "y/b.nii.gz"},
        "a": {"images": ["./x/../x/a.nii.gz"]},
        "second": {"images": ["imagesUn/u_0000.nii.gz"]},
    }
    describe(tmp_path, {**NNUNET, "dataset": listed})
    assert list(listing(find_source(tmp_path)).items()) == [
        ("b", (("x/b.nii.gz",), "y/b.nii.gz")),
        ("a", (("x/a.nii.gz",), None)),
        ("second", (("imagesUn/u_0000.nii.gz",), None)),
        ("v", (("imagesUn/v_0000.nii.gz",), None)),
    ]


def test_a_case_in_two_folders_is_refused(tmp_path):
    build_nnunet(tmp_path)
    scan(tmp_path / "imagesUn" / "a_0000.nii.gz")
    refused(tmp_path, "'a'", "two")


@pytest.mark.parametrize("entry", ["../out.nii.gz", "x/../../out.nii.gz", "ABSOLUTE"])
@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_paths_that_leave_the_folder(tmp_path, layout, entry):
    outside = scan(tmp_path / "out.nii.gz")
    entry = str(outside) if entry == "ABSOLUTE" else entry
    nnunet = {**NNUNET, "dataset": {"a": {"images": [entry]}}}
    describe(
        tmp_path / "data", nnunet if layout == "nnunet" else {**MSD, "training": [{"image": entry}]}
    )
    (tmp_path / "data" / "x").mkdir()
    refused(tmp_path / "data", entry, "inside the folder")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a\\b"])
def test_case_names_that_cannot_name_a_file(tmp_path, name):
    scan(tmp_path / "a.nii.gz")
    describe(tmp_path, {**NNUNET, "dataset": {name: {"images": ["a.nii.gz"]}}})
    refused(tmp_path, "case name", repr(name))


@pytest.mark.parametrize("part", ["images", "label"])
def test_listed_file_that_is_missing(tmp_path, part):
    entry = {"images": [scan(tmp_path / "a.nii.gz").name], "label": "a.nii.gz"}
    entry[part] = ["gone.nii.gz"] if part == "images" else "gone.nii.gz"
    describe(tmp_path, {**NNUNET, "dataset": {"a": entry}})
    refused(tmp_path, "'a'", str(tmp_path / "gone.nii.gz"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"labels": {"background": 0, "both": [1, 2.5]}}, "'both'"),
        ({"labels": {"both": [1, 2]}}, "background"),
        ({"labels": {"background": 0, "both": [0, 2]}}, "0 in no region"),
        ({"labels": {"background": 0, "LA": "1"}}, "labels"),
        ({"labels": {"background": 0, "LA": 1.5}}, "labels"),
        ({"labels": {"background": 0, "LA": True}}, "labels"),
        ({"labels": {"LA": 1}}, "background 0"),
        ({"labels": {"background": 0, "LA": 1, "RA": 1}}, "its own"),
        ({"labels": {}}, "labels"),
        ({"labels": ["background"]}, "'labels' to be an object"),
        ({"labels": None}, "labels"),
        ({"channel_names": {"1": "MRI"}}, "channel_names"),
        ({"channel_names": {"0": 1}}, "channel_names"),
        ({"channel_names": {}}, "channel_names"),
        ({"file_ending": ".png"}, ".nii.gz"),
        ({"file_ending": 3}, "file_ending"),
        ({"dataset": []}, "'dataset'"),
        ({"dataset": {"a": "a.nii.gz"}}, "'a'"),
        ({"dataset": {"a": {"images": []}}}, "'a'"),
        ({"dataset": {"a": {"images": [1]}}}, "'a'"),
    ],
)
def test_nnunet_fields_that_are_wrong(tmp_path, change, part):
    build_nnunet(tmp_path)
    describe(tmp_path, {**NNUNET, **change})
    refused(tmp_path, part)


@pytest.mark.parametrize(("layout", "fields"), [("nnunet", NNUNET), ("msd", MSD)])
def test_missing_keys_are_named(tmp_path, layout, fields):
    for key in fields:
        describe(tmp_path, {name: value for name, value in fields.items() if name != key})
        refused(tmp_path, str(tmp_path / "dataset.json"), f"'{key}'", layout=layout)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\x00\x01", "[" * 100_000])
@pytest.mark.parametrize("layout", ["auto", "nnunet", "msd"])
def test_dataset_json_that_is_none(tmp_path, layout, text):
    describe(tmp_path, text)
    refused(tmp_path, str(tmp_path / "dataset.json"), "expected", layout=layout)


# Medical Segmentation Decathlon


@pytest.mark.parametrize(
    "entry", [3, {}, {"image": 3}, {"label": "a.nii.gz"}, {"image": "a.png"}, {"image": "a.nii.gz"}]
)
@pytest.mark.parametrize("key", ["training", "unlabeled"])
def test_msd_entries_that_are_wrong(tmp_path, key, entry):
    build_msd(tmp_path)
    describe(tmp_path, {**MSD, key: [entry]})
    refused(
        tmp_path,
        "a.nii.gz" if isinstance(entry, dict) and entry.get("image") == "a.nii.gz" else "expected",
    )


def test_msd_labels_by_value_and_several_channels(tmp_path):
    build_msd(tmp_path)
    fields = json.loads((tmp_path / "dataset.json").read_text())
    labels = {"2": "oedema", "10": "core", "0": "background"}
    describe(tmp_path, {**fields, "labels": labels, "modality": {"0": "FLAIR", "1": "T1w"}})
    source = find_source(tmp_path)
    assert list(source.labels.items()) == [("background", 0), ("oedema", 2), ("core", 10)]
    assert source.channels == ("FLAIR", "T1w")
    assert len(source.cases[0].images) == 1


def test_msd_two_cases_of_one_name(tmp_path):
    scan(tmp_path / "x" / "a.nii.gz")
    scan(tmp_path / "y" / "a.nii.gz")
    describe(tmp_path, {**MSD, "training": [{"image": "x/a.nii.gz"}, {"image": "y/a.nii.gz"}]})
    refused(tmp_path, "'a'", "two")


# The left atrium


def test_la_h5_given_as_its_inner_folder(tmp_path):
    build_la_h5(tmp_path)
    inner = tmp_path / "2018LA_Seg_Training Set"
    assert [case.name for case in find_source(inner).cases] == ["B", "A", "C"]
    (tmp_path / "train.list").unlink()
    assert [case.name for case in find_source(inner).cases] == ["A", "B", "C"], (
        "test.list's D stays out"
    )
    (tmp_path / "test.list").unlink()
    assert [case.name for case in find_source(inner).cases] == ["A", "B", "C", "D"]


@pytest.mark.parametrize("name", ["gone", "../train", "A\nA", "A/../A"])
def test_la_h5_lists_that_are_wrong(tmp_path, name):
    build_la_h5(tmp_path)
    (tmp_path / "train.list").write_text(f"{name}\n")
    refused(tmp_path, f"'{name.splitlines()[0]}")


def test_la_h5_file_that_is_none(tmp_path):
    build_la_h5(tmp_path)
    path = tmp_path / B.format("A")
    path.write_text("text")
    refused(tmp_path, str(path))


def test_la_challenge_label_without_scan(tmp_path):
    build_la_challenge(tmp_path)
    (tmp_path / "P2" / "lgemri.nrrd").unlink()
    refused(tmp_path, str(tmp_path / "P2" / "lgemri.nrrd"))


# A plain folder


def test_folder_with_scans_beside_their_labels(tmp_path):
    for name in ("b.nii.gz", "a.nrrd", "labels/a.mha"):
        scan(tmp_path / name)
    h5(tmp_path / "c.h5", "image", "label")
    h5(tmp_path / "d.h5", "image")
    describe(tmp_path, {"labels": {"background": 0, "LA": 255}, "channel_names": {"0": "CT"}})
    source = find_source(tmp_path)
    assert listing(source) == {
        "a": (("a.nrrd",), "labels/a.mha"),
        "b": (("b.nii.gz",), None),
        "c": (("c.h5",), "c.h5"),
        "d": (("d.h5",), None),
    }
    assert source.labels == {"background": 0, "LA": 255} and source.channels == ("CT",)


def test_folder_of_one_name_twice(tmp_path):
    build_folder(tmp_path)
    scan(tmp_path / "images" / "a.nii.gz")
    refused(tmp_path, "'a'", "a.mha", "a.nii.gz")


def test_folder_label_without_scan_or_twice(tmp_path):
    build_folder(tmp_path)
    twice = scan(tmp_path / "labels" / "a.nrrd")
    refused(tmp_path, "'a'", "a.nrrd")
    twice.unlink()
    stray = scan(tmp_path / "labels" / "z.nii.gz")
    refused(tmp_path, str(stray), "'z'")


# Names in other forms of Unicode, and files that nothing reads


def told(folder: Path, layout: str = "auto") -> tuple[Source, list[str]]:
    """The source, and what was warned of."""
    with data_warnings() as found:
        source = find_source(folder, layout)
    return source, found


COMPOSED, APART = "caf\xe9", "cafe\u0301"


@pytest.mark.parametrize(("image", "label"), [(COMPOSED, APART), (APART, COMPOSED)])
@pytest.mark.parametrize("layout", ["folder", "nnunet", "msd", "listed"])
def test_a_label_is_found_whose_name_is_in_another_form_of_unicode(tmp_path, layout, image, label):
    if layout == "folder":
        paths = [f"images/{image}.nii.gz", f"labels/{label}.nii.gz"]
    else:
        paths = [f"imagesTr/{image}_0000.nii.gz", f"labelsTr/{label}.nii.gz"]
    for path in paths:
        scan(tmp_path / path)
    other = [normalize("NFC" if "\u0301" in path else "NFD", path) for path in paths]
    if layout == "nnunet":
        describe(tmp_path, NNUNET)
    elif layout == "msd":
        describe(tmp_path, {**MSD, "training": [{"image": other[0], "label": other[1]}]})
    elif layout == "listed":
        entry = {"images": other[:1], "label": other[1]}
        describe(tmp_path, {**NNUNET, "dataset": {image: entry}})
    (case,) = find_source(tmp_path).cases
    assert case.name == (f"{COMPOSED}_0000" if layout == "msd" else COMPOSED)
    assert case.label == tmp_path / paths[1] and case.images == (tmp_path / paths[0],)


@pytest.mark.parametrize("ending", ["nhdr", "mnc", "nii.bz2", "img", "npy"])
@pytest.mark.parametrize("layout", ["folder", "nnunet"])
def test_a_label_in_a_format_that_is_not_read_is_refused(tmp_path, layout, ending):
    BUILD[layout](tmp_path)
    labels = tmp_path / ("labels" if layout == "folder" else "labelsTr")
    name = "c" if layout == "folder" else "a1"
    (labels / f"{name}.{ending}").write_bytes(b"x")
    refused(tmp_path, str(labels / f"{name}.{ending}"), f"case '{name}'", "not read")


def test_a_label_that_is_not_of_the_file_ending_is_refused(tmp_path):
    build_nnunet(tmp_path)
    label = scan(tmp_path / "labelsTr" / "a1.nii")
    refused(tmp_path, str(label), "case 'a1'", "file_ending of dataset.json is .nii.gz")


def test_a_label_of_the_challenge_in_another_format_is_refused(tmp_path):
    build_la_challenge(tmp_path)
    label = scan(tmp_path / "P1" / "laendo.nii.gz")
    refused(tmp_path, str(label), "laendo.nrrd")


def test_whatever_is_left_out_is_named_but_documents_are_not(tmp_path):
    build_folder(tmp_path)
    for name in ("images/d.mnc", "images/.DS_Store", "labels/a.json", "labels/a.png", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    scan(tmp_path / "images" / "deeper" / "e.nii.gz")
    source, (images, labels) = told(tmp_path)
    assert list(listing(source)) == ["a", "b", "c"]
    assert images.startswith(f"{tmp_path / 'labels'}: 1 file is left out: a.png; ")
    assert labels.startswith(f"{tmp_path / 'images'}: 2 files are left out: d.mnc, deeper/; ")


def test_the_work_for_a_file_does_not_grow_with_their_number(tmp_path, monkeypatch):
    """As it would where each were looked for in the list of all."""
    touched, compared, equal = 200, [], Path.__eq__
    describe(tmp_path, NNUNET)
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (tmp_path / folder).mkdir()
        for number in range(touched):
            (tmp_path / folder / f"c{number:03d}{ending}").touch()
    monkeypatch.setattr(Path, "__eq__", lambda *both: compared.append(1) or equal(*both))
    monkeypatch.setattr(Path, "__hash__", PurePath.__hash__)
    assert len(find_source(tmp_path, "nnunet").cases) == touched
    assert len(compared) < 10 * touched


def test_the_voxels_of_a_pair_belong_to_their_header(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16))
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        sitk.WriteImage(image, str(tmp_path / name / "a.mhd"))
        nibabel.save(
            nibabel.Nifti1Pair(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / name / "b.hdr"
        )
    source, warned = told(tmp_path)
    assert listing(source) == {
        "a": (("images/a.mhd",), "labels/a.mhd"),
        "b": (("images/b.hdr",), "labels/b.hdr"),
    }
    assert not warned
    (tmp_path / "images" / "b.hdr").unlink()
    refused(tmp_path, "b.hdr", "'b'")


def test_files_that_dataset_json_does_not_list_are_named(tmp_path):
    build_msd(tmp_path)
    scan(tmp_path / "imagesTr" / "z.nii.gz")
    assert any("imagesTr: 1 file is left out: z.nii.gz" in line for line in told(tmp_path)[1])
    build_nnunet(tmp_path / "nnunet")
    (line,) = told(tmp_path / "nnunet")[1]
    assert "imagesTr: 1 file is left out: other_0000.nrrd; the file_ending" in line


def test_scans_that_no_list_names_are_named(tmp_path):
    build_la_h5(tmp_path)
    h5(tmp_path / B.format("E"), "image")
    (line,) = told(tmp_path)[1]
    assert line.endswith("left out, since neither train.list nor test.list names them: E")
    build_la_challenge(tmp_path / "challenge")
    scan(tmp_path / "challenge" / "P3" / "lgemri.nii.gz")
    assert "hold no lgemri.nrrd: P3" in told(tmp_path / "challenge")[1][0]


@pytest.mark.parametrize(("count", "says"), [(3, ""), (2, ""), (4, "refused"), (1, "warned")])
@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_the_number_of_cases_is_that_of_dataset_json(tmp_path, layout, count, says):
    """It may count the labelled cases or all of imagesTr."""
    BUILD[layout](tmp_path)
    fields = json.loads((tmp_path / "dataset.json").read_text())
    if layout == "msd":
        fields["training"].append({"image": "imagesTr/u.nii.gz"})
        fields["unlabeled"] = []
    describe(tmp_path, fields | {"numTraining": count})
    if says == "refused":
        refused(tmp_path, "numTraining is 4, but there are 3 cases for training, 2 of them with a")
    else:
        assert any("numTraining is 1" in line for line in told(tmp_path)[1]) == (says == "warned")


def test_all_faults_of_a_folder_are_told_at_once(tmp_path):
    describe(tmp_path, {**NNUNET, "channel_names": {"0": "MRI", "1": "CT"}})
    for i in range(25):
        scan(tmp_path / "imagesTr" / f"p{i:02d}_0000.nii.gz")
    scan(tmp_path / "labelsTr" / "stray.nii.gz")
    with pytest.raises(UserErrors) as caught:
        find_source(tmp_path)
    assert len(caught.value.lines) == 21 and caught.value.lines[-1] == "and 6 more"
    assert "p07_0001.nii.gz is missing" in caught.value.lines[7]


# Numbers that count channels, or patients


@pytest.mark.parametrize("where", [".", "images"])
def test_numbers_count_patients_where_a_case_has_one_channel(tmp_path, where):
    for i in range(3):
        scan(tmp_path / where / f"case_{i:04d}.nii.gz")
    source, (line,) = told(tmp_path)
    assert list(listing(source)) == ["case_0000", "case_0001", "case_0002"]
    assert "case_0000, case_0001, ...) are taken for a case each" in line
    if where == "images":
        scan(tmp_path / "labels" / "case_0001.nii.gz")
        cases = find_source(tmp_path).cases
        assert [case.label is not None for case in cases] == [False, True, False]
        for i in (0, 2):
            scan(tmp_path / "labels" / f"case_{i:04d}.nii.gz")
        assert not told(tmp_path)[1]


def test_numbers_count_channels_where_dataset_json_names_several(tmp_path):
    describe(tmp_path, {"channel_names": {"0": "T1", "1": "T2"}})
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        scan(tmp_path / "images" / f"{name}.nii.gz")
    scan(tmp_path / "labels" / "b.nii.gz")
    assert listing(find_source(tmp_path)) == {
        "a": (("images/a_0000.nii.gz", "images/a_0001.nii.gz"), None),
        "b": (("images/b_0000.nii.gz", "images/b_0001.nii.gz"), "labels/b.nii.gz"),
    }
    (tmp_path / "images" / "b_0001.nii.gz").unlink()
    refused(tmp_path, "case 'b'", "b_0001.nii.gz is missing")


def test_a_number_behind_the_only_scan_is_that_of_its_channel(tmp_path):
    for name in ("images/a_0000", "images/b_0000", "labels/a"):
        scan(tmp_path / f"{name}.nii.gz")
    assert listing(find_source(tmp_path)) == {
        "a": (("images/a_0000.nii.gz",), "labels/a.nii.gz"),
        "b": (("images/b_0000.nii.gz",), None),
    }


def test_a_prediction_asks_for_no_labels_and_compares_the_channels(tmp_path):
    for number in range(2):
        scan(tmp_path / "images" / f"a_{number:04d}.nii.gz")
    scan(tmp_path / "labels" / "other.nii.gz")
    assert len(find_cases([tmp_path], channels=1)) == 2
    describe(tmp_path, {"channel_names": {"0": "T1", "1": "T2"}})
    assert len(find_cases([tmp_path], channels=2)) == 1
    with pytest.raises(UserError, match=r"dataset\.json: .*1 channel.* names 2 \(T1, T2\)"):
        find_cases([tmp_path], channels=1)


def test_a_folder_in_place_of_a_label_is_refused(tmp_path):
    build_folder(tmp_path)
    scan(tmp_path / "labels" / "c" / "label.nii.gz")
    refused(tmp_path, str(tmp_path / "labels" / "c"), "case 'c'", "not read")


def test_a_link_to_nothing_is_called_so(tmp_path):
    build_folder(tmp_path)
    (tmp_path / "labels" / "c.nii").symlink_to(tmp_path / "gone.nii")
    refused(tmp_path, "c.nii (a link to nothing)", "case 'c'")
