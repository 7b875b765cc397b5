"""Attacks on `dkuxnet serve`: whatever a file or a connection does, `/about` answers, and the next
scan is segmented.

The server's limits of time are small here, so that an attack is over in seconds.
"""

import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi")

from serving import Server, outcome, send, serving, tiny_run, write_scan
from small_disk import small_disk

pytestmark = pytest.mark.slow  # servers that are attacked for seconds
SMALL = """
import functools, resource
import dkuxnet.serve.limits as limits
limits.Limits = functools.partial(limits.Limits, {})
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
"""
HOSTILE = """
import dkuxnet.serve.reading as reading
reading.READ = "hostile_reading:read"
"""
LIMITS = "read_seconds=3, silence_seconds=2, upload_seconds=6, head_seconds=2, connections=100"


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory) -> Path:
    return tiny_run(prepared, tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="module")
def server(run, tmp_path_factory) -> Iterator[Server]:
    temp = tmp_path_factory.mktemp("serve") / "temp"
    before = SMALL.format(LIMITS) + HOSTILE
    with serving(run, temp, "--max-upload-mb", "64", before=before) as process:
        yield process
        _, err = process.stop()
        assert list(temp.iterdir()) == []
        assert len(err.splitlines()) < 60, err


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "anna.nii.gz")


@contextlib.contextmanager
def answering(server: Server) -> Iterator[list[float]]:
    """Ask `/about` all the time; each answer must come within 2 s. Gives the seconds that each
    took.
    """
    took: list[float] = []
    errors: list[object] = []
    done = threading.Event()

    def ask() -> None:
        last = False
        while not last:  # once more after the attack
            last = done.wait(0.1)
            started = time.monotonic()
            try:
                httpx.get(f"{server.url}about", timeout=10).raise_for_status()
            except httpx.HTTPError as error:
                errors.append(error)
            took.append(time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join()
    assert took and not errors, errors
    assert max(took) < 2, max(took)


def sent(client: httpx.Client, content: bytes, name: str = "a.nii") -> str:
    return client.post("/jobs", params={"name": name}, content=content).json()["id"]


def memory_kib(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def wait_for(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# --- files ---


@pytest.mark.parametrize(
    "word, said",
    [
        ("MEMORY", "takes more memory than it may"),
        ("ENDLESS", "takes longer than"),
        ("SLEEP", "takes longer than"),
        ("FORKS", "takes longer than"),
        ("CRASH", "crashes (SIGSEGV)"),
        ("QUITS", "ends with exit code 0"),
        ("BUG", "The program failed to read this scan (KeyError)"),
    ],
)
def test_a_reader_that_runs_amok_is_one_line(server, scan, word, said):
    with server.client() as client, answering(server):
        job = outcome(client, sent(client, word.encode() + b" " * 400))
        assert job["state"] == "failed" and said in job["error"], job
        assert "\n" not in job["error"] and str(server.temp) not in job["error"]
        assert outcome(client, send(client, scan)["id"])["state"] == "done"
    assert memory_kib(server.process.pid) < 2 * 2**20


def test_what_the_child_says_is_not_believed(server, scan, tmp_path):
    with server.client() as client:
        job = outcome(client, sent(client, b"LIES" + bytes(400)))
        assert job["state"] == "failed"


def test_a_cancelled_scan_makes_room_at_once(server, scan):
    """Whatever its reader hangs in."""
    with server.client() as client, answering(server):
        hanging = sent(client, b"ENDLESS" + b" " * 400)
        wait_for(lambda: client.get(f"/jobs/{hanging}").json()["state"] == "working")
        waiting = send(client, scan)["id"]
        started = time.monotonic()
        assert client.delete(f"/jobs/{hanging}").status_code == 204
        wait_for(lambda: client.get(f"/jobs/{waiting}").json()["state"] != "waiting", 2)
        assert time.monotonic() - started < 2
        assert outcome(client, waiting)["state"] == "done"


def external_fifo(folder: Path) -> bytes:
    """An h5 file whose image is a link to a pipe: opening it waits for a writer, for ever."""
    os.mkfifo(folder / "pipe")
    with h5py.File(folder / "a.h5", "w") as file:
        file.attrs["follow"] = 1
        file["image"] = h5py.ExternalLink(str(folder / "pipe"), "/x")
    return (folder / "a.h5").read_bytes()


def many_chunks(folder: Path) -> bytes:
    """An h5 file of 27,000 chunks."""
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset(
            "image", data=np.zeros((30, 30, 30), "f4"), chunks=(1, 1, 1), compression="gzip"
        )
    return (folder / "a.h5").read_bytes()


@pytest.mark.parametrize("make", [external_fifo, many_chunks])
def test_an_h5_that_hangs_its_library_hangs_nothing_else(server, scan, tmp_path, make):
    content = make(tmp_path)
    with server.client() as client, answering(server):
        hanging = sent(client, content, "a.h5")
        other = send(client, scan)["id"]
        outcome(client, hanging)
        assert outcome(client, other)["state"] == "done"


def test_the_reader_dies_with_a_server_that_is_killed(run, tmp_path):
    before = SMALL.format(LIMITS) + HOSTILE
    with serving(run, tmp_path / "temp", before=before) as server, server.client() as client:
        hanging = sent(client, b"ENDLESS" + b" " * 400)
        wait_for(lambda: client.get(f"/jobs/{hanging}").json()["state"] == "working")
        (reader,) = children(server.process.pid)
        time.sleep(1)
        server.process.kill()
        server.process.wait()
        wait_for(lambda: gone(reader))


def test_the_server_of_a_killed_test_ends(run, tmp_path):
    code = f"""
from pathlib import Path
from serving import serving
with serving(Path({str(run)!r}), Path({str(tmp_path / "temp")!r})) as server:
    print(server.process.pid, flush=True)
    input()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=-1, stdout=-1, env=environment
    ) as test:
        server = int(test.stdout.readline())
        assert not gone(server)
        test.kill()
    wait_for(lambda: gone(server))


# --- connections ---


@contextlib.contextmanager
def many_files(count: int = 4096) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(count, before[0]), before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def connected(server: Server, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, each of which has sent `first`."""
    with many_files(), contextlib.ExitStack() as stack:
        raws = []
        for _ in range(count):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            with contextlib.suppress(OSError):
                raw.sendall(first)
            raws.append(raw)
        yield raws


def ended(raw: socket.socket, seconds: float) -> bool:
    """Whether the server ends the connection in time."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            if not raw.recv(65536):
                return True
        except TimeoutError:
            return False
        except OSError:
            return True
    return False


@pytest.mark.parametrize("first", [b"", b"GET /about HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_idle_connections_keep_nobody_out(server, first):
    with answering(server), connected(server, 1500, first) as raws:
        time.sleep(1)
        assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 250
        assert ended(raws[-1], 4)


def drip(raws: list[socket.socket], byte: bytes, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for raw in raws:
            with contextlib.suppress(OSError):
                raw.sendall(byte)
        time.sleep(0.2)


@pytest.mark.parametrize(
    "first",
    [
        b"POST /jobs?name=a.nii HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n",
        b"PUT /session/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        b'Content-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\n',
        b"POST /infer/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        b'Content-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n',
    ],
    ids=["jobs", "session", "infer"],
)
def test_uploads_that_drip_give_their_places_back(server, scan, first):
    with server.client() as client, answering(server), connected(server, 8, first) as raws:
        drip(raws, b"x", 3.5)
        assert outcome(client, send(client, scan)["id"])["state"] == "done"
        put = client.put("/session/", files={"files": (scan.name, scan.read_bytes())})
        assert put.status_code == 200
        form = {"params": (None, "{}"), "file": ("a.nii", b"x" * 99)}
        assert client.post("/infer/run", files=form).status_code == 500  # it was read, and is bad


def test_a_head_that_never_ends_is_ended(server):
    """A long one, one that comes byte by byte, and one after a whole request."""
    with (
        answering(server),
        connected(server, 3, b"GET /about HTTP/1.1\r\nHost: localhost\r\n") as (long, slow, second),
    ):
        with contextlib.suppress(OSError):
            long.sendall(b"".join(b"X-%d: y\r\n" % i for i in range(10_000)))
        assert ended(long, 2)
        second.sendall(b"\r\nGET /about HTTP/1.1\r\n")
        drip([slow, second], b"x", 3)
        assert ended(slow, 1) and ended(second, 1)


def test_a_body_in_tiny_pieces_is_ended(server):
    """Of a chunked body each chunk costs time, however small: 20 MB take a processor minutes."""
    first = (
        b"POST /jobs?name=a.nii HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with answering(server), connected(server, 8, first) as raws:
        for raw in raws:
            raw.settimeout(0.5)
            with contextlib.suppress(OSError):
                for _ in range(50):
                    raw.sendall(b"1\r\nx\r\n" * 10_000)
        assert all(ended(raw, 2) for raw in raws)


def test_an_answer_that_nobody_fetches_is_ended(server):
    """The page's viewer is 2 MB, more than the system keeps for a connection."""
    request = b"GET /niivue.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with answering(server), connected(server, 150, 20 * request):
        opened = Path(f"/proc/{server.process.pid}/fd")
        time.sleep(0.5)
        assert len(list(opened.iterdir())) > 60
        wait_for(lambda: len(list(opened.iterdir())) < 40, 60)


# --- the disk ---


def test_a_full_temporary_folder_is_one_line(run, scan, tmp_path):
    with small_disk(tmp_path / "small", "mounted") as disk:
        temp = disk.folder
        with serving(run, temp, before=SMALL.format("")) as server, server.client() as client:
            assert outcome(client, send(client, scan)["id"])["state"] == "done"
            disk.fill(10_000)
            for answer in (
                client.post("/jobs", params={"name": "a.nii"}, content=bytes(100_000)),
                client.put("/session/", files={"files": ("a.nii", bytes(2_000_000))}),
            ):
                assert answer.status_code == 507, answer.text
                assert "temporary folder of this server is full" in answer.json()["detail"]
            disk.fill(scan.stat().st_size + 12_000)  # the upload has room, the voxels have not
            job = outcome(client, send(client, scan)["id"])
            assert job["state"] == "failed" and "is full" in job["error"], job
            disk.make_room()
            assert outcome(client, send(client, scan)["id"])["state"] == "done"
            code, err = server.stop()
        assert code == 0 and "Traceback" not in err, err
