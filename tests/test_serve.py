"""`dkuxnet serve` as a process of its own: the page's addresses, the limits, and what is left
behind.
"""

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import re
import signal
import socket
import struct
import time
import zipfile
from pathlib import Path
from urllib.parse import urlencode

import h5py
import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi")

from dicom_series import Scan
from dkuxnet.core.schemas import Suggestion, Suggestions
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.runs.suggestions import write_suggestions
from serving import Server, outcome, send, serving, tiny_run, write_oblique, write_scan

MAX_MB, MAX_VOXELS = 8, 120_000
# an upload
STARTED = b"POST /jobs?name=a.nii HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n"


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory) -> Path:
    return tiny_run(prepared, tmp_path_factory.mktemp("serve") / "my run")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """A label folder of two oblique scans, of which `dkuxnet suggest` named the second."""
    folder = tmp_path_factory.mktemp("serve") / "to label"
    (folder / "images").mkdir(parents=True)
    for name in ("cleo", "dora"):
        write_oblique(folder / "images" / f"{name}.nii.gz")
    named = Suggestion(name="dora", path="dora.nii.gz", reason="larger than any labelled one")
    write_suggestions(run, Suggestions(scans=[named]))
    return folder


@pytest.fixture(scope="module")
def server(run, folder, tmp_path_factory) -> Server:
    temp = tmp_path_factory.mktemp("serve") / "temp"
    limits = "--max-upload-mb", str(MAX_MB), "--max-voxels", str(MAX_VOXELS)
    with serving(run, temp, *limits, "--label-folder", str(folder)) as process:
        yield process
        with process.client() as client:  # Ctrl-C in the middle of its windows
            busy = send(client, write_scan(temp.parent / "big.nii.gz", 46))["id"]
            wait_for(lambda: client.get(f"/jobs/{busy}").json()["done"])
        assert process.stop() == (0, "")  # no traceback in any of these tests
        assert list(temp.iterdir()) == []


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "anna.nii.gz")


# --- from the upload to the download ---


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".h5", ".zip"])
def test_the_label_map_is_the_one_that_predict_writes(client, run, tmp_path, ending):
    scan = (
        write_scan(tmp_path / f"anna b{ending}")
        if ending != ".zip"
        else write_dicom_zip(tmp_path / "anna b.zip")
    )
    (written,) = predict_scans(run, [scan], tmp_path / "out", device="cpu")
    job = outcome(client, send(client, scan)["id"])
    assert job["state"] == "done", job["error"]
    assert job["result"]["oriented"]  # our own h5 says where it lies
    answer = client.get(f"/jobs/{job['id']}/label")
    name = f"anna b_segmentation{'.nii.gz' if ending in ('.h5', '.zip') else ending}"
    assert job["download"] == name
    assert re.fullmatch(
        r"attachment; filename\*=utf-8''anna%20b_segmentation\..*",
        answer.headers["content-disposition"],
    )
    (tmp_path / name).write_bytes(answer.content)
    ours, predicted = (formats.read(path, kind="label") for path in (tmp_path / name, written))
    assert np.array_equal(ours.array, predicted.array) and np.array_equal(
        ours.affine, predicted.affine
    )
    assert ours.array.dtype == predicted.array.dtype


def write_dicom_zip(path: Path) -> Path:
    """An oblique series in a subfolder of a zip."""
    voxels = np.random.default_rng(0).integers(0, 1000, (20, 22, 18), np.int16)
    series = Scan(voxels, orientation=(0.8, 0.6, 0, -0.6, 0.8, 0)).write(
        path.with_suffix("") / "series", seed=1
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(series.iterdir()):
            archive.write(file, f"patient/{file.name}")
    return path


def test_volumes_and_views_are_those_of_the_label_map(client, run, scan, tmp_path):
    (written,) = predict_scans(run, [scan], tmp_path / "out", device="cpu", save_uncertainty=True)
    label = formats.read(written, kind="label")
    job = outcome(client, send(client, scan)["id"])
    voxel_ml = np.prod(label.spacing_mm) / 1000
    for found, value in zip(job["result"]["classes"], (1, 2), strict=True):
        assert found["voxels"] == int((label.array == value).sum())
        assert found["volume_ml"] == pytest.approx(found["voxels"] * voxel_ml, abs=1e-3)
    assert [c["name"] for c in job["result"]["classes"]] == ["organ", "tumour"]
    views = {}
    for name in ("scan", "classes", "uncertainty"):
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(
            client.get(f"/jobs/{job['id']}/view/{name}.nii.gz").raise_for_status().content
        )
        views[name] = formats.read(path)
        assert np.allclose(views[name].affine, label.affine)
    assert np.array_equal(views["classes"].array, label.array)
    assert np.corrcoef(views["scan"].array.ravel(), formats.read(scan).array.ravel())[0, 1] > 0.98
    uncertainty = formats.read(written.parent / "uncertainty" / written.name)
    assert np.abs(views["uncertainty"].array / 255 - uncertainty.array).max() < 0.003


def test_progress_counts_windows_and_the_queue_keeps_its_order(server, tmp_path):
    """Two clients; the second's scan waits for the first's, and neither sees the other's.

    A waiting scan can be cancelled.
    """
    big, small = write_scan(tmp_path / "big.nii.gz", 40), write_scan(tmp_path / "small.nii.gz", 18)
    with server.client() as one, server.client() as two:
        first, second, third = send(one, big), send(two, small), send(two, small)
        seen = []
        while (job := one.get(f"/jobs/{first['id']}").json())["state"] != "done":
            seen.append((job["done"], job["total"]))
            assert (
                two.get(f"/jobs/{second['id']}").json()["state"] == "waiting"
                or job["state"] == "done"
                or one.get(f"/jobs/{first['id']}").json()["state"] == "done"
            )
            if third and (waiting := two.get(f"/jobs/{third['id']}").json())["state"] == "waiting":
                assert waiting["ahead"] == 2
                assert two.delete(f"/jobs/{third['id']}").status_code == 204
                assert two.get(f"/jobs/{third['id']}").status_code == 404
                third = None
            time.sleep(0.01)
        assert third is None
        windows = [pair for pair in seen if pair[1]]
        assert windows == sorted(windows) and len(set(windows)) > 2
        assert outcome(two, second["id"])["state"] == "done"


def test_a_removed_scan_leaves_no_file(server, client, scan):
    job = outcome(client, send(client, scan)["id"])
    folder = next(path.parent for path in server.files() if path.parent.name == job["id"])
    assert not list(folder.glob("scan*"))  # the scan itself goes as soon as it is segmented
    assert folder.stat().st_mode & 0o077 == 0 and folder.parent.stat().st_mode & 0o077 == 0
    assert client.delete(f"/jobs/{job['id']}").status_code == 204
    assert not folder.exists()
    assert client.get(f"/jobs/{job['id']}/label").status_code == 404


def test_the_page_loads_nothing_from_outside(client):
    page = client.get("/").raise_for_status()
    policy = page.headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    )
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert path.startswith("/") and not path.startswith("//"), path
        assert client.get(path).status_code == 200, path
    assert not re.search(r"\son\w+=|<style|style=", page.text)
    about = client.get("/about").json()
    assert (
        about["classes"] == ["organ", "tumour"]
        and about["model"] == "my_run"
        and about["upload_bytes"] == MAX_MB * 2**20
    )


# --- what goes wrong ---


def refused(client: httpx.Client, name: str, content: bytes) -> str:
    """The line that the page shows for a file that cannot be segmented."""
    answer = client.post("/jobs", params={"name": name}, content=content)
    if answer.status_code != 201:
        return answer.json()["detail"]
    job = outcome(client, answer.json()["id"])
    assert job["state"] == "failed", job
    return job["error"]


def nifti_header(*shape: int) -> bytes:
    header = bytearray(352)
    header[:4], header[344:348] = struct.pack("<i", 348), b"n+1\0"
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h8f", header, 70, 2, 8, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    return bytes(header)


def h5_file(path: Path, **create) -> bytes:
    with h5py.File(path, "w") as file:
        file.create_dataset("image", **create)
    return path.read_bytes()


def hostile(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    """name -> content, and what the answer must say."""
    zeros = bytes(2**20)
    bomb, small_bomb = io.BytesIO(), io.BytesIO()
    with gzip.open(bomb, "wb", 9) as file:
        file.write(nifti_header(20, 20, 20) + bytes(8000))
        for _ in range(300):
            file.write(zeros)
    with zipfile.ZipFile(small_bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"{i}.dcm", zeros)
    nrrd = (
        b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 90000 90000 90000\nencoding: raw\n\n"
        + bytes(99)
    )
    mha = (
        b"ObjectType = Image\nNDims = 3\nDimSize = 90000 90000 90000\n"
        b"ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    )
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(1000))
    return {
        "terabyte.nii": (
            nifti_header(30000, 30000, 30000),
            "27,000,000,000,000 voxels by its header",
        ),
        "terabyte.nii.gz": (
            gzip.compress(nifti_header(30000, 30000, 30000)),
            "27,000,000,000,000 voxels by its header",
        ),
        "bomb.nii.gz": (bomb.getvalue(), "goes on for more than 128 MiB"),
        "terabyte.nrrd": (nrrd, "voxels by its header"),
        "terabyte.mha": (mha, "voxels by its header"),
        "terabyte.h5": (
            h5_file(tmp_path / "a.h5", shape=(9000, 9000, 9000), dtype="f4", chunks=(9, 9, 9)),
            "voxels by its",
        ),
        "other.h5": (
            h5_file(
                tmp_path / "b.h5", shape=(10, 10, 10), dtype="u1", external=[(str(secret), 0, 1000)]
            ),
            "in another file",
        ),
        "bomb.zip": (small_bomb.getvalue(), "more than this server unpacks"),
        "empty.nii": (b"", "empty"),
        "text.nrrd": (b"hello", "holds text"),
        "cut.nii.gz": (gzip.compress(nifti_header(20, 20, 20) + bytes(8000))[:50], "cut.nii.gz: "),
        "no.zip": (b"PK\3\4 nothing", "no.zip"),
        "photo.png": (b"", "does not end with"),
    }


def test_hostile_files_are_one_clear_line_and_the_server_goes_on(server, client, scan, tmp_path):
    for name, (content, said) in hostile(tmp_path).items():
        line = refused(client, name, content)
        assert said in line and "\n" not in line, (name, line)
        assert (
            str(tmp_path.parent) not in line and "/scan" not in line and "Traceback" not in line
        ), line
    assert rss_mb(server) < 1500
    assert outcome(client, send(client, scan)["id"])["state"] == "done"


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd.nii.gz",
        "/etc/cron.d/x.nii.gz",
        "..\\..\\x.nii.gz",
        ".nii.gz",
        'a"\r\nSet-Cookie: x=1;.nii.gz',
        "x" * 5000 + ".nii.gz",
        "\0.nii.gz",
        "Größe 心.nii.gz",
    ],
)
def test_a_name_from_outside_reaches_no_path_and_no_header(server, client, scan, name):
    job = outcome(client, send(client, scan, name)["id"])
    assert job["state"] == "done", job
    answer = client.get(f"/jobs/{job['id']}/label").raise_for_status()
    assert "set-cookie" not in answer.headers
    assert not re.search(r"[/\\\x00-\x1f\"]", job["download"]) and len(job["download"]) < 150
    assert not job["download"].startswith(".")
    assert {path.name for path in server.files() if path.parent.name == job["id"]} == {
        "label.nii.gz",
        "view_scan.nii.gz",
        "view_classes.nii.gz",
        "view_uncertainty.nii.gz",
    }
    client.delete(f"/jobs/{job['id']}")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2fcli.py",
        "/jobs/..%2f..%2fx/label",
        "/jobs/x/view/..%2flabel.nii.gz",
        "/session/..%2fx",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_address_leads_out(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", path)  # httpx would tidy the path up
    answer = connection.getresponse()
    assert answer.status == 404 and b"import" not in answer.read()


def rss_mb(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("request_line", ["POST /jobs?name=a.nii", "PUT /session/"])
def test_an_upload_that_is_too_large_is_refused_with_little_memory(
    server, client, request_line, stated
):
    before, taken = rss_mb(server), 0
    chunk = bytes(2**16)
    chunks = 400 * 16  # 400 MB
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        length = (
            f"Content-Length: {chunks * len(chunk)}" if stated else "Transfer-Encoding: chunked"
        )
        kind = "Content-Type: multipart/form-data; boundary=x"
        raw.sendall(
            f"{request_line} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n{length}\r\n\r\n".encode()
        )

        def framed(data: bytes) -> bytes:
            return data if stated else b"%x\r\n%s\r\n" % (len(data), data)

        with contextlib.suppress(OSError):  # refused by then, where its length was stated
            raw.sendall(
                framed(
                    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\n'
                )
            )
        raw.settimeout(0.2)
        with contextlib.suppress(OSError):  # the server has closed it, or reads no more
            for taken in range(chunks):  # noqa: B007
                raw.sendall(framed(chunk))
        raw.settimeout(20)
        answer = raw.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413") and b"larger than 8 MB" in answer, (
        taken,
        answer[:200],
    )
    assert rss_mb(server) < before + 60
    assert not [path for path in server.files() if path.name.startswith("scan")]


def test_one_byte_more_than_the_limit_is_refused(server, client):
    """The count on the way in leaves room for a form around the file: the file itself is held to
    the limit.
    """
    content = bytes(MAX_MB * 2**20 + 1)
    for answer in (
        client.post("/jobs", params={"name": "a.nii"}, content=content),
        client.put("/session/", files={"files": ("a.nii", content)}),
    ):
        assert answer.status_code == 413 and "larger than 8 MB" in answer.json()["detail"]
    assert not [path for path in server.files() if path.name.startswith("scan")]


def test_a_stated_length_beyond_the_limit_is_refused_before_a_byte_comes(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(
            b"POST /jobs?name=a.nii HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            b"400000000\r\n\r\n"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")


def test_an_upload_that_is_cut_off_leaves_nothing(server, client, scan):
    before = set(server.files())
    for _ in range(10):  # more than wait at once: a place is given back each time
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(STARTED + bytes(300_000))
            wait_for(lambda: set(server.files()) - before)
        wait_for(lambda: set(server.files()) == before)
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(
            b"PUT /session/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + form + bytes(3_000_000)
        )
    assert outcome(client, send(client, scan)["id"])["state"] == "done"


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "192.168.0.7",
        "",
        "evil.example@127.0.0.1x",
        "[::1",
    ],
)
def test_another_host_name_is_refused(client, host):
    assert client.get("/", headers={"Host": host}).status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9999", "127.0.0.1:1", "[::1]:8000"])
def test_this_machine_s_names_are_served(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost:1"},
    ],
)
@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/jobs?name=a.nii"),
        ("DELETE", "/jobs/x"),
        ("PUT", "/session/"),
        ("POST", "/infer/my_run"),
        ("PUT", "/scans/label?name=cleo"),
    ],
)
def test_other_sites_pages_are_refused(client, method, path, headers):
    answer = client.request(method, path, headers=headers)
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_a_full_queue_says_so(server, client, tmp_path):
    """Uploads that stand still take the places; the next one is refused at once, and when they end
    there is room again.
    """
    wait_for(lambda: not [path for path in server.files() if path.name.startswith("scan")])
    raws = []
    for _ in range(8):
        raws.append(socket.create_connection(("127.0.0.1", server.port)))
        raws[-1].sendall(STARTED + bytes(1000))
    wait_for(lambda: len([path for path in server.files() if path.name == "scan.nii"]) == 8)
    answer = client.post("/jobs", params={"name": "a.nii"}, content=b"x")
    assert answer.status_code == 503 and "8 scans are being worked on" in answer.json()["detail"]
    for raw in raws:
        raw.close()
    wait_for(lambda: not [path for path in server.files() if path.name == "scan.nii"])
    assert client.post("/jobs", params={"name": "a.nii"}, content=b"x").status_code == 201


# --- 3D Slicer ---


def slicer_form(
    server: Server,
    selector: str,
    params: dict,
    files: dict[str, Path] | None = None,
    method: str = "POST",
) -> tuple:
    """Send a form as MONAI Label's client in Slicer does: over http.client, its odd boundary, and
    an answer that is read by its length from the bare socket file.
    """
    limit = "----------lImIt_of_THE_fIle_eW_$"
    head = f'--{limit}\r\nContent-Disposition: form-data; name="params"\r\n\r\n'
    body = f"{head}{json.dumps(params)}\r\n".encode()
    for field, path in (files or {}).items():
        head = f'--{limit}\r\nContent-Disposition: form-data; name="{field}"; filename="{path}"\r\n'
        body += (
            head.encode() + b"Content-Type: application/gzip\r\n\r\n" + path.read_bytes() + b"\r\n"
        )
    body += f"--{limit}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(
        method, selector, body, {"content-type": f"multipart/form-data; boundary={limit}"}
    )
    answer = connection.getresponse()
    if method == "PUT":  # an answer without files is no form
        return answer.status, json.loads(answer.read())
    assert answer.status == 200, answer.read()
    assert "multipart" in answer.getheader("content-type") and not answer.chunked
    cgi = pytest.importorskip("cgi")  # what the client parses with; gone from Python 3.13
    parts = cgi.FieldStorage(
        fp=answer.fp, environ={"REQUEST_METHOD": "POST"}, headers=answer.msg, keep_blank_values=True
    ).list
    return (
        {part.name: part.value for part in parts if not part.filename},
        {part.filename: part.value for part in parts if part.filename},
    )


@pytest.mark.filterwarnings("ignore:'cgi' is deprecated")
def test_a_conversation_with_slicer(server, client, run, scan, tmp_path):
    info = client.get("/info/").json()
    assert {
        "name",
        "description",
        "version",
        "labels",
        "models",
        "trainers",
        "strategies",
        "scoring",
        "train_stats",
        "datastore",
    } <= info.keys()
    assert not info.get("config")  # the plugin takes it for an old server
    ((name, model),) = info["models"].items()
    assert (
        model["type"] == "segmentation"
        and model["description"]
        and model["labels"] == {"organ": 1, "tumour": 2}
    )
    assert (
        client.get("/train/", params={"check_if_running": "true"}).status_code != 200
    )  # no training is running
    assert client.get("/datastore/", params={"output": "all"}).json() == {"objects": {}}

    with scan.open("rb") as file:  # requests.put(url, files=[("files", ..)], data=..)
        created = client.put(
            "/session/", files={"files": (scan.name, file)}, data={"client_id": "user-xyz"}
        ).json()
    token = created["session_id"]
    assert client.get(f"/session/{token}").json()["name"] == "anna.nii.gz"
    asked = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
    form, files = slicer_form(
        server, f"/infer/{name}?image=Anna%27s+scan&session_id={token}", asked
    )
    params = json.loads(form["params"])
    assert params["label_names"] == {"organ": 1, "tumour": 2}
    ((file_name, content),) = files.items()
    assert file_name.endswith(".nrrd") and not re.search(r"[/\\]", file_name)
    (tmp_path / "slicer.nrrd").write_bytes(content)
    (written,) = predict_scans(run, [scan], tmp_path / "out", device="cpu")
    ours, predicted = (
        formats.read(path, kind="label") for path in (tmp_path / "slicer.nrrd", written)
    )
    assert np.array_equal(ours.array, predicted.array) and np.allclose(
        ours.affine, predicted.affine
    )

    _, files = slicer_form(
        server, f"/infer/{name}?image=x", {}, {"file": scan}
    )  # without a session
    assert next(iter(files)).endswith(".nii.gz")
    assert client.delete(f"/session/{token}").status_code == 200
    assert client.get(f"/session/{token}").status_code == 404
    assert not [path for path in server.files() if path.name.startswith("scan")]


def test_slicer_is_told_what_is_wrong(client, scan):
    model = next(iter(client.get("/info/").json()["models"]))
    answers = {
        f"/infer/{model}?image=x": (404, "keeps no images"),
        "/infer/deepgrow?image=x": (404, "There is no model “deepgrow”"),
        f"/infer/{model}?session_id=gone": (404, "Send the scan again"),
    }
    for path, (status, said) in answers.items():
        answer = client.post(path, files={"params": (None, "{}")})
        assert answer.status_code == status and said in answer.json()["detail"]
    bad = client.post(f"/infer/{model}", files={"params": (None, "[1"), "file": ("a.nii", b"x")})
    assert bad.status_code == 400 and "JSON" in bad.json()["detail"]
    broken = client.post(
        f"/infer/{model}", files={"params": (None, "{}"), "file": ("a.nii", b"x" * 99)}
    )
    assert broken.status_code == 500 and broken.json()["detail"].startswith("a.nii: expected NIfTI")
    assert client.put("/session/", files={"files": ("a.png", b"x")}).status_code == 415
    many = client.put("/session/", files=[("files", ("a.nii", b"x")), ("files", ("b.nii", b"y"))])
    assert many.status_code == 400 and "one zip" in many.json()["detail"]
    assert client.put("/session/", content=b"x").status_code == 415


def test_old_sessions_make_room(server, client, scan):
    tokens = [
        client.put("/session/", files={"files": (scan.name, scan.read_bytes())}).json()[
            "session_id"
        ]
        for _ in range(10)
    ]
    assert [client.get(f"/session/{token}").status_code for token in tokens] == [404] * 2 + [
        200
    ] * 8
    for token in tokens[2:]:
        client.delete(f"/session/{token}")


# --- labels ---


def drawing(path: Path, folder: Path, seed: int = 0, most: int = 2, **changes) -> Path:
    """A NIfTI of class indices on the grid of the scan cleo."""
    scan = formats.read(folder / "images/cleo.nii.gz")
    indices = np.random.default_rng(seed).integers(0, most + 1, scan.shape, np.uint8)
    volume = Volume(indices, scan.affine)
    formats.write(Volume(**(vars(volume) | changes)), path)
    return path


def save(client: httpx.Client, file: Path, loaded: str, **query: str) -> httpx.Response:
    """What the page sends."""
    query = {"name": "cleo", "loaded": loaded, "start": "model"} | query
    return client.put("/scans/label", params=query, content=file.read_bytes())


def test_a_label_is_saved_on_the_grid_of_its_scan_and_prepare_takes_it(client, folder, tmp_path):
    dora, cleo = client.get("/scans").json()["scans"]
    assert (dora["name"], dora["reason"]) == ("dora", "larger than any labelled one")
    assert (cleo["name"], cleo["reason"], cleo["labelled"]) == ("cleo", "", False)
    opened = client.post("/scans/open", params={"name": "cleo"}).json()
    assert not outcome(client, opened["id"])["result"]["drawn"]
    assert (folder / "images/cleo.nii.gz").exists()  # not deleted as what was sent is
    file = drawing(tmp_path / "a.nii.gz", folder)
    answer = save(client, file, opened["loaded"], who=" Ada\n ").raise_for_status().json()
    scan = formats.read(folder / "images/cleo.nii.gz")
    label = formats.read(folder / "labels/cleo.nii.gz", kind="label")
    assert np.array_equal(label.array, formats.read(file, kind="label").array)
    assert np.array_equal(label.affine, scan.affine) and label.array.dtype == np.uint8
    made = json.loads((folder / "labels-made/cleo.json").read_text())
    assert (made["who"], made["run"], made["start"], made["program"]) == (
        "Ada",
        "my_run",
        "model",
        "page",
    )
    assert made["scan_sha256"] == opened["loaded"] and made["label_sha256"] == answer["version"]
    listed = client.get("/scans").json()["scans"]
    assert [(each["name"], each["who"]) for each in listed] == [("dora", ""), ("cleo", "Ada")]
    again = outcome(client, client.post("/scans/open", params={"name": "cleo"}).json()["id"])
    view = client.get(f"/jobs/{again['id']}/view/label.nii.gz").raise_for_status().content
    (tmp_path / "view.nii.gz").write_bytes(view)
    assert np.array_equal(formats.read(tmp_path / "view.nii.gz").array, label.array)
    meta = prepare_scans(folder, tmp_path / "prepared", processes=1)
    assert meta.labels == {"background": 0, "organ": 1, "tumour": 2}
    assert [(case.name, case.labelled) for case in meta.cases] == [("cleo", True), ("dora", False)]


def test_no_label_is_replaced_unasked_and_no_drawing_saved_that_does_not_fit(
    client, folder, tmp_path
):
    loaded = client.post("/scans/open", params={"name": "cleo"}).json()["loaded"]
    file, other = (drawing(tmp_path / f"{i}.nii.gz", folder, i) for i in (1, 2))
    label, labels = folder / "labels/cleo.nii.gz", folder / "labels"
    first = save(client, file, loaded, who="Ada")
    if first.status_code == 409:  # of the test before
        first = save(client, file, loaded, who="Ada", replace=first.json()["version"])
    mine, saved = first.json()["version"], label.read_bytes()
    asked = save(client, other, loaded, who="Bo")  # two who correct one scan
    assert asked.status_code == 409 and asked.json()["version"] == mine
    assert re.match(r"cleo has a label that Ada saved on .* UTC. Replace", asked.json()["detail"])
    theirs = save(client, other, loaded, who="Bo", replace=mine).json()["version"]
    late = save(client, file, loaded, replace=mine)
    assert late.status_code == 409 and "Bo saved" in late.json()["detail"]
    label.write_bytes(saved)  # by another program
    asked = save(client, file, loaded, replace=theirs)
    assert asked.status_code == 409 and "not drawn here" in asked.json()["detail"]
    replace = {"replace": asked.json()["version"]}
    scan = formats.read(folder / "images/cleo.nii.gz")
    moved = scan.affine.copy()
    moved[0, 3] += 5
    (tmp_path / "junk.nii.gz").write_bytes(b"hello" * 99)
    for wrong, status, said in (
        (drawing(tmp_path / "b.nii.gz", folder, most=3), 400, "the value 3, which is no class of"),
        (drawing(tmp_path / "c.nii.gz", folder, array=scan.array[1:]), 400, "one grid"),
        (drawing(tmp_path / "d.nii.gz", folder, affine=moved), 400, "apart in the world"),
        (tmp_path / "junk.nii.gz", 400, "expected gzip"),
    ):
        answer = save(client, wrong, loaded, **replace)
        assert answer.status_code == status and said in answer.json()["detail"], answer.text
        assert str(folder.parent) not in answer.text
    for name in ("nobody", "../images/cleo", "cleo.nii.gz", ""):
        assert save(client, file, loaded, **replace, name=name).status_code == 404
    assert save(client, file, "", **replace).status_code == 400
    write_oblique(folder / "images/cleo.nii.gz", seed=9)
    answer = save(client, file, loaded, **replace)
    assert (
        answer.status_code == 409 and "has changed since it was loaded" in answer.json()["detail"]
    )
    assert label.read_bytes() == saved and sorted(labels.iterdir()) == [label]
    label.unlink()


@pytest.mark.filterwarnings("ignore:'cgi' is deprecated")
def test_slicer_labels_what_is_suggested(server, client, folder, tmp_path):
    """In the order of the plugin's `onNextSampleButton`, `onClickSegmentation`, `onSaveLabel`."""
    info = client.get("/info/").json()
    ((strategy, _),) = info["strategies"].items()
    assert info["datastore"] == {"total": 2, "completed": 0}
    wrong = client.post("/activelearning/sugest", json={"client_id": "user-xyz"})
    assert wrong.status_code == 404 and "did you mean 'suggest'" in wrong.json()["detail"]

    def next_sample() -> dict:
        return client.post(f"/activelearning/{strategy}", json={"client_id": "user-xyz"}).json()

    sample = next_sample()
    scan = folder / "images/dora.nii.gz"
    assert sample["name"] == "dora.nii.gz"  # its suffix tells Slicer what it is
    image = client.get("/datastore/image", params={"image": sample["id"]}).raise_for_status()
    assert image.content == scan.read_bytes()
    assert sample["checksum"] == f"SHA256:{hashlib.sha256(image.content).hexdigest()}"
    (model,) = info["models"]
    query = urlencode({"image": sample["id"]})
    _, files = slicer_form(server, f"/infer/{model}?{query}", {"result_extension": ".nrrd"})
    label = tmp_path / "from server.nrrd"
    label.write_bytes(next(iter(files.values())))

    def saved(image: str, *names: str) -> tuple[int, dict]:
        told = [{"name": name, "idx": i} for i, name in enumerate(names, 1)]
        params = {"label_info": told, "client_id": "user-xyz"}
        selector = f"/datastore/label?{urlencode({'image': image})}"
        return slicer_form(server, selector, params, {"label": label}, "PUT")

    status, told = saved(sample["id"], "organ", "lung")
    assert status == 400 and "“lung”, which is no class of the model" in told["detail"]
    status, told = saved(sample["id"], "tumour", "organ")  # as the segments are in Slicer
    assert (status, told["label"]) == (200, "dora"), told
    read = formats.read(folder / "labels/dora.nii.gz", kind="label")
    sent = formats.read(label, kind="label").array
    assert np.array_equal(read.array, np.array([0, 2, 1], np.uint8)[sent])
    assert np.array_equal(read.affine, formats.read(scan).affine)
    assert saved(sample["id"], "organ", "tumour")[0] == 200  # in the same sitting, once more
    status, told = saved("dora", "organ", "tumour")
    assert status == 409 and "dora has a label that user-xyz saved" in told["detail"]
    assert told["detail"].endswith("Nothing was saved; replace it on the page.")
    other = next_sample()
    assert other["id"].startswith("cleo@") and info != client.get("/info/").json()
    write_oblique(folder / "images/cleo.nii.gz", seed=10)
    assert saved(other["id"], "organ", "tumour")[0] == 409
    for method, path, status, said in (
        ("POST", f"/train/{model}", 501, "dkuxnet train PREPARED NEWRUN --from RUN"),
        ("PUT", "/datastore/?image=x", 409, "takes no scans into its label folder"),
        ("GET", "/datastore/image?image=x", 404, "no such scan"),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status and said in answer.json()["detail"]


# --- the end ---


def test_the_end_leaves_nothing_but_what_is_to_be_kept(run, tmp_path):
    """By SIGTERM; by Ctrl-C see the fixture `server`."""
    big, small = write_scan(tmp_path / "big.nii.gz", 46), write_scan(tmp_path / "ben.nii.gz")
    kept = tmp_path / "kept"
    with serving(run, tmp_path / "temp", "--keep", str(kept)) as server, server.client() as client:
        assert client.get("/about").json()["kept"]
        assert outcome(client, send(client, small, "../ben.nii.gz")["id"])["state"] == "done"
        busy = send(client, big)["id"]
        wait_for(lambda: client.get(f"/jobs/{busy}").json()["done"])  # in the middle of its windows
        code, err = server.stop(signal.SIGTERM)
    assert (code, err) == (0, "")
    assert list((tmp_path / "temp").iterdir()) == []
    (folder,) = kept.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "label.nii.gz",
        "result.json",
        "scan.nii.gz",
    ]
    assert json.loads((folder / "result.json").read_text())["name"] == "ben.nii.gz"
    assert (folder / "scan.nii.gz").read_bytes() == small.read_bytes()


def test_a_port_in_use_and_a_run_that_is_none_are_one_line(server, run, tmp_path):
    from typer.testing import CliRunner

    from dkuxnet.cli.commands import app
    from dkuxnet.core.errors import UserError

    def line(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["serve", *arguments])
        assert isinstance(result.exception, UserError), result.exception
        return str(result.exception)

    taken = line(str(run), "--port", str(server.port))
    assert f"cannot listen on 127.0.0.1 port {server.port}: Address already in use" in taken
    assert "is not a run folder" in line(str(tmp_path), "--port", "0")
    assert "cannot listen on no.such.host.invalid" in line(
        str(run), "--host", "no.such.host.invalid", "--port", "0"
    )
    (tmp_path / "file").touch()
    assert "--keep" in line(str(run), "--keep", str(tmp_path / "file"))


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    from dkuxnet import serve
    from dkuxnet.core.errors import UserError

    monkeypatch.setattr(serve, "EXTRA", ("fastapi", "surely_not_installed"))
    with pytest.raises(UserError, match=r"needs surely_not_installed.*pip install '\.\[serve\]'"):
        serve.require_extra()
