"""The limits of the server, and what it says where they are exceeded."""

from dataclasses import dataclass


class Refused(Exception):
    """A request that is refused: HTTP status and one clear line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What the server takes at most.

    upload_bytes: of the file of a scan. voxels: of a scan, all channels together, and of the grid
    that the network sees. waiting: scans that are being received, queued or worked on, together.
    kept: finished scans whose results can be fetched. upload_seconds: for all of a body.
    silence_seconds: in which `least_bytes` of a body must come, and an answer be fetched.
    read_seconds: for a small file, see `reading`. head_seconds: until a connection has sent the
    head of a request. connections: at once.
    """

    upload_bytes: int = 1024 * 2**20
    voxels: int = 300_000_000
    waiting: int = 8
    kept: int = 8
    upload_seconds: float = 3600.0
    silence_seconds: float = 60.0
    least_bytes: int = 2**20
    read_seconds: float = 60.0
    head_seconds: float = 20.0
    connections: int = 256

    def too_large(self) -> Refused:
        """The refusal of a file that is too large."""
        return Refused(
            413,
            f"The file is larger than {self.upload_bytes / 2**20:.0f} MB, the most that this "
            "server takes.",
        )

    def too_slow(self, in_all: bool) -> Refused:
        """The refusal of an upload that is not done in time. in_all: it was slow, but went on."""
        if in_all:
            return Refused(408, f"The upload took longer than {self.upload_seconds:g} seconds.")
        return Refused(
            408,
            "The upload stood still for too long, or brought less than "
            f"{self.least_bytes / 2**20:.2g} MB in {self.silence_seconds:g} seconds.",
        )

    def full(self) -> Refused:
        """The refusal of one scan too many."""
        return Refused(
            503,
            f"{self.waiting} scans are being worked on already. Try again when one of them is "
            "done.",
        )


def no_room() -> Refused:
    """The refusal of a file for which the disk has no room."""
    return Refused(
        507,
        "The temporary folder of this server is full. Make room on its disk, or start it with "
        "another one (TMPDIR), and send the scan again.",
    )
