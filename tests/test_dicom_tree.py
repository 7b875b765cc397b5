"""DICOM trees: zips of any kind, folders full of other things, which series are cases, and
`prepare` and `predict` on them.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dicom_series import SAGITTAL, Scan, noise, save
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.dicom import tree
from dkuxnet.data.fingerprint import check_case
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.data.layouts import find_source
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.prediction.predict import ScansFailed, predict_scans
from test_predict import fake_run


def refused(job, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        job()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def forged(path: Path, name: str, data: bytes = b"x" * 1000, **changes) -> Path:
    """A zip whose list says of its one file what it likes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
        for key, value in changes.items():
            setattr(archive.filelist[0], key, value)
    return path


@pytest.fixture(scope="module")
def scan() -> Scan:
    return Scan(noise(), study_uid="1.9", series_uid="1.9.1")


@pytest.fixture(scope="module")
def folder(scan, tmp_path_factory) -> Path:
    return scan.write(tmp_path_factory.mktemp("dicom") / "anna", seed=1)


# --- zips ---


@pytest.mark.parametrize("prefix", ["", "study/series one/", "a/b/c/d/"])
def test_a_zip_is_read_without_unpacking(folder, scan, tmp_path, prefix):
    path = zipped(folder, tmp_path / "ben.zip", prefix)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._IM0000", b"\0\5\x16\7" * 50)
        archive.writestr("README.txt", "hello")
    assert np.array_equal(formats.read(path).array, scan.voxels.T)
    assert [(case.name, case.images) for case in find_cases([path])] == [("ben", (path,))]
    assert os.listdir(tmp_path) == ["ben.zip"]


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/passwd", "..\\evil", "C:\\evil", "C:/evil"]
)
def test_a_zip_whose_names_leave_it_is_refused(folder, tmp_path, name):
    path = zipped(folder, tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    refused(lambda: formats.read(path), "x.zip", "lies outside of it")


def test_zips_that_would_fill_the_memory_are_refused_by_their_list(tmp_path, monkeypatch):
    refused(
        lambda: formats.read(forged(tmp_path / "a.zip", "a", file_size=20 * 2**30)),
        "unpacks to 20.0 GiB",
        "16 GiB",
    )
    refused(
        lambda: formats.read(forged(tmp_path / "b.zip", "b", file_size=2**30)), "times its size"
    )
    monkeypatch.setattr(tree, "MAX_FILES", 3)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for number in range(4):
            archive.writestr(str(number), b"")
    refused(lambda: formats.read(tmp_path / "c.zip"), "more than 3 files")


def test_a_zip_that_unpacks_to_more_than_it_says_is_refused(folder, tmp_path):
    """Nothing beyond the size in the list is unpacked; the checksum then fails."""
    data = (next(folder.iterdir())).read_bytes()
    path = forged(tmp_path / "a.zip", "a", data, file_size=len(data) - 50)
    refused(lambda: formats.read(path), "a.zip")


def test_encrypted_damaged_and_false_zips_are_refused(folder, tmp_path):
    refused(
        lambda: formats.read(forged(tmp_path / "secret.zip", "a", flag_bits=1)),
        "secret.zip: is encrypted",
    )
    whole = zipped(folder, tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-200])
    refused(lambda: formats.read(tmp_path / "cut.zip"), "cut.zip", "expected a zip file")
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        start = archive.infolist()[2].header_offset + 200
    (tmp_path / "bad.zip").write_bytes(whole[:start] + bytes(40) + whole[start + 40 :])
    refused(lambda: formats.read(tmp_path / "bad.zip"), "bad.zip", "copy or export it again")
    (tmp_path / "text.zip").write_text("no zip")
    refused(lambda: formats.read(tmp_path / "text.zip"), "text.zip", "expected a zip file")
    refused(lambda: formats.read(tmp_path / "none.zip"), "there is none")


def test_links_in_a_zip_lead_nowhere(folder, scan, tmp_path):
    path = zipped(folder, tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert np.array_equal(formats.read(path).array, scan.voxels.T)


# --- folders ---


def test_a_thousand_other_files_are_looked_at_by_their_first_bytes_alone(folder, scan, tmp_path):
    """Each is a gigabyte (of holes): reading them whole would not come to an end."""
    for number in range(1000):
        path = tmp_path / f"{number % 30}" / f"{number}.dat"
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(b"\x08\x00\x05\x00\xff\xff\xff\xff" if number % 10 == 0 else b"data")
            file.truncate(2**30)
    scan.write(tmp_path / "17" / "scan", seed=2)
    assert np.array_equal(formats.read(tmp_path).array, scan.voxels.T)


@pytest.mark.parametrize("keep", [132, "meta", 600])
def test_a_gigabyte_of_zeros_behind_a_good_beginning_is_refused(folder, tmp_path, keep):
    """As an interrupted copy leaves it.

    Read as elements of eight bytes they would not come to an end.
    """
    data = next(folder.iterdir()).read_bytes()
    keep = 144 + int.from_bytes(data[140:144], "little") if keep == "meta" else keep
    with (tmp_path / "zeros").open("wb") as file:
        file.write(data[:keep])
        file.truncate(2**30)
    refused(lambda: formats.read(tmp_path), "zeros", "copy it again")


def test_links_to_slices_and_to_folders_of_them_are_followed(tmp_path):
    """As version control of data (DataLad) and people with a full disk leave them."""
    scans = {name: Scan(noise(seed=seed)) for seed, name in enumerate(("anna", "ben"))}
    for name, scan in scans.items():
        scan.write(tmp_path / "store" / name)
    root = tmp_path / "root"
    (root / "anna").mkdir(parents=True)
    for file in (tmp_path / "store" / "anna").iterdir():
        (root / "anna" / file.name).symlink_to(file)
    (root / "ben").symlink_to(tmp_path / "store" / "ben")
    cases = find_cases([root])
    assert sorted(case.name for case in cases) == ["anna", "ben"]
    for case in cases:
        array = read_image(case, 1).array[0]
        assert np.array_equal(array, scans[case.name].voxels.T)


def test_links_in_a_circle_and_a_second_way_to_the_scan_are_no_scans(scan, tmp_path):
    scan.write(tmp_path / "root" / "scan")
    for name in ("again", "zz"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "root" / "scan")
    (tmp_path / "root" / "scan" / "round").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "first").symlink_to(tmp_path / "root" / "scan" / "IM0000.dcm")
    assert np.array_equal(formats.read(tmp_path / "root").array, scan.voxels.T)


def test_a_link_that_leads_nowhere_is_a_missing_slice(scan, tmp_path):
    """Its content was not fetched, or was moved: the stack may look whole without its end."""
    folder = scan.write(tmp_path / "scan")
    (folder / "IM0005.dcm").unlink()
    (folder / "IM0005.dcm").symlink_to(tmp_path / "gone")
    refused(lambda: formats.read(folder), "IM0005.dcm", "No such file")


def test_a_link_that_leads_nowhere_is_no_other_patient_s_trouble(tmp_path, monkeypatch):
    for seed, name in enumerate(("anna", "ben")):
        Scan(blobs(seed), patient=name).write(tmp_path / "in" / name)
    (tmp_path / "in" / "anna" / "IM0000.dcm").unlink()
    (tmp_path / "in" / "anna" / "IM0000.dcm").symlink_to(tmp_path / "gone")
    with pytest.raises(ScansFailed) as failure:
        predict_scans(fake_run(monkeypatch), [tmp_path / "in"], tmp_path / "out")
    assert list(failure.value.failed) == ["anna"]
    assert "anna/IM0000.dcm" in failure.value.failed["anna"]
    assert [path.name for path in failure.value.written] == ["ben.nii.gz"]


def test_a_link_to_a_pipe_or_a_device_is_passed_over(scan, tmp_path):
    folder = scan.write(tmp_path / "scan")
    os.mkfifo(tmp_path / "pipe")
    (folder / "pipe").symlink_to(tmp_path / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    assert np.array_equal(formats.read(folder).array, scan.voxels.T)


def test_too_many_files_are_refused(folder, monkeypatch):
    monkeypatch.setattr(tree, "MAX_FILES", 3)
    refused(lambda: formats.read(folder), "more than 3 files", "give the folder of the scan itself")


# --- cases ---


def test_a_folder_a_zip_and_a_file_are_named_after_themselves(folder, scan, tmp_path, monkeypatch):
    save([scan.enhanced()], tmp_path)
    (tmp_path / "IM0000.dcm").rename(tmp_path / "cleo.dcm")
    both = find_cases([folder, tmp_path / "cleo.dcm"])
    assert [(case.name, case.images) for case in both] == [
        ("anna", (folder,)),
        ("cleo", (tmp_path / "cleo.dcm",)),
    ]
    for case in both:
        assert np.array_equal(read_image(case, 1).array[0], scan.voxels.T)
    monkeypatch.chdir(folder)
    assert [case.name for case in find_cases([Path(".")])] == ["anna"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_subfolders_of_patients_are_cases_named_after_them(tmp_path, kind):
    scans = {
        name: Scan(noise(seed=seed), patient=name)
        for seed, name in enumerate(("dora", "emil", "fred"))
    }
    for name, scan in scans.items():
        scan.write(tmp_path / "all" / name / "study" / "series", seed=1)
    save([Scan(noise(seed=9), SAGITTAL).enhanced()], tmp_path / "all" / "gina")
    source = (
        tmp_path / "all"
        if kind == "folder"
        else zipped(tmp_path / "all", tmp_path / "all.zip", "upload/")
    )
    cases = find_cases([source])
    assert sorted(case.name for case in cases) == ["dora", "emil", "fred", "gina"]
    for case in cases:
        if case.name in scans:
            assert np.array_equal(read_image(case, 1).array[0], scans[case.name].voxels.T)
            assert case.images == (
                (source / case.name / "study" / "series",) if kind == "folder" else (source,)
            )


def test_multi_frame_files_side_by_side_are_cases_named_after_them(tmp_path):
    for name in ("p", "q"):
        save([Scan(noise()).enhanced()], tmp_path / "all")
        (tmp_path / "all" / "IM0000.dcm").rename(tmp_path / "all" / f"{name}.dcm")
    assert [case.name for case in find_cases([tmp_path / "all"])] == ["p", "q"]


@pytest.mark.parametrize("subfolder", ["", "upload"])
def test_a_damaged_file_of_one_patient_is_no_other_patient_s_trouble(
    tmp_path, monkeypatch, subfolder
):
    for seed, name in enumerate(("dora", "emil", "fred")):
        Scan(blobs(seed), patient=name).write(tmp_path / "all" / subfolder / name)
    file = next((tmp_path / "all" / subfolder / "emil").iterdir())
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ScansFailed) as failure:
        predict_scans(fake_run(monkeypatch), [tmp_path / "all"], tmp_path / "out")
    assert (
        list(failure.value.failed) == ["emil"]
        and f"emil/{file.name}: expected" in failure.value.failed["emil"]
    )
    assert [path.name for path in failure.value.written] == ["dora.nii.gz", "fred.nii.gz"]
    shutil.copy(file, tmp_path / "all" / subfolder / "nobody_s")
    refused(
        lambda: find_cases([tmp_path / "all"]), "nobody_s: expected"
    )  # it may have been all that there was of a patient


def test_a_damaged_multi_frame_file_is_no_other_file_s_trouble(tmp_path, monkeypatch):
    for name in ("p", "q"):
        save([Scan(blobs(0)).enhanced()], tmp_path / "all")
        (tmp_path / "all" / "IM0000.dcm").rename(tmp_path / "all" / f"{name}.dcm")
    formats.write(Volume(blobs(1), np.eye(4)), tmp_path / "all" / "r.nii.gz")
    (tmp_path / "all" / "p.dcm").write_bytes((tmp_path / "all" / "q.dcm").read_bytes()[:300])
    with pytest.raises(ScansFailed) as failure:
        predict_scans(fake_run(monkeypatch), [tmp_path / "all"], tmp_path / "out")
    assert list(failure.value.failed) == ["p"] and [
        path.stem for path in failure.value.written
    ] == ["q.nii", "r.nii"]


def test_several_series_of_a_study_ask_for_a_choice(folder, tmp_path):
    for number in (1, 2):
        Scan(noise(seed=number), series_uid=f"1.9.{number}", study_uid="1.9").write(
            tmp_path / "x" / f"series{number}"
        )
    refused(
        lambda: find_cases([tmp_path / "x"]),
        "1.9.1 (scan, 6 images)",
        "1.9.2 (scan, 6 images)",
        "--series-uid",
    )
    (case,) = find_cases([tmp_path / "x"], series_uid="1.9.2")
    assert case.name == "x"
    assert np.array_equal(read_image(case, 1).array[0], noise(seed=2).T)
    refused(
        lambda: find_cases([folder], series_uid="1.5"),
        "expected a series 1.5",
        "1.9.1 (scan, 6 images)",
    )


def test_what_libraries_log_is_not_for_users(tmp_path):
    """But the package's own lines are."""
    code = """if True:
        import logging, sys
        from dkuxnet.cli import commands
        sys.argv = ["dkuxnet", "info"]
        try:
            commands.main()
        finally:
            import nibabel
            for name in ("highdicom.base", "pydicom", "nibabel.global", "PIL", "dkuxnet.serve"):
                logging.getLogger(name).warning("by %s", name)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "by dkuxnet.serve\n" and "networks" in done.stdout


def test_the_command_shows_all_series_of_a_study_in_a_table(tmp_path):
    for number in range(15):
        Scan(
            noise((18 if number == 14 else 2, 5, 6 + number)),
            study_uid="1.9",
            series_uid=f"1.9.{number}",
            description=f"T{number} 腫瘍\x1b[31m",
        ).write(tmp_path / "x" / str(number))
    done = subprocess.run(
        [sys.executable, "-m", "dkuxnet", "prepare", tmp_path / "x", tmp_path / "prepared"],
        capture_output=True,
        text=True,
    )
    heading, *rows, error = done.stderr.splitlines()
    assert heading.split() == ["SERIES", "UID", "IMAGES", "SIZE", "MODALITY", "DESCRIPTION"]
    assert sorted(row.split()[0] for row in rows) == sorted(f"1.9.{number}" for number in range(15))
    (row,) = (row for row in rows if row.startswith("1.9.14 "))
    assert row.split() == ["1.9.14", "18", "20", "x", "5", "MR", "T14", "???[31m"]
    assert error.startswith("error: ") and "got 15" in error and "--series-uid" in error
    with pytest.raises(UserError) as caught:  # as `predict` reads it
        find_cases([tmp_path / "x"])
    assert caught.value.table == [heading, *rows]


# --- prepare and predict ---


def blobs(seed: int) -> np.ndarray:
    return (
        (1000 * gaussian_filter(np.random.default_rng(seed).normal(size=(14, 20, 22)), 2))
        .round()
        .astype(np.int16)
    )


def test_prepare_takes_dicom_as_it_takes_nifti(tmp_path):
    """A subfolder, a zip and a multi-frame file as images of a plain folder, their labels as
    NIfTI.
    """
    for form in ("dicom", "nifti"):
        (tmp_path / form / "labels").mkdir(parents=True)
        (tmp_path / form / "images").mkdir()
    images = tmp_path / "dicom" / "images"
    for seed, name in enumerate(("a", "b", "c")):
        scan = Scan(blobs(seed), SAGITTAL)
        scan.write(images / name, seed=seed)
        volume = formats.read(images / name)
        formats.write(volume, tmp_path / "nifti" / "images" / f"{name}.nii.gz")
        for form in ("dicom", "nifti"):
            label = Volume((volume.array > 0).astype(np.uint8), volume.affine)
            formats.write(label, tmp_path / form / "labels" / f"{name}.nii.gz")
        if name == "b":
            zipped(images / "b", images / "b.zip")
        if name == "c":
            save([scan.enhanced()], images)
            (images / "IM0000.dcm").rename(images / "c.dcm")
        if name != "a":
            for file in (images / name).iterdir():
                file.unlink()
            (images / name).rmdir()
    assert find_source(tmp_path / "dicom").layout == "folder"
    metas = [
        prepare_scans(tmp_path / form, tmp_path / f"prepared-{form}", processes=1)
        for form in ("dicom", "nifti")
    ]
    for meta in metas:
        for case in meta.cases:
            del case.sha256["json"]  # it names the scan's file
    assert [case.name for case in metas[0].cases] == ["a", "b", "c"]
    assert metas[0].cases == metas[1].cases
    assert metas[0].fingerprint.label_share == metas[1].fingerprint.label_share
    for name in "abc":
        first, second = (
            json.loads((tmp_path / f"prepared-{form}" / "cases" / f"{name}.json").read_text())
            for form in ("dicom", "nifti")
        )
        assert np.allclose(first["affine"], second["affine"], atol=1e-4)


def test_prepare_takes_a_tree_of_patients_and_calls_the_channel_by_its_modality(tmp_path):
    for seed, name in enumerate(("a", "b")):
        units = {"RescaleIntercept": -1024, "RescaleSlope": 1}
        Scan(blobs(seed), modality="CT").write(
            tmp_path / "ct" / name / "series", seed=seed, **units
        )
    volume = formats.read(tmp_path / "ct" / "b")
    (tmp_path / "ct" / "labels").mkdir()
    formats.write(
        Volume((volume.array > -1024).astype(np.uint8), volume.affine),
        tmp_path / "ct" / "labels" / "b.nii.gz",
    )
    meta = prepare_scans(tmp_path / "ct", tmp_path / "prepared", processes=1)
    assert meta.channels == ["CT"] and [case.labelled for case in meta.cases] == [False, True]
    (tmp_path / "ct" / "labels" / "b.nii.gz").rename(tmp_path / "ct" / "labels" / "z.nii.gz")
    refused(lambda: find_source(tmp_path / "ct"), "z.nii.gz", "'z'", "a, b")


def test_a_series_of_another_modality_than_the_run_s_is_told_once_and_segmented(
    tmp_path, monkeypatch
):
    """The fake run is of MRI."""
    Scan(blobs(0), modality="CT").write(tmp_path / "ct")
    Scan(blobs(0), modality="MR").write(tmp_path / "mr")
    run = fake_run(monkeypatch)
    with pytest.warns(DataWarning) as caught:
        predict_scans(run, [tmp_path / "ct", tmp_path / "mr"], tmp_path / "out")
    (line,) = (str(each.message) for each in caught)
    assert line == (
        f"case 'ct': {tmp_path / 'ct'}: DICOM calls it CT, where MR is expected; check that it is "
        "the scan"
    )
    assert (tmp_path / "out" / "ct.nii.gz").is_file()


def test_prepare_tells_of_a_series_of_another_modality_than_the_data_set_names(tmp_path):
    Scan(blobs(0), modality="MR").write(tmp_path / "scans")
    source = replace(find_source(tmp_path / "scans"), channels=("CT",))
    with pytest.warns(DataWarning, match="case 'scans': .*/scans: DICOM calls it MR, where CT is "):
        check_case(source, source.cases[0])


def test_a_label_map_lies_where_the_dicom_scan_lies(tmp_path, monkeypatch):
    """NIfTI by default; the same map as for the same scan as NIfTI, and its voxels lie where the
    standard puts them.
    """
    scan = Scan(blobs(0), SAGITTAL)
    scan.write(tmp_path / "patient", seed=1)
    run = fake_run(monkeypatch)
    (written,) = predict_scans(run, [tmp_path / "patient"], tmp_path / "out")
    assert written == tmp_path / "out" / "patient.nii.gz"
    image = nibabel.load(written)
    assert np.allclose(image.affine, np.diag([-1, -1, 1, 1]) @ scan.lps, atol=1e-4)
    formats.write(formats.read(tmp_path / "patient"), tmp_path / "patient.nrrd")
    (other,) = predict_scans(run, [tmp_path / "patient.nrrd"], tmp_path / "out2")
    label = formats.read(written, "label").array
    assert np.array_equal(label, formats.read(other, "label").array)
    voxels = scan.voxels.T
    bright = voxels > voxels.mean() + voxels.std()
    assert (label[bright] == 255).mean() > 0.95 and (label[voxels < 0] == 255).mean() < 0.05
