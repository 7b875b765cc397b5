"""The series of a DICOM input, the one that is asked for, and which of them are cases."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dkuxnet.core.errors import UserError
from dkuxnet.data.checks import Header, reading
from dkuxnet.data.dicom.headers import Image, Reads, read_header
from dkuxnet.data.dicom.tree import Entry, is_copy, opened, place, printable, tree_name

MAX_LISTED = 3
MAX_LOCALIZERS = 3  # of a series; more images across its slices are a stack of their own
TURNED = 0.1  # in a component of the directions, from which an image faces elsewhere


@dataclass(frozen=True)
class Series:
    """The slices of one SeriesInstanceUID in the tree at `path`.

    left_out: names of images beside them that are none, and what they are; empty where all are.
    """

    path: Path
    uid: str
    images: tuple[Image, ...]
    left_out: str = ""

    @property
    def frames(self) -> int:
        """Number of frames of all images."""
        return sum(len(image.planes) for image in self.images)

    @property
    def header(self) -> Header:
        """What reading the series will give: columns, rows and frames, of the largest size."""
        columns = max(image.columns for image in self.images)
        rows = max(image.rows for image in self.images)
        return Header((columns, rows, self.frames), np.dtype(np.float32))

    @property
    def title(self) -> str:
        """What messages begin with."""
        without = f" without {self.left_out}" if self.left_out else ""
        return f"{self.path}: series {self.uid}{without}"

    @property
    def home(self) -> Path:
        """The smallest folder that holds all images; the tree itself if that is a zip or file."""
        if not self.path.is_dir():
            return self.path
        return self.path / os.path.commonpath(
            [PurePosixPath(image.name).parent for image in self.images]
        )

    @property
    def description(self) -> str:
        """UID, the scanner's name for it and number of frames: one item of a list."""
        name = printable(self.images[0].description)[:40]
        return f"{self.uid} ({f'{name}, ' if name else ''}{self.frames} images)"


def find_series(path: str | Path) -> list[Series]:
    """All series of images with a position in space, in the order of their first files.

    Localizers, segmentations, reports and whatever else is in the tree are left out. No voxel is
    read. Raises UserError where nothing remains, and for a damaged DICOM file.
    """
    found, damaged = _search(Path(path))
    for error in damaged.values():
        raise error
    return found


def _search(path: Path) -> tuple[list[Series], dict[str, UserError]]:
    """All series, and for each damaged file, by name, what is wrong with it.

    Raises UserError where there is no series.
    """
    found: dict[str, list[Image]] = {}
    firsts: dict[object, Entry] = {}
    damaged: dict[str, UserError] = {}
    skipped, reads = 0, Reads()
    with opened(path) as entries:
        for entry in entries:
            try:
                image = read_header(path, entry, reads)
                if image is None:
                    skipped += 1
                elif not _is_copy(path, entry, image, firsts):
                    found.setdefault(image.series_uid, []).append(image)
            except UserError as error:
                damaged[entry.name] = error
    placed = {uid: images for uid, images in found.items() if any(image.place for image in images)}
    if damaged and not placed:
        raise next(iter(damaged.values()))
    if not found:
        raise UserError(
            f"{path}: expected DICOM images, but none of its {skipped} files is one (localizers, "
            "reports and segmentations do not count); give the folder of a scan"
        )
    if not placed:
        raise UserError(
            f"{path}: its DICOM images do not say where they lie (position, orientation and pixel "
            "spacing); give a CT, MR or PET scan as the scanner wrote it"
        )
    return [_series(path, uid, images) for uid, images in placed.items()], damaged


def _is_copy(path: Path, entry: Entry, image: Image, firsts: dict[object, Entry]) -> bool:
    """Whether the file is a copy of one that came before; `firsts` remembers them."""
    first = firsts.setdefault((image.series_uid, image.sop_instance_uid, image.planes), entry)
    with reading(place(path, entry.name), "DICOM"):
        return first is not entry and is_copy(entry, first)


def _series(path: Path, uid: str, images: list[Image]) -> Series:
    """The series of `images`, without the screenshots and localizers among them."""
    sizes = Counter((image.rows, image.columns) for image in images if image.grey and image.place)
    usual = max(sizes, key=sizes.__getitem__, default=None)
    odd = [image for image in images if sizes and _is_screenshot(image, usual)]
    slices = [image for image in images if image not in odd]
    aside = _turned(slices)
    if len(aside) > min(MAX_LOCALIZERS, len(slices) // 4):
        aside = []  # several stacks, of which one must be chosen
    kinds = ((odd, "no slice"), (aside, "across the slices"))
    left_out = " and ".join(f"{_names(found)} ({what})" for found, what in kinds if found)
    return Series(path, uid, tuple(each for each in slices if each not in aside), left_out)


def _is_screenshot(image: Image, usual: tuple[int, int] | None) -> bool:
    """Whether an image of a grey series is in colour, or has no place and is no slice otherwise."""
    made = image.secondary or (image.rows, image.columns) != usual
    return not image.grey or (image.place is None and made)


def _turned(images: Sequence[Image]) -> list[Image]:
    """The images that face elsewhere than most, as a localizer does."""
    placed = [(image, image.place.orientation) for image in images if image.place]
    orientations = np.array([orientation for _, orientation in placed])
    aside = np.abs(orientations - np.median(orientations, axis=0)).max(axis=1) > TURNED
    return [image for (image, _), turned in zip(placed, aside, strict=True) if turned]


def _names(images: Sequence[Image]) -> str:
    named = ", ".join(printable(image.name) for image in images[:MAX_LISTED])
    return named + (f" and {len(images) - MAX_LISTED} more" if len(images) > MAX_LISTED else "")


def one_series(path: str | Path, series_uid: str | None = None) -> Series:
    """The series `series_uid`, or the only one that there is.

    Raises UserError with a list where that is not one.
    """
    found = find_series(path)
    chosen = [series for series in found if series_uid in (None, series.uid)]
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise UserError(
            f"{path}: expected a series {series_uid}, but it holds {_listed(found)}; choose one of "
            "these",
            _table(found),
        )
    raise _several(path, chosen)


def find_scans(path: str | Path, series_uid: str | None = None) -> dict[str, Series]:
    """The series that are cases, by the name of the case.

    A single series is named after `path`. Several studies, of one series each and each in its own
    subfolder or multi-frame file, are named after the subfolders or files.

    Raises UserError, with a list, where one must be chosen of several series of a study or folder.
    Also for a damaged DICOM file, unless it lies in the subfolder of one case: then reading that
    case raises, and the other cases can be used.
    """
    path = Path(path)
    if series_uid is not None:
        return {tree_name(path): one_series(path, series_uid)}
    found, damaged = _search(path)
    homes = [series.home for series in found if series.home != path]
    for name, error in damaged.items():
        if not any(homes.count(folder) == 1 for folder in (path / name).parents):
            raise error
    if len(found) == 1:
        return {tree_name(path): found[0]}
    named = _by_place(found)
    if len(named) < len(found) or len({series.images[0].study_uid for series in found}) < len(
        found
    ):
        raise _several(path, found)
    return named


def is_multi_frame(path: Path) -> bool:
    """Whether a file is a DICOM image of several frames: a scan, which a single slice is not."""
    with opened(path) as entries:
        image = read_header(path, next(entries))
    return image is not None and len(image.planes) > 1


def _by_place(found: Sequence[Series]) -> dict[str, Series]:
    """Series by the subfolder of their common folder, or by the file, that holds each alone.

    Fewer than `found` where two share one.
    """
    folders = [[PurePosixPath(image.name).parent for image in series.images] for series in found]
    shared = PurePosixPath(
        os.path.commonpath([folder.as_posix() for each in folders for folder in each])
    )
    named = {}
    for series in found:
        places = {PurePosixPath(image.name).relative_to(shared).parts[0] for image in series.images}
        if len(places) == 1:
            (place,) = places
            alone = (
                len(series.images) == 1 and PurePosixPath(series.images[0].name).parent == shared
            )
            named[PurePosixPath(place).stem if alone else place] = series
    return named


def _several(path: str | Path, found: Sequence[Series]) -> UserError:
    return UserError(
        f"{path}: expected one series, got {len(found)}: {_listed(found)}; choose one with "
        "--series-uid, or give one series of each patient alone",
        _table(found),
    )


def _table(found: Sequence[Series]) -> list[str]:
    """All series, one a line, under a heading."""
    rows: list[tuple[str, ...]] = [("SERIES UID", "IMAGES", "SIZE", "MODALITY", "DESCRIPTION")]
    for series in found:
        width, height, images = series.header.shape
        first = series.images[0]
        words = (first.modality, first.description)
        rows.append((series.uid, str(images), f"{width} x {height}", *map(printable, words)))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _listed(found: Sequence[Series]) -> str:
    listed = "; ".join(series.description for series in found[:MAX_LISTED])
    return listed + (f"; and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else "")
