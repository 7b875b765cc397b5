"""A picture archive (PACS) by DICOMweb: what it lists, what is fetched from it, and stored in it.

These are QIDO-RS, WADO-RS and STOW-RS. dicomweb-client speaks them. It is an optional extra:
importing this module without it raises UserError.
"""

import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydicom
from pydicom.uid import UID

from dkuxnet.core import extras
from dkuxnet.core.documents import read_toml
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.data.dicom.headers import quiet
from dkuxnet.data.dicom.tree import printable

extras.require("dicomweb", "dicomweb_client", "requests")

import requests  # noqa: E402  # behind the line that says how to install it
from dicomweb_client.web import DICOMwebClient  # noqa: E402
from requests.auth import AuthBase, HTTPBasicAuth  # noqa: E402

SECRETS = ("user", "password", "token")
CONNECT_S, ANSWER_S = 10.0, 120.0  # an archive may have to fetch from a slower one first
PAGE = 500  # series that are asked for at once
UID_FORM = re.compile(r"[0-9.]{1,64}", re.ASCII)
AS_STORED = (("application/dicom", "*"),)
# what DICOM's JSON calls them
STUDY, SERIES, IMAGES = "0020000D", "0020000E", "00201209"
MODALITY, DESCRIPTION, IMAGE_TYPE, SOP_CLASS = "00080060", "0008103E", "00080008", "00080016"
SOP_INSTANCE = "00080018"
NOT_DICOMWEB = "what it answers is not DICOMweb, or damaged; check the address"
WHY = {
    401: "it wants other credentials: DKUXNET_DICOMWEB_USER and _PASSWORD, or _TOKEN",
    403: "these credentials do not allow it",
    404: "there is nothing at that address",
    409: "it does not take it",
}


class ArchiveError(UserError):
    """The archive or the way to it is at fault: the same may work later.

    everywhere: the next request would fail too.
    """

    def __init__(self, message: str, everywhere: bool = False):
        super().__init__(message)
        self.everywhere = everywhere


@dataclass(frozen=True)
class ListedSeries:
    """A series as the archive lists it. images: how many files; 0 where it does not say."""

    study_uid: str
    uid: str
    modality: str
    description: str
    images: int


def read_credentials(path: Path | None = None) -> AuthBase:
    """From DKUXNET_DICOMWEB_USER and _PASSWORD, or _TOKEN; or from a TOML file of mode 600.

    In the file they are called user, password and token. There may be none. Raises UserError for a
    file that others can read, and for half of a pair; no message holds one of them.
    """
    if path is None:
        place = "DKUXNET_DICOMWEB_USER, _PASSWORD, _TOKEN"
        found = {name: os.environ.get(f"DKUXNET_DICOMWEB_{name.upper()}", "") for name in SECRETS}
    else:
        place, found = str(path), _read_private(path)
    user, password, token = (found.get(name, "") for name in SECRETS)
    if bool(user) != bool(password) or (user and token) or not set(found) <= set(SECRETS):
        raise UserError(f"{place}: expected user and password, or token, and nothing else")
    if not (token.isascii() and (user + password + token).isprintable()) or " " in token:
        raise UserError(f"{place}: a credential holds what no request can; copy it again")
    return _Auth(HTTPBasicAuth(user.encode(), password.encode()) if user else None, token)


class _Auth(AuthBase):
    """Puts into every request who sends it."""

    def __init__(self, basic: AuthBase | None = None, token: str = ""):
        self._basic, self._token = basic, token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # the client leaves the port out of it, by which a proxy may choose the archive
        request.headers.pop("Host", None)
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return self._basic(request) if self._basic else request


def _read_private(path: Path) -> dict[str, str]:
    """The texts of a TOML file that its owner alone can read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path}: cannot read the credentials: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(f"{path}: others than its owner can read it: chmod 600 {path}")
    return {name: str(value) for name, value in read_toml(path).items()}


class Archive:
    """An archive at a URL. Its methods raise ArchiveError, in one line that names it."""

    def __init__(self, url: str, credentials: AuthBase | None = None):
        """Nothing is sent yet.

        Raises UserError where `url` is no address, or holds credentials or a query. Warns where
        patients would go over a network in the clear.
        """
        self.url = _checked(url)
        session = requests.Session()
        session.auth = credentials or _Auth()  # without one, requests would look into .netrc
        session.max_redirects = 0  # what is stored would become a question
        self._client = DICOMwebClient(
            self.url, session, permissive_uid=True, timeout=(CONNECT_S, ANSWER_S)
        )
        self._client.set_http_retry_params(retry=False)

    def series(self, study_uid: str | None = None, since: date | None = None) -> list[ListedSeries]:
        """The series of a study, or of all studies; since: of studies from that day on."""
        matching = {"StudyDate": f"{since:%Y%m%d}-"} if since else {}
        found: dict[str, ListedSeries] = {}
        offset = 0
        while True:
            with self._telling("list its series"):
                page = self._client.search_for_series(
                    study_uid,
                    fields=["NumberOfSeriesRelatedInstances", "SeriesDescription"],
                    search_filters=matching,
                    limit=PAGE,
                    offset=offset,
                )
                listed = [_listed(row, study_uid) for row in page]
            new = {each.uid: each for each in listed if each and each.uid not in found}
            if not new:  # the end; or the archive knows no offset and has told all
                return list(found.values())
            found |= new
            offset += len(page)

    def scans(self, series: ListedSeries) -> list[bool]:
        """For each image of a series whether it belongs to a scan, as far as the archive says.

        Localizers and images that were made of others do not.
        """
        with self._telling(f"list the images of series {series.uid}"):
            rows = self._client.search_for_instances(
                series.study_uid, series.uid, fields=["ImageType", "SOPClassUID"]
            )
            return [_is_of_scan(row) for row in rows]

    def fetch(self, series: ListedSeries, folder: Path) -> None:
        """Write all images of a series into a new folder, as they are stored.

        Also an ArchiveError where fewer come than are listed.
        """
        folder.mkdir(parents=True)
        came: set[str] = set()
        with self._telling(f"fetch series {series.uid}"), quiet():
            for image in self._client.iter_series(series.study_uid, series.uid, AS_STORED):
                image.save_as(folder / f"{len(came):06}.dcm")
                came.add(str(image.SOPInstanceUID))
        if len(came) < max(1, series.images):
            raise ArchiveError(
                f"{self.url}: series {series.uid}: expected {series.images} images, but "
                f"{len(came)} came; ask again when it is complete"
            )

    def store(self, path: Path) -> None:
        """Store a DICOM file.

        One that is there already by the same SOP instance UID is stored again.
        """
        what = f"store {path.name}"
        with quiet():
            dataset = pydicom.dcmread(path)
        uid = str(dataset.SOPInstanceUID)
        with self._telling(what):
            answer = self._client.store_instances([dataset])
            failed = [
                int(each.get("FailureReason", 0)) for each in answer.get("FailedSOPSequence", [])
            ]
            stored = [
                each.ReferencedSOPInstanceUID for each in answer.get("ReferencedSOPSequence", [])
            ]
            if not failed and uid not in stored:  # an answer without words
                rows = self._client.search_for_instances(
                    dataset.StudyInstanceUID, search_filters={"SOPInstanceUID": uid}
                )
                stored = [value for row in rows for value in _values(row, SOP_INSTANCE)]
        if failed or uid not in stored:
            why = f" (reason {failed[0]:04X})" if failed else ""
            raise ArchiveError(f"{self.url}: cannot {what}: it does not take it{why}")

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """What the block raises becomes an ArchiveError; but not what the disk says."""
        try:
            yield
        except requests.RequestException as error:
            why, everywhere = _reason(error)
            raise ArchiveError(f"{self.url}: cannot {what}: {why}", everywhere) from error
        except OSError:
            raise
        except Exception as error:  # a library's, of what it could not read
            raise ArchiveError(f"{self.url}: cannot {what}: {NOT_DICOMWEB}") from error


def check_uid(what: str, uid: str) -> None:
    """Raise UserError where `uid` is none."""
    if not UID_FORM.fullmatch(uid):
        raise UserError(f"{what}: expected a UID, digits and dots, got {uid!r}")


def _checked(url: str) -> str:
    """The address without its last slash; what it must not hold is not repeated."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise UserError("--dicomweb: expected an address as https://pacs.example/dicom-web")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"--dicomweb: the address of {host} must hold no credentials and no query: leave them "
            "out, and set DKUXNET_DICOMWEB_USER and DKUXNET_DICOMWEB_PASSWORD, or _TOKEN"
        )
    if parts.scheme == "http" and host not in ("localhost", "::1") and not host.startswith("127."):
        warnings.warn(
            f"{url}: images and credentials go to {host} in the clear; use https",
            DataWarning,
            stacklevel=3,
        )
    return url.rstrip("/")


def _reason(error: requests.RequestException) -> tuple[str, bool]:
    """Why a request failed, and whether the next one will too; never what it held."""
    if error.response is not None and not isinstance(error, requests.TooManyRedirects):
        status = error.response.status_code
        why = WHY.get(status, printable(error.response.reason or "")[:80])
        return f"it answers {status}: {why}", status == 401
    if isinstance(error, requests.TooManyRedirects):
        return "it leads to another address; give that one", True
    if isinstance(error, requests.JSONDecodeError):
        return NOT_DICOMWEB, False
    if isinstance(error, requests.exceptions.SSLError):
        trusted = "CERTIFICATE_VERIFY_FAILED" not in str(error)
        why = "it does not speak https there" if trusted else "its certificate is not trusted"
        return f"{why} (REQUESTS_CA_BUNDLE names a file of certificates to trust)", True
    if isinstance(error, requests.ConnectTimeout):
        return f"it cannot be reached within {CONNECT_S:g} s", True
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"nothing came for {ANSWER_S:g} s", False
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off", False
    return f"it cannot be reached ({_innermost(error)})", True


def _innermost(error: BaseException) -> str:
    """What the system said."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return getattr(error, "strerror", None) or type(error).__name__


def _values(row: dict[str, Any], tag: str) -> list[str]:
    return [str(value) for value in row.get(tag, {}).get("Value", ()) if value is not None]


def _is_of_scan(row: dict[str, Any]) -> bool:
    kinds = [UID(value).keyword for value in _values(row, SOP_CLASS)]
    made = {"LOCALIZER", "SECONDARY"} & set(_values(row, IMAGE_TYPE))
    return not made and all(
        each.endswith("ImageStorage") and "SecondaryCapture" not in each for each in kinds
    )


def _listed(row: dict[str, Any], study_uid: str | None) -> ListedSeries | None:
    """None where its UIDs are none, by which nothing could be asked for."""

    def first(tag: str) -> str:
        return next(iter(_values(row, tag)), "")

    study, uid = study_uid or first(STUDY), first(SERIES)
    if not (UID_FORM.fullmatch(study) and UID_FORM.fullmatch(uid)):
        return None
    words = printable(first(MODALITY)), printable(first(DESCRIPTION))
    return ListedSeries(study, uid, *words, int(first(IMAGES) or 0))
