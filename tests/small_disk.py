"""A disk that is full when a test wants it: a small file system of its own where this process may
mount one, and a limit on the size of files, of which a program learns in the same place: at a
write.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

KINDS = ("mounted", "limited")
FULL = r"(No space left on device|File too large); make room there"


class SmallDisk:
    """folder: where to write.

    `full` lets it take `leave` bytes more: all together where it is mounted, else each file.
    """

    def __init__(self, folder: Path, mounted: bool):
        self.folder, self.mounted = folder, mounted
        self._filler = folder / "filler"

    def fill(self, leave: int = 0) -> None:
        if self.mounted:
            self.make_room()
            free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
            self._filler.write_bytes(bytes(max(free - leave, 0)))
        else:
            import resource

            resource.setrlimit(
                resource.RLIMIT_FSIZE, (leave, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )

    def make_room(self) -> None:
        if self.mounted:
            self._filler.unlink(missing_ok=True)
        else:
            import resource

            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    @contextmanager
    def full(self, leave: int = 0) -> Iterator[None]:
        self.fill(leave)
        try:
            yield
        finally:
            self.make_room()

    def files(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path != self._filler
        )


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder`; the test is skipped where that is not allowed, but in continuous
    integration as root it fails.
    """
    folder.mkdir()
    done = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if shutil.which("mount")
        else None
    )
    if done is None or done.returncode:
        why = f"cannot mount a tmpfs: {done.stderr.strip() if done else 'no mount'}"
        if os.environ.get("CI") and hasattr(os, "geteuid") and os.geteuid() == 0:
            pytest.fail(why)
        pytest.skip(why)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def small_disk(folder: Path, kind: str, mebibytes: int = 4) -> Iterator[SmallDisk]:
    """kind: of KINDS, or "best" for the first of them that can be had."""
    if kind == "best":
        with suppress(pytest.skip.Exception), mounted(folder, f"size={mebibytes}m") as place:
            yield SmallDisk(place, True)
            return
        folder.rmdir()
        kind = "limited"
    if kind == "mounted":
        with mounted(folder, f"size={mebibytes}m") as place:
            yield SmallDisk(place, True)
        return
    if os.name == "nt":
        pytest.skip("no limit on the size of files")
    folder.mkdir()
    disk = SmallDisk(folder, False)
    try:
        yield disk
    finally:
        disk.make_room()
