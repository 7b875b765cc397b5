"""DICOMweb: a real Orthanc holds our SEG beside its series, and a false archive misbehaves."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from typer.testing import CliRunner

from dicom_series import Scan
from dkuxnet.cli import commands as cli
from dkuxnet.core.config import validate
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.data import formats
from dkuxnet.data.dicom import web
from dkuxnet.data.dicom.structures import read_structures
from dkuxnet.data.dicom.web import Archive, ArchiveError, read_credentials
from dkuxnet.prediction import segment
from dkuxnet.prediction.archive import predict_study
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.prediction.watch import watch_archive
from dkuxnet.runs.folder import RunFolder
from test_dicom_seg import blobs, geometry
from test_predict import fake_run

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SECRET = "s3cret-w0rd"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run on the disk, for series of MR, whose predictor is a threshold."""
    fake_run(monkeypatch)
    _, _, manifest = segment.load_predictor(None, None, None)
    RunFolder.make(tmp_path / "heart", validate({}), manifest)
    monkeypatch.setenv("DKUXNET_DICOMWEB_USER", "ann")
    monkeypatch.setenv("DKUXNET_DICOMWEB_PASSWORD", SECRET)
    return tmp_path / "heart"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[str]:
    """The address of an empty Orthanc of our own, on this machine alone."""
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"ann": SECRET},
        "Plugins": [str(PLUGIN)],
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    process = subprocess.Popen(
        ["Orthanc", folder / "settings.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < until, "Orthanc does not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.kill()
        process.wait()


def send(url: str, images: list[Dataset], folder: Path) -> None:
    """Store images in the archive, as a scanner would."""
    folder.mkdir(exist_ok=True)
    archive = Archive(url, read_credentials())
    for number, image in enumerate(images):
        path = folder / f"{number}.dcm"
        image.save_as(path, enforce_file_format=True)
        archive.store(path)


def command(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(map(str, words)))
    told = [str(result.exception)] if isinstance(result.exception, UserError) else []
    return result.exit_code, "\n".join([result.output, *told])


def segs(url: str, study: str, folder: Path) -> list[Path]:
    """The SEGs of a study, fetched."""
    archive = Archive(url, read_credentials())
    found = [each for each in archive.series(study) if each.modality == "SEG"]
    for each in found:
        archive.fetch(each, folder / each.uid)
    return sorted(folder.rglob("*.dcm"))


def by_pydicom(path: Path, like: np.ndarray, origin: float, step: float) -> np.ndarray:
    """(columns, rows, slices) of a SEG of one segment of an axial scan, by its own words alone."""
    seg, label = dcmread(path), np.zeros(like.shape, bool)
    for frame, groups in zip(
        seg.pixel_array.reshape(-1, seg.Rows, seg.Columns),
        seg.PerFrameFunctionalGroupsSequence,
        strict=True,
    ):
        z = groups.PlanePositionSequence[0].ImagePositionPatient[2]
        label[:, :, round((float(z) - origin) / step)] = frame.T
    return label


# --- a real archive ---


def test_orthanc_holds_our_seg_beside_its_series(orthanc, run, tmp_path):
    scan = Scan(blobs(), modality="CT")
    local = scan.write(tmp_path / "local")
    send(orthanc, scan.slices(), tmp_path / "sent")
    send(
        orthanc,
        Scan(blobs()[:2], study_uid=scan.study_uid, modality="OT").slices(),
        tmp_path / "other",
    )
    asked = "predict", run, "--dicomweb", orthanc, "--study", scan.study_uid
    code, told = command(*asked)  # a series of CT is not what a model of MR takes by itself
    assert code == 1 and "expected one series that the model takes, got 0 of 2" in told
    code, told = command(*asked, "--series", scan.series_uid)
    assert code == 0 and f"1 label map in {orthanc}, as DICOM SEG" in told, told

    (seg,) = segs(orthanc, scan.study_uid, tmp_path / "back")
    (nifti,) = predict_scans(run, [local], tmp_path / "nifti")
    label = formats.read(nifti, "label")
    assert label.array.any()
    read = hd.seg.segread(seg).get_volume(combine_segments=True)
    found = read.match_geometry(geometry(label), tol=1e-3).array
    assert np.array_equal(found > 0, label.array > 0)
    straight = by_pydicom(seg, blobs().T, scan.position[2], scan.spacing_mm[0])
    assert np.array_equal(straight, formats.read(nifti, "label").array > 0)

    said = dcmread(seg)
    assert said.StudyInstanceUID == scan.study_uid and said.PatientID == "P1"
    (cited,) = said.ReferencedSeriesSequence
    assert cited.SeriesInstanceUID == scan.series_uid
    algorithm = said.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "dkuxnet heart"
    assert "steps final" in algorithm.AlgorithmVersion
    assert said.SeriesDescription == "dkuxnet label, to be checked"
    assert said.ImageComments == (
        "DICOM calls it CT, where MR is expected; check that it is the scan"
    )

    code, told = command(*asked, "--series", scan.series_uid, "--output", tmp_path / "out")
    assert code == 0 and f"1 label map in {tmp_path / 'out'}" in told
    here = formats.read(tmp_path / "out" / f"{scan.series_uid}.nii.gz", "label")
    assert np.array_equal(here.array, label.array)
    code, told = command(*asked, "--series", scan.series_uid, "--format", "rtstruct")
    assert code == 0 and "as RT Structure Set" in told
    listed = Archive(orthanc, read_credentials()).series(scan.study_uid)
    (drawn,) = (each for each in listed if each.modality == "RTSTRUCT")
    assert len(listed) == 4
    Archive(orthanc, read_credentials()).fetch(drawn, tmp_path / "drawn")
    (path,) = (tmp_path / "drawn").iterdir()
    (structure,) = read_structures(path)
    assert np.array_equal(structure.mask(path, formats.read(local)), label.array > 0)


def test_each_new_series_is_answered_once_whatever_breaks_off(orthanc, run, tmp_path, monkeypatch):
    told: list[str] = []
    faults: list[str] = []

    def watch(**options) -> int:
        told.clear(), faults.clear()
        return watch_archive(
            run,
            orthanc,
            tmp_path / "state",
            days=0,
            interval_s=0.01,
            once=True,
            tell=told.append,
            tell_fault=faults.append,
            **options,
        )

    def answers() -> int:
        return sum(s.modality == "SEG" for s in archive.series(scan.study_uid))

    scan, archive = Scan(blobs()), Archive(orthanc, read_credentials())
    slices = scan.slices()
    send(orthanc, slices[:-2], tmp_path / "part")
    scout = Scan(blobs()[:2], study_uid=scan.study_uid, description="scout")
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    send(orthanc, scout.slices(ImageType=kind), tmp_path / "scout")
    gap = Scan(blobs(), study_uid=scan.study_uid, description="hole").slices()
    send(orthanc, gap[:3] + gap[4:], tmp_path / "gap")

    assert watch(description="nothing like it") == 0 and not told
    with pytest.raises(UserError, match="unknown format 'auto'"):
        watch(form="auto")
    with monkeypatch.context() as broken:  # the archive dies when it is to store
        refusal = ArchiveError("it does not answer")
        broken.setattr(Archive, "store", lambda self, path: (_ for _ in ()).throw(refusal))
        watch()
    assert answers() == 0 and any("it does not answer; it waits in" in line for line in faults)
    assert any(f"series {scout.series_uid}" in line and "left alone" in line for line in told)
    assert any(f"{gap[0].SeriesInstanceUID} misses 1 slice" in line for line in faults)

    assert watch() == 0  # begun anew, it sends what waits, and tells no fault again
    assert answers() == 1 and told == [
        f"series {scan.series_uid}: {len(slices) - 2} images, answered"
    ]
    assert watch() == 0 and answers() == 1 and not told

    send(orthanc, slices[-2:], tmp_path / "rest")  # it was not complete
    assert watch() == 0 and answers() == 2
    assert not os.listdir(tmp_path / "state" / "unsent")
    assert not (tmp_path / "state" / "work").exists()


# --- an archive that misbehaves ---


class Fake:
    """Holds one scan. fault: what it does wrong. stored: the bodies that were sent to be stored."""

    def __init__(self, scan: Scan):
        self.scan, self.fault, self.stored = scan, "", []
        self.headers: list[dict[str, str]] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        body, kind = b"", "application/dicom+json"
        self.headers.append(dict(handler.headers))
        if self.fault.isdigit():
            handler.send_response(int(self.fault))
            handler.send_header("Location", "http://127.0.0.1:1/elsewhere")
        else:
            handler.send_response(200)
        if self.fault == "slow":
            time.sleep(0.6)
        if path.endswith("/instances"):
            body = json.dumps([{}] * len(self.scan.voxels)).encode()
        elif path.endswith("/series"):
            body = json.dumps([self.listed()] if "offset=0" in handler.path else []).encode()
        elif path.endswith(self.scan.series_uid):
            body, kind = self.images(), 'multipart/related; type="application/dicom"; boundary=b'
        if self.fault == "page":
            body = b"<html>Welcome</html>"
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with suppress(BrokenPipeError):
            handler.wfile.write(body[: len(body) // 2] if self.fault == "broken" else body)

    def listed(self) -> dict[str, dict]:
        values = {
            web.STUDY: self.scan.study_uid,
            web.SERIES: self.scan.series_uid,
            web.MODALITY: "MR",
            web.IMAGES: len(self.scan.voxels),
        }
        return {tag: {"Value": [value]} for tag, value in values.items()}

    def images(self) -> bytes:
        body = BytesIO()
        for image in self.scan.slices()[: 3 if self.fault == "half" else None]:
            body.write(b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n")
            image.save_as(body, enforce_file_format=True)
        body.write(b"\r\n--b--")
        return body.getvalue()


@pytest.fixture
def fake() -> Iterator[tuple[str, Fake]]:
    """The address of a false archive, and the archive."""
    archive = Fake(Scan(blobs()))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            archive.answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(409)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/pacs", archive
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("401", "it answers 401: it wants other credentials"),
        ("503", "it answers 503: Service Unavailable"),
        ("302", "it leads to another address"),
        ("slow", "nothing came for 0.3 s"),
        ("page", "what it answers is not DICOMweb"),
        ("half", "expected 14 images, but 3 came"),
        ("broken", "the connection broke off"),
    ],
)
def test_an_archive_that_misbehaves_is_one_line(run, fake, monkeypatch, tmp_path, fault, part):
    if fault == "slow":
        monkeypatch.setattr(web, "ANSWER_S", 0.3)
    url, archive = fake
    archive.fault = fault
    with pytest.raises(ArchiveError) as caught:
        predict_study(run, url, archive.scan.study_uid)
    assert str(caught.value).startswith(url) and part in str(caught.value)
    assert SECRET not in str(caught.value)


def test_half_a_series_is_not_answered_and_not_lost(run, fake, tmp_path):
    url, archive = fake
    archive.fault = "half"
    faults: list[str] = []

    def watch() -> int:
        return watch_archive(run, url, interval_s=0, once=True, tell_fault=faults.append)

    assert watch() == 1 and "expected 14 images, but 3 came" in faults[0]
    assert not (run / "watch" / "answered.json").exists()
    archive.fault = ""
    assert watch() == 1 and "it answers 409: it does not take it; it waits in" in faults[1]
    assert len(os.listdir(run / "watch" / "unsent")) == 1


@pytest.mark.parametrize("of_memory", [True, False])
def test_what_fails_for_want_of_memory_is_tried_again_and_all_else_is_not(
    run, fake, monkeypatch, of_memory
):
    url, _ = fake
    faults: list[str] = []

    def fail(*args: object) -> None:
        if of_memory:
            raise UserError("out of memory") from MemoryError()
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("dkuxnet.prediction.watch.segment_case", fail)
    for _ in range(2):
        watch_archive(run, url, interval_s=0, once=True, tell_fault=faults.append)
    assert len(faults) == (2 if of_memory else 1)
    assert ("out of memory" if of_memory else "ZeroDivisionError('a bug')") in faults[0]


def test_an_archive_that_is_down_is_one_line(run):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    code, told = command("predict", run, "--dicomweb", f"http://127.0.0.1:{port}", "--study", "1.2")
    assert code == 1 and "it cannot be reached (Connection refused)" in told


def test_a_segmentation_that_the_archive_does_not_take_is_kept(run, fake):
    url, archive = fake
    with pytest.raises(
        UserError, match=r"answers 409: it does not take it; .* is kept in"
    ) as caught:
        predict_study(run, url, archive.scan.study_uid)
    kept = Path(str(caught.value).rsplit(" ", 1)[1])
    assert dcmread(kept / f"{archive.scan.series_uid}.dcm").Modality == "SEG"
    shutil.rmtree(kept.parent)


# --- credentials ---


def test_a_token_is_sent_and_neither_netrc_nor_a_port_is_lost(run, fake, monkeypatch, tmp_path):
    url, archive = fake
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    secrets = tmp_path / "secrets.toml"
    secrets.write_text(f'token = "{SECRET}"')
    secrets.chmod(0o644)
    with pytest.raises(UserError, match="others than its owner can read it: chmod 600"):
        read_credentials(secrets)
    secrets.chmod(0o600)
    Archive(url, read_credentials(secrets)).series(archive.scan.study_uid)
    Archive(url).series(archive.scan.study_uid)
    first, *_, last = archive.headers
    assert first["Authorization"] == f"Bearer {SECRET}" and "Authorization" not in last
    assert first["Host"] == url.split("/")[2]


@pytest.mark.parametrize(
    "names",
    [{"user": "ann"}, {"user": "a", "password": SECRET, "token": "t"}, {"token": SECRET + "\nx"}],
)
def test_half_a_pair_or_a_broken_secret_is_refused_and_not_repeated(monkeypatch, names):
    for name in web.SECRETS:
        monkeypatch.setenv(f"DKUXNET_DICOMWEB_{name.upper()}", names.get(name, ""))
    with pytest.raises(UserError) as caught:
        read_credentials()
    assert SECRET not in str(caught.value)


def test_an_address_holds_no_credentials_and_is_encrypted():
    for url in (
        f"https://ann:{SECRET}@pacs/x",
        f"https://pacs/x?token={SECRET}",
        f"ftp://{SECRET}",
    ):
        with pytest.raises(UserError) as caught:
            Archive(url)
        assert SECRET not in str(caught.value)
    with pytest.warns(DataWarning, match="go to pacs in the clear"):
        Archive("http://pacs/dicom-web")


# --- the commands ---


def test_ctrl_c_ends_the_watch_cleanly(run, fake, monkeypatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dkuxnet.prediction.watch.time.sleep", interrupt)
    code, told = command("watch", run, "--dicomweb", fake[0])
    assert code == 0 and told.rstrip().endswith("ended") and "series of MR" in told
