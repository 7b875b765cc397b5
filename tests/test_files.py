"""How files are written and opened: whole or not at all, with the user's rights, never through a
link, never waiting for a pipe.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dkuxnet.core.errors import UserError
from dkuxnet.core.regular import check_regular, open_regular
from dkuxnet.machine import files
from dkuxnet.machine.files import append, atomically, checksum, inside, whole_folder, write_bytes
from dkuxnet.machine.lock import locked

posix = pytest.mark.skipif(os.name != "posix", reason="rights, links and pipes of POSIX")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def ended() -> int:
    """The number of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def part(folder: Path, process: int, ending: str = "a.txt") -> Path:
    return folder / f"{files.PART}{files._here()}-{process}-{'0' * 16}-{ending}"


# --- a file ---


@posix
@pytest.mark.parametrize("mask, of_file", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_gives_the_rights(tmp_path, mask, of_file):
    def privately(part: Path) -> None:  # as a writer does that has a temporary file of its own
        part.unlink()
        part.write_bytes(b"x")
        part.chmod(0o600)

    with umask(mask):
        for name, write in (("plain", lambda part: part.write_text("x")), ("own", privately)):
            atomically(tmp_path / name, write)
            assert mode(tmp_path / name) == of_file
        append(tmp_path / "log", b"x")
        assert mode(tmp_path / "log") == of_file
        with whole_folder(tmp_path / "folder"):
            pass
        assert mode(tmp_path / "folder") == 0o777 & ~mask


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("of torch")])
def test_the_content_is_the_new_one_or_the_old_one(tmp_path, error):
    path = tmp_path / "a.txt"
    for content in (b"old", b"new"):
        write_bytes(path, content)
        assert path.read_bytes() == content

    def fails(part: Path) -> None:
        part.write_bytes(b"half")
        raise error

    with pytest.raises(UserError, match=r"a\.txt: cannot write"):
        atomically(path, fails)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted(part: Path) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomically(tmp_path / "a.txt", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_the_part_ends_as_the_name_does_and_is_another_each_time(tmp_path):
    seen = []
    for name in ("scan.nii.gz", "SCAN.NII.GZ", "noending"):
        atomically(tmp_path / name, lambda part: seen.append(part.name) or part.write_text(""))
    assert seen[0] != seen[1] and all(name.endswith("scan.nii.gz") for name in seen[:2])
    assert Path(seen[2]).suffix


@pytest.mark.parametrize("letter", ["n", "ä", "中"])
def test_the_longest_names_that_a_disk_takes(tmp_path, letter):
    stem = letter * (250 // len(letter.encode()) - 7)
    write_bytes(tmp_path / f"{stem}.nii.gz", b"x")
    assert [path.name for path in tmp_path.iterdir()] == [f"{stem}.nii.gz"]


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path, there):
    outside, link = tmp_path / "outside", tmp_path / "run" / "report.html"
    link.parent.mkdir()
    if there:
        outside.write_text("kept")
    link.symlink_to(outside)
    write_bytes(link, b"page")
    assert not link.is_symlink() and link.read_bytes() == b"page"
    assert (outside.read_text() == "kept") if there else not outside.exists()


@posix
def test_a_name_that_was_guessed_is_not_written_through(tmp_path, monkeypatch):
    """Even where somebody knew the random part: the file must be new."""
    outside = tmp_path / "outside"
    outside.write_text("kept")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 16)
    part(tmp_path, os.getpid()).symlink_to(outside)
    with pytest.raises(UserError, match="File exists"):
        write_bytes(tmp_path / "a.txt", b"x")
    assert outside.read_text() == "kept"


# --- what was left ---


@posix
def test_what_a_killed_writer_left_goes_with_the_next_write_and_what_a_living_one_has_stays(
    tmp_path,
):
    dead, other, living = (
        part(tmp_path, ended()),
        part(tmp_path, ended(), "b.txt"),
        part(tmp_path, os.getppid()),
    )
    elsewhere = tmp_path / f"{files.PART}00000000-1-{'0' * 16}-a.txt"  # another machine's
    users = tmp_path / f"{files.PART}notes"
    for path in (dead, other, living, elsewhere, users):
        path.write_text("")
    write_bytes(tmp_path / "a.txt", b"x")
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere, users, tmp_path / "a.txt"])


def test_what_another_machine_left_goes_after_an_hour(tmp_path):
    old, new, other = (
        tmp_path / f"{files.PART}00000000-1-{'0' * 15}{i}-{name}"
        for i, name in enumerate(("a.txt", "a.txt", "b.csv"))
    )
    for path in (old, new, other):
        path.write_text("")
        os.utime(path, (time.time() - 3700,) * 2 if path != new else None)
    write_bytes(tmp_path / "a.txt", b"x")
    assert sorted(tmp_path.iterdir()) == sorted([new, other, tmp_path / "a.txt"])


@posix
def test_a_part_that_is_a_link_or_a_folder_takes_nothing_with_it(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (outside / "kept").write_text("kept")
    part(folder, ended()).symlink_to(outside)
    inner = part(folder, ended(), "b")
    inner.mkdir()
    (inner / "link").symlink_to(outside)
    write_bytes(folder / "a.txt", b"x")
    assert (outside / "kept").read_text() == "kept"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


KILLED = """
import os, signal, sys
from pathlib import Path
from dkuxnet.machine.files import atomically, whole_folder
def killed(part):
    (part / "x" if part.is_dir() else part).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "file":
    atomically(Path(sys.argv[1]), killed)
else:
    with whole_folder(Path(sys.argv[1])) as folder:
        killed(folder)
"""


@posix
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_kill_leaves_a_part_that_the_next_call_removes(tmp_path, what):
    path = tmp_path / "target"
    subprocess.run([sys.executable, "-c", KILLED, path, what])
    assert [p.name.startswith(files.PART) for p in tmp_path.iterdir()] == [True]
    if what == "file":
        write_bytes(path, b"x")
    else:
        with whole_folder(path):
            pass
    assert list(tmp_path.iterdir()) == [path]


# --- a folder ---


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder"
    with pytest.raises(KeyboardInterrupt), whole_folder(path) as part:
        (part / "x").write_text("")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole_folder(path) as part:
        (part / "x").write_text("")
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["folder"] and (path / "x").exists()


@posix
def test_a_place_inside_a_folder_is_no_link(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "chosen").symlink_to("home")  # the user's own way to it
    (tmp_path / "home" / "away").symlink_to(tmp_path)
    assert inside(tmp_path / "chosen", "a", "b") == tmp_path / "chosen" / "a" / "b"
    for names in (("away",), ("away", "b")):
        with pytest.raises(UserError, match="away is a link"):
            inside(tmp_path / "chosen", *names)


# --- adding to a file ---


def test_all_of_an_addition_is_there_or_nothing(tmp_path):
    append(tmp_path / "new" / "log", b"one\n")
    append(tmp_path / "new" / "log", b"two\n")
    assert (tmp_path / "new" / "log").read_bytes() == b"one\ntwo\n"


@posix
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "device", "folder"])
def test_nothing_is_added_to_what_is_no_file_of_ours(tmp_path, kind, at_once):
    path, outside = tmp_path / "log", tmp_path / "outside"
    if kind != "dangling":
        outside.write_text("kept")
    {
        "link": lambda: path.symlink_to(outside),
        "dangling": lambda: path.symlink_to(outside),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/null"),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises(UserError, match=r"is a link|no regular file"):
        append(path, b"x")
    assert (outside.read_text() == "kept") if kind != "dangling" else not outside.exists()


@posix
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_is_a_file_of_the_folder(tmp_path, kind, at_once):
    path, outside = tmp_path / ".lock", tmp_path / "outside"
    outside.write_text("kept")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(outside)
    with pytest.raises(UserError, match=r"\.lock is a link|no regular file"), locked(tmp_path, "x"):
        pass
    assert outside.read_text() == "kept"


# --- opening ---


@posix
def test_nothing_but_a_regular_file_is_opened(tmp_path, at_once):
    pipe, link, file = (tmp_path / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    file.write_text("x")
    for path in (pipe, link, Path("/dev/zero"), Path("/dev/null"), tmp_path):
        for opened in (open_regular, check_regular, checksum):
            with pytest.raises(OSError, match=r"it is (no regular file|a folder)"):
                opened(path)
    link.unlink()
    link.symlink_to(file)
    with open_regular(link) as stream:
        assert stream.read() == b"x"


@posix
def test_what_turns_into_a_pipe_is_not_waited_for(tmp_path, monkeypatch, at_once):
    """Between the look at its name and the opening."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("dkuxnet.core.regular.check_regular", lambda path: None)
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path / "pipe")


def test_the_time_limit_of_these_tests_holds(at_once):
    """Else a test that waits for a pipe would wait for ever."""
    if hasattr(signal, "setitimer"):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
