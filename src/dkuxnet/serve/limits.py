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
    kept: finished scans whose results can be fetched. silence_seconds: without a byte of an upload.
    """

    upload_bytes: int = 1024 * 2**20
    voxels: int = 300_000_000
    waiting: int = 8
    kept: int = 8
    silence_seconds: float = 60.0

    def too_large(self) -> Refused:
        """The refusal of a file that is too large."""
        return Refused(
            413,
            f"The file is larger than {self.upload_bytes / 2**20:.0f} MB, the most that this "
            "server takes.",
        )

    def full(self) -> Refused:
        """The refusal of one scan too many."""
        return Refused(
            503,
            f"{self.waiting} scans are being worked on already. Try again when one of them is "
            "done.",
        )
