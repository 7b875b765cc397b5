"""A series of an archive in, its segmentation back to the archive or into a folder."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import CaseProgress
from dkuxnet.data.dicom.series import aligned
from dkuxnet.data.values import MODALITIES, modalities_in
from dkuxnet.machine.processes import stopping_on_sigterm
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.runs.folder import RunFolder
from dkuxnet.runs.folds import runs_in

if TYPE_CHECKING:
    from dkuxnet.data.dicom.web import Archive, ListedSeries


def predict_study(
    run: StrPath,
    url: str,
    study_uid: str,
    output: StrPath | None = None,
    credentials: Path | None = None,
    progress: CaseProgress | None = None,
    *,
    series_uid: str | None = None,
    **options: Any,
) -> list[Path]:
    """Segment a series of a study in the archive at `url` with the model of `run`.

    The series is `series_uid`, or the only one that looks like what the model takes. Its label map
    goes to the folder `output`, named after the UID of the series; without one it is stored in the
    archive, as DICOM SEG or what `form` says, in the same study. credentials: see
    `data.dicom.web.read_credentials`. options: of `predict_scans`. Returns the label maps; what was
    stored in the archive is gone.

    Raises ArchiveError for what is the archive's fault. A SEG that it does not take is kept, and
    the message says where.
    """
    from dkuxnet.data.dicom.web import Archive, check_uid, read_credentials

    say = progress or (lambda sentence, done, total: None)
    check_uid("--study", study_uid)
    if series_uid is not None:
        check_uid("--series", series_uid)
    channels = RunFolder.open(runs_in(Path(run))[0]).manifest.channels
    archive = Archive(url, read_credentials(credentials))
    series = _chosen(archive, study_uid, series_uid, channels)
    with stopping_on_sigterm(), tempfile.TemporaryDirectory(prefix="dkuxnet-") as temporary:
        scan, made = Path(temporary) / series.uid, Path(temporary) / "made"
        say(f"{series.uid}: fetching {series.images} images", 0, 1)
        archive.fetch(series, scan)
        if output is None and options.get("form", "auto") == "auto":
            options["form"] = "dicom-seg"
        written = predict_scans(
            run, [scan], output or made, progress=progress, series_uid=series.uid, **options
        )
        if output is None:
            _store(archive, made)
    return written


def _store(archive: "Archive", made: Path) -> None:
    """Store the SEGs in a folder, all kinds of maps. Raises UserError that says where they are."""
    try:
        for path in sorted(made.rglob("*.dcm")):
            archive.store(path)
    except UserError as error:
        kept = shutil.move(made, tempfile.mkdtemp(prefix="dkuxnet-"))
        raise UserError(f"{error}; the segmentation is kept in {kept}") from error


def modalities_of(channels: Sequence[str]) -> set[str]:
    """The modalities of the series that a model takes, by the names of its channels."""
    return {each for name in channels for each in modalities_in(name)} or set(MODALITIES.values())


def looked_at(archive: "Archive", series: "ListedSeries") -> "tuple[ListedSeries, bool]":
    """The series with the number of its images, and whether some of them may be of a scan."""
    scans = archive.scans(series)
    return replace(series, images=max(series.images, len(scans))), any(scans) or not scans


def _chosen(
    archive: "Archive", study_uid: str, series_uid: str | None, channels: Sequence[str]
) -> "ListedSeries":
    """The series to segment. Raises UserError, with a list, where that is not one."""
    listed = archive.series(study_uid)
    if not listed:
        raise UserError(f"{archive.url}: it has no study {study_uid}; check the UID")
    if series_uid is None:
        wanted = modalities_of(channels)
        fit = [each for each in listed if each.modality in wanted]
        found = [
            series for series, is_scan in (looked_at(archive, each) for each in fit) if is_scan
        ]
    else:
        found = [looked_at(archive, each)[0] for each in listed if each.uid == series_uid]
    if len(found) == 1:
        return found[0]
    expected = f"a series {series_uid}" if series_uid else "one series that the model takes"
    raise UserError(
        f"{archive.url}: study {study_uid}: expected {expected}, got {len(found)} of "
        f"{len(listed)}; choose one with --series",
        _table(listed),
    )


def _table(listed: "Sequence[ListedSeries]") -> list[str]:
    """All series, one a line, under a heading."""
    rows = [(s.uid, str(s.images or "?"), s.modality, s.description) for s in listed]
    return aligned([("SERIES UID", "IMAGES", "MODALITY", "DESCRIPTION"), *rows])
