"""The series of a DICOM input, the one that is meant, and which of them are cases."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dkuxnet.core.errors import UserError
from dkuxnet.data.dicom.headers import Image, read_header
from dkuxnet.data.dicom.tree import opened

MAX_LISTED = 6


@dataclass(frozen=True)
class Series:
    """The images of one SeriesInstanceUID in the tree at `path`."""

    path: Path
    uid: str
    images: tuple[Image, ...]

    @property
    def home(self) -> Path:
        """The smallest folder that holds all of its images; the zip or file itself where that is
        the tree.
        """
        if not self.path.is_dir():
            return self.path
        return self.path / os.path.commonpath(
            [PurePosixPath(image.name).parent for image in self.images]
        )

    @property
    def description(self) -> str:
        """As the scanner names it, the UID and the number of frames with it: one item of a list."""
        name = "".join(c if c.isprintable() else "?" for c in self.images[0].description)[:40]
        count = sum(len(image.planes) for image in self.images)
        return f"{self.uid} ({f'{name}, ' if name else ''}{count} images)"


def find_series(path: str | Path) -> list[Series]:
    """All series of images with a place in space, by the name of their first file.

    No voxel is read.

    Localizers, segmentations, reports and whatever else is in the tree are left out. Raises
    UserError where nothing remains, and for a damaged DICOM file.
    """
    found, damaged = _looked_through(Path(path))
    for error in damaged.values():
        raise error
    return found


def _looked_through(path: Path) -> tuple[list[Series], dict[str, UserError]]:
    """All series, and what is wrong with each damaged file, by its name.

    Raises UserError where there is no series.
    """
    found: dict[str, list[Image]] = {}
    damaged: dict[str, UserError] = {}
    skipped = 0
    with opened(path) as entries:
        for entry in entries:
            try:
                image = read_header(path, entry)
            except UserError as error:
                damaged[entry.name] = error
                continue
            if image is None:
                skipped += 1
            else:
                found.setdefault(image.series_uid, []).append(image)
    placed = {
        uid: images
        for uid, images in found.items()
        if any(plane for image in images for plane in image.planes)
    }
    if damaged and not placed:
        raise next(iter(damaged.values()))
    if not found:
        raise UserError(
            f"{path}: expected DICOM images, but none of its {skipped} files is one (localizers, "
            "reports and "
            "segmentations do not count); give the folder of a scan"
        )
    if not placed:
        raise UserError(
            f"{path}: its DICOM images do not say where they lie (position, orientation and pixel "
            "spacing); give a "
            "CT, MR or PET scan as the scanner wrote it"
        )
    return [Series(path, uid, tuple(images)) for uid, images in placed.items()], damaged


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
            "these"
        )
    raise _several(path, chosen)


def find_scans(path: str | Path, series_uid: str | None = None) -> dict[str, Series]:
    """Name of a case -> its series: the only series is named after `path`; several studies, one
    series in a subfolder (or a multi-frame file) each, are named after the subfolders.

    Raises UserError with a list where several series of one study, or of one folder, ask for a
    choice; and for a damaged DICOM file, but where it lies in the subfolder of one case: whoever
    reads that case is told of it, and the others are well.
    """
    path = Path(path)
    if series_uid is not None:
        return {tree_name(path): one_series(path, series_uid)}
    found, damaged = _looked_through(path)
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
    """Whether a file is a DICOM image of several frames: a scan by itself, where a single slice is
    not.
    """
    with opened(path) as entries:
        image = read_header(path, next(entries))
    return image is not None and len(image.planes) > 1


def tree_name(path: Path) -> str:
    """The name of a folder, or of a .zip or .dcm without its suffix."""
    path = path.absolute()
    return path.name if path.is_dir() else path.stem


def _by_place(found: Sequence[Series]) -> dict[str, Series]:
    """Series by the subfolder, below the folder that they share, or by the file that holds them;
    fewer where two share it.
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
        "--series-uid"
    )


def _listed(found: Sequence[Series]) -> str:
    listed = "; ".join(series.description for series in found[:MAX_LISTED])
    return listed + (f"; and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else "")
