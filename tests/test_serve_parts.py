"""The parts of `dkuxnet serve` that need no server: the queue, names, headers, what is drawn and
what is warned of.
"""

import asyncio
import functools
import math
import threading
import time
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.uid import RLELossless

pytest.importorskip("fastapi")

import described
from dicom_series import Scan
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.images import read_image
from dkuxnet.prediction.segment import Segmentation
from dkuxnet.serve import monai_store
from dkuxnet.serve.guard import Guard, host_is_ours
from dkuxnet.serve.headers import check_header, check_zip
from dkuxnet.serve.label_folder import LabelFolder
from dkuxnet.serve.limits import Limits, Refused
from dkuxnet.serve.model import Model
from dkuxnet.serve.names import label_name, scan_suffix, without_paths
from dkuxnet.serve.reading import Reader, ReadScan, only_case, read_back, read_file
from dkuxnet.serve.segmenting import Work, class_warnings, doubts, scan_warnings
from dkuxnet.serve.tasks import Task, TaskQueue
from dkuxnet.serve.view import focus, view_path, view_step, write_views

NIFTI = (".nii", ".nii.gz")


class Held:
    """Work that goes on when it is told to."""

    def __init__(self):
        self.order, self.go = [], threading.Semaphore(0)

    def __call__(self, task):
        self.order.append(task.name)
        while not self.go.acquire(timeout=0.01):
            task.report("held")
        if task.name == "bad":
            raise UserError(f"{task.scan}: case 'scan' is bad")
        if task.name == "bug":
            raise KeyError("secret")
        return {"name": task.name}


@pytest.fixture
def held(tmp_path):
    work = Held()
    queue = TaskQueue(tmp_path, Limits(waiting=4, kept=2), work)
    yield queue, work
    queue.stop()


def add(queue: TaskQueue, name: str):
    task = queue.open(name, *NIFTI)
    task.scan.write_bytes(b"scan")
    queue.submit(task)
    return task


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_scans_come_one_by_one_in_the_order_in_which_they_were_complete(held):
    queue, work = held
    slow = queue.open("slow upload", *NIFTI)
    first, second = add(queue, "first"), add(queue, "second")
    until(lambda: first.state == "working")
    slow.scan.touch()
    queue.submit(slow)
    assert [queue.ahead(task) for task in (first, second, slow)] == [0, 1, 2]
    assert (second.state, slow.state, work.order) == ("waiting", "waiting", ["first"])
    queue.remove(second)
    assert queue.ahead(slow) == 1 and not second.folder.exists()
    work.go.release(2)
    assert first.finished.wait(10) and slow.finished.wait(10)
    assert (
        work.order == ["first", "slow upload"]
        and first.result == {"name": "first"}
        and not first.scan.exists()
    )


def test_places_are_limited_and_old_results_make_room(held, tmp_path):
    queue, work = held
    first = [add(queue, str(i)) for i in range(3)]
    queue.open("a", *NIFTI)
    with pytest.raises(Refused, match="4 scans are being worked on"):
        queue.open("b", *NIFTI)
    work.go.release(3)
    assert all(task.finished.wait(10) for task in first)
    until(lambda: not first[0].folder.exists())
    assert (
        queue.get(first[0].id) is None and [queue.get(task.id) for task in first[1:]] == first[1:]
    )


def test_what_is_being_worked_on_stops_when_nobody_wants_it(held):
    queue, work = held
    task, other = add(queue, "a"), add(queue, "b")
    until(lambda: task.state == "working")
    queue.remove(task)
    assert task.finished.wait(10) and not task.folder.exists()
    work.go.release()
    assert other.finished.wait(10) and other.state == "done"


def test_a_failure_is_one_line_without_folders_and_the_next_scan_goes_on(held, tmp_path, caplog):
    queue, work = held
    bad, bug, good = add(queue, "bad"), add(queue, "bug"), add(queue, "good")
    work.go.release(3)
    assert good.finished.wait(10)
    assert (bad.state, bad.error) == ("failed", "bad: this scan is bad")
    assert (
        bug.state == "failed"
        and "secret" not in bug.error
        and "KeyError" in bug.error
        and caplog.records
    )
    assert good.state == "done"


def test_the_queue_ends_in_the_middle_of_a_scan(tmp_path):
    queue = TaskQueue(tmp_path, Limits(), Held())
    task = add(queue, "a")
    until(lambda: task.state == "working")
    queue.stop()
    assert not queue._thread.is_alive() and task.state == "failed"


@pytest.mark.parametrize(
    "message, shown",
    [
        ("/tmp/x-1/tok/scan.nii.gz: expected NIfTI", "anna.nii.gz: expected NIfTI"),
        (
            "case 'scan': 3 voxels are NaN in /tmp/x-1/tok/scan.nii.gz; repair",
            "this scan: 3 voxels are NaN in anna.nii.gz; repair",
        ),
        (
            "case 'scan': 1 channels in scan.nii.gz, expected 2",
            "this scan: 1 channels in anna.nii.gz, expected 2",
        ),
        (
            "read /srv/models/run 1/final.safetensors or\n(/home/me/a.dcm)",
            "read run 1/final.safetensors or (a.dcm)",
        ),
        ("it holds 3/4 of image/png", "it holds 3/4 of image/png"),
    ],
)
def test_no_folder_of_the_machine_is_told(message, shown):
    assert (
        without_paths(message, Path("/tmp/x-1/tok/scan.nii.gz"), "C:\\scans\\anna.nii.gz") == shown
    )


@pytest.mark.parametrize(
    "name, suffix",
    [("A.NII.GZ", ".nii.gz"), ("a.b.nii", ".nii"), ("a.dcm", ".dcm"), ("s.ZIP", ".zip")],
)
def test_a_name_says_the_format(name, suffix):
    assert scan_suffix(name) == suffix
    assert (
        label_name(name, ".nii.gz").endswith("_segmentation.nii.gz")
        and suffix not in label_name(name, "").lower()
    )


@pytest.mark.parametrize(
    "host, bound, ours",
    [
        ("192.168.0.7:8000", "0.0.0.0", True),
        ("10.0.0.1", "::", True),
        ("evil.example", "0.0.0.0", False),
        ("lab-pc:8000", "lab-pc", True),
        ("192.168.0.7", "192.168.0.7", True),
        ("192.168.0.8", "192.168.0.7", False),
        ("localhost.", "127.0.0.1", True),
        ("", "0.0.0.0", False),
        ("", "", False),
    ],
)
def test_which_hosts_are_this_server(host, bound, ours):
    assert host_is_ours(host, bound) is ours


def test_an_upload_that_stands_still_or_drips_is_dropped_and_a_whole_one_may_wait_for_its_answer():
    """What comes after the whole body is the news that the sender is gone, which may take as long
    as the segmentation.
    """

    async def silent() -> dict:
        await asyncio.sleep(1)
        return {"type": "http.disconnect"}

    guard = Guard(None, "127.0.0.1", Limits(silence_seconds=0.05))
    with pytest.raises(Refused, match="stood still"):
        asyncio.run(guard._limited(silent)())

    async def dripping() -> dict:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def all_of(guard: Guard) -> None:
        limited = guard._limited(dripping)
        while True:
            await limited()

    with pytest.raises(Refused, match=r"brought less than 1 MB in 0.05 seconds"):
        asyncio.run(asyncio.wait_for(all_of(guard), 5))
    patient = Guard(None, "127.0.0.1", Limits(least_bytes=1, upload_seconds=0.1))
    with pytest.raises(Refused, match=r"took longer than 0.1 seconds"):
        asyncio.run(asyncio.wait_for(all_of(patient), 5))
    messages = iter([{"type": "http.request", "body": b"all"}])

    async def whole() -> dict:
        return next(messages, None) or await silent()

    async def twice() -> dict:
        limited = guard._limited(whole)
        await limited()
        return await limited()

    assert asyncio.run(twice())["type"] == "http.disconnect"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".h5"])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_says_its_voxels_before_they_are_read(tmp_path, ending, channels):
    path = tmp_path / f"a{ending}"
    formats.write(Volume(np.zeros((channels, 4, 5, 6), np.float32), np.eye(4)), path)
    check_header(only_case(path), 120 * channels)
    with pytest.raises(UserError, match=f"{120 * channels} voxels by its header"):
        check_header(only_case(path), 120 * channels - 1)


@pytest.mark.parametrize("ending", [".zip", ".dcm"])
def test_dicom_says_its_voxels_before_they_are_read(tmp_path, ending):
    """Compressed, a file of a few kilobytes unpacks to gigabytes: its size and its zip's directory
    say nothing.
    """
    path, scan = tmp_path / f"scan{ending}", Scan(np.zeros((3, 40, 50), np.uint16))
    slices = [scan.enhanced()] if ending == ".dcm" else scan.slices()
    for number, one in enumerate(slices):
        one.compress(RLELossless)
        one.save_as(
            path if ending == ".dcm" else tmp_path / f"{number}.dcm", enforce_file_format=True
        )
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(len(slices)):
                archive.write(tmp_path / f"{number}.dcm", f"{number}.dcm")
    check_header(only_case(path), 6000)
    assert path.stat().st_size < 8 * 5999
    with pytest.raises(UserError, match=r"has 6,000 voxels by its header"):
        check_header(only_case(path), 5999)


@pytest.mark.parametrize(
    "name, said", [("a", "3 files of"), (1000 * "a", "its directory is far longer")]
)
def test_a_zip_of_too_many_files_is_refused(tmp_path, monkeypatch, name, said):
    """Each costs memory by being listed, and the directory is what lists them."""
    monkeypatch.setattr("dkuxnet.serve.headers.MAX_FILES", 2)
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{name}{number}.dcm", b"")
    with pytest.raises(UserError, match=said):
        check_zip(tmp_path / "scan.zip", 1000)


def test_a_large_scan_is_drawn_coarser_where_it_is_finest():
    assert view_step((100, 100, 50), (1, 1, 2)) == (1, 1, 1)
    assert view_step((100, 100, 50), (1, 1, 2), most=125_000) == (2, 2, 1)
    assert view_step((2, 2, 2), (1, 1, 1), most=1) == (2, 2, 2)


def test_what_is_drawn_lies_on_the_scan(tmp_path, monkeypatch):
    monkeypatch.setattr("dkuxnet.serve.view.view_step", lambda shape, spacing_mm: (2, 1, 3))
    affine = np.array([[0, -1.0, 0, 5], [2, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])
    scan = Volume(np.random.default_rng(0).normal(size=(1, 10, 8, 9)).astype(np.float32), affine)
    indices = np.zeros((10, 8, 9), np.uint8)
    indices[4:9, 2:5, 6] = 2
    step = write_views(scan, indices, np.full((10, 8, 9), 0.5, np.float32), tmp_path)
    drawn = formats.read(view_path(tmp_path, "classes"))
    assert np.array_equal(drawn.array, indices[::2, :, ::3])
    assert np.allclose(drawn.affine @ [1, 1, 1, 1], affine @ [2, 1, 3, 1])
    assert focus(indices, step) == [3, 3, 2]
    assert np.all(formats.read(view_path(tmp_path, "uncertainty")).array == 128)


def test_the_warnings_are_those_that_hold(tmp_path):
    indices = np.zeros((9, 9, 9), np.uint8)
    indices[3:6, 3:6, 3:6] = 1
    names = ["background", "organ"]
    assert class_warnings(names, indices) == []
    assert doubts({"organ": 0.7}) == doubts({"organ": math.nan}) == []
    assert doubts({"organ": 0.69, "tumour": 0.9}) == [
        "The model is unsure of organ (confidence 0.69); 0.70 is the least. Look at the "
        "uncertainty layer."
    ]
    assert class_warnings([*names, "tumour"], indices) == ["No tumour was found in this scan."]
    for place in [
        np.s_[0, 4, 4],
        np.s_[8, 4, 4],
        np.s_[4, 0, 4],
        np.s_[4, 8, 4],
        np.s_[4, 4, 0],
        np.s_[4, 4, 8],
    ]:
        at_edge = indices.copy()
        at_edge[place] = 1
        assert "reaches the edge" in class_warnings(names, at_edge)[0]
    scan = Volume(np.zeros((1, 9, 9, 9), np.float32), np.diag([1.0, 1, 5, 1]))
    formats.write(scan, tmp_path / "scan.h5")
    assert scan_warnings(True, scan, [2.5] * 3) == []
    assert "5.0 mm long, much coarser than the 2.0 mm" in scan_warnings(True, scan, [2.0] * 3)[0]
    assert formats.has_geometry(tmp_path / "scan.h5")
    import h5py

    with h5py.File(tmp_path / "scan.h5", "a") as file:
        del file.attrs["affine"]
    assert not formats.has_geometry(tmp_path / "scan.h5")
    assert "0.625 mm was assumed" in scan_warnings(False, scan, [2.5] * 3)[0]


class Labels:
    """A Segmenter of three classes by turns."""

    labels, channels = {"background": 0, "wall": 100, "LA": 255}, ["MRI"]
    plan = described.plan(spacing_mm=[1.0] * 3)

    def __call__(self, scan, uncertainty, progress):
        label = np.array([0, 100, 255], np.uint8)[
            np.arange(scan.array.size).reshape(scan.shape) % 3
        ]
        return Segmentation(
            Volume(label, scan.affine), uncertainty=Volume(np.zeros(scan.shape), scan.affine)
        )


def read_here(task: Task, max_voxels: int = 1000) -> ReadScan:
    """What `Reader` gives, read in this process."""
    voxels = task.folder / "voxels"
    answer = read_file(str(task.scan), str(voxels), max_voxels, Labels.channels)
    return read_back(answer, voxels, len(Labels.channels), max_voxels)


def segmented(
    folder: Path,
    array: np.ndarray,
    as_indices: bool = False,
    qform: np.ndarray | None = None,
    max_voxels: int = 1000,
    network_shape: tuple[int, ...] | None = None,
) -> Task:
    """The task of a NIfTI scan, finished."""
    segmenter = Labels()
    segmenter.network_shape = lambda scan: network_shape or scan.shape
    read = functools.partial(read_here, max_voxels=max_voxels)
    queue = TaskQueue(folder, Limits(), Work(segmenter, read, max_voxels))
    task = queue.open("a.nii", *NIFTI, as_indices)
    formats.write(Volume(array, np.eye(4)), task.scan)
    if qform is not None:
        image = nibabel.load(task.scan)
        image.set_qform(qform, code="scanner")
        task.scan.write_bytes(image.to_bytes())
    queue.submit(task)
    assert task.finished.wait(10)
    queue.stop()
    return task


NOISE = np.random.default_rng(0).normal(size=(6, 6, 6))


@pytest.mark.parametrize("as_indices, values", [(False, {0, 100, 255}), (True, {0, 1, 2})])
def test_slicer_gets_the_classes_in_their_order_whatever_their_values(tmp_path, as_indices, values):
    """3D Slicer takes the n-th name of `label_names` for the value n; a download has the training
    data's values.
    """
    task = segmented(tmp_path, NOISE, as_indices)
    assert task.state == "done", task.error
    assert set(np.unique(formats.read(task.label).array).tolist()) == values
    assert [(c["name"], c["index"], c["voxels"]) for c in task.result["classes"]] == [
        ("wall", 1, 72),
        ("LA", 2, 72),
    ]


def test_what_is_wrong_with_the_scan_itself_is_told_on_the_page(tmp_path):
    """The command line tells it on stderr, where nobody who drops a scan on a page looks."""
    usual = segmented(tmp_path, NOISE).result["warnings"]
    two_places = segmented(
        tmp_path, NOISE, qform=np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 9
    ).result["warnings"]
    assert two_places[1:] == usual
    assert (
        two_places[0].startswith("A.nii: its sform and its qform differ by 9 mm")
        and str(tmp_path) not in two_places[0]
    )
    label_map = segmented(tmp_path, (NOISE > 0).astype(np.float32)).result["warnings"]
    assert (
        "this scan: a.nii has 2 different values only, as a label map" in label_map[0].lower()
        and label_map[1:] == usual
    )


def test_a_scan_of_another_modality_is_told_on_the_page(tmp_path):
    segmenter = Labels()
    segmenter.network_shape = lambda scan: scan.shape
    queue = TaskQueue(tmp_path, Limits(), Work(segmenter, read_here, 1000))
    task = queue.open("anna.dcm", ".dcm", ".nii.gz")
    Scan(np.arange(216, dtype=np.int16).reshape(6, 6, 6), modality="CT").enhanced().save_as(
        task.scan, enforce_file_format=True
    )
    queue.submit(task)
    assert task.finished.wait(10)
    queue.stop()
    assert (
        task.result["warnings"][0]
        == "This scan: DICOM calls it CT, where MR is expected; check that it is the scan."
    )


def test_a_scan_that_is_large_once_it_is_read_is_refused(tmp_path, monkeypatch):
    """Where a header says nothing; and a coarse scan, which is small in its file, at the spacing
    of the model.
    """
    fine = segmented(tmp_path, NOISE, network_shape=(60, 60, 60))
    assert fine.state == "failed" and "has 216,000 voxels at the spacing of the model" in fine.error
    monkeypatch.setattr("dkuxnet.serve.reading.check_header", lambda case, most: 0)
    read = segmented(tmp_path, NOISE, max_voxels=215)
    assert read.state == "failed" and "has 216 voxels with all its channels" in read.error


def test_a_long_and_thin_scan_is_refused(tmp_path):
    """Its file is small, but resampling takes memory by the square of an edge."""
    thin = np.random.default_rng(0).normal(size=(2, 2, 5000)).astype(np.float32)
    task = segmented(tmp_path, thin, max_voxels=30_000)
    assert task.state == "failed" and "5,000 voxels along an edge in its file" in task.error
    (tmp_path / "b").mkdir()
    task = segmented(tmp_path / "b", NOISE, max_voxels=30_000, network_shape=(2, 2, 5000))
    assert "5,000 voxels along an edge at the spacing of the model" in task.error


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".h5"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_scan_comes_back_from_the_child_as_it_was_read(tmp_path, ending, channels):
    folder = tmp_path / "task"
    folder.mkdir()
    task = Task("x", f"a{ending}", ending, ".nii.gz", False, folder)
    noise = np.random.default_rng(0).normal(size=(channels, 4, 5, 6)).astype(np.float32)
    affine = np.array([[0, -1.0, 0, 5], [2, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])
    formats.write(Volume(noise, affine), task.scan)
    reader = Reader(Limits(), ["MRI"] * channels, tmp_path / "reading")
    read = reader(task)
    reader.stop()
    here = read_image(only_case(task.scan), channels)
    assert np.array_equal(read.volume.array, here.array) and read.volume.array.dtype == np.float32
    assert np.array_equal(read.volume.affine, here.affine) and read.volume.array.flags.writeable
    assert [path.name for path in folder.iterdir()] == [task.scan.name]
    assert not list((tmp_path / "reading").iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [1, 10**6, 10**6, 10**6]},
        {"shape": [1, 4, 5, 7]},
        {"shape": [1, -4, -5, 6]},
        {"shape": [4, 5, 6]},
        {"shape": [2, 2, 5, 6]},
        {"affine": [[0.0] * 4] * 4},
        {"affine": [[1.0]]},
        {"told": ["x"] * 1000},
        {"told": [1]},
        {"oriented": "yes"},
        {"order": "K"},
        {"more": 1},
    ],
)
def test_what_a_child_says_is_checked(tmp_path, wrong):
    voxels = tmp_path / "voxels"
    formats.write(Volume(NOISE[:4, :5, :6], np.eye(4)), tmp_path / "scan.nii")
    answer = read_file(str(tmp_path / "scan.nii"), str(voxels), 1000, ["MRI"])
    assert read_back(answer, voxels, 1, 1000).volume.shape == (4, 5, 6)
    with pytest.raises(UserError):
        read_back(answer | wrong, voxels, 1, 1000)
    with pytest.raises(UserError):
        read_back(["no dict"], voxels, 1, 1000)


def label_folder(folder: Path) -> LabelFolder:
    return LabelFolder(folder, folder, Model("m", Labels()), lambda: None, folder)


def test_a_label_folder_that_prepare_would_read_otherwise_is_refused(tmp_path):
    def refused(folder: Path) -> str:
        with pytest.raises(UserError) as error:
            label_folder(folder).check()
        return str(error.value)

    assert "there is none" in refused(tmp_path / "none")
    (tmp_path / "images").mkdir()
    formats.write(Volume(np.ones((4, 5, 6)), np.eye(4)), tmp_path / "images/a.nii")
    label_folder(tmp_path).check()
    described = tmp_path / "dataset.json"
    described.write_text('{"labels": {"background": 0, "LA": 1}}')
    assert "dataset.json has the labels {'background': 0, 'LA': 1}" in refused(tmp_path)
    described.write_text('{"channel_names": {"0": "T1", "1": "T2"}}')
    assert "its scans have 2 channel(s), the model takes 1 (MRI)" in refused(tmp_path)
    described.write_text('{"channel_names": {"0": "T1"}, "dataset": {}}')
    assert "this is the layout nnunet" in refused(tmp_path)


def test_without_a_label_folder_the_plugin_is_told_how_to_get_one():
    for path in ("/datastore/image", "/datastore/label", "/activelearning/{strategy}"):
        (route,) = (r for r in monai_store.router(None, Limits()).routes if r.path == path)
        arguments = {"strategy": "first"} if "strategy" in path else {"image": "x"}
        with pytest.raises(Refused, match="start it with `dkuxnet serve RUN --label-folder"):
            if asyncio.iscoroutinefunction(route.endpoint):
                asyncio.run(route.endpoint(request=None, **arguments))
            else:
                route.endpoint(**arguments)
