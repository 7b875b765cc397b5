"""Every layout: its cases, their order and labels, and one clear line for a folder that is not as
it should be.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from dicom_series import Scan, noise
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Source, Volume
from dkuxnet.data import formats
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
        ({"labels": {"background": 0, "both": [1, 2]}}, "regions"),
        ({"labels": {"background": 0, "LA": 1, "ignore": 2}}, "ignore"),
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
