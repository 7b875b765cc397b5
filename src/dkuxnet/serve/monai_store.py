"""The part of MONAI Label's protocol with which 3D Slicer's plugin labels the label folder.

POST /activelearning/STRATEGY (which scan next; its id goes with all that follows), GET
/datastore/image?image=ID (the scan), PUT /datastore/label?image=ID (a form with the label map in
`label` and, in `params`, `label_info`: the names of its values). POST /train/MODEL says what to run
instead. The id of a scan is NAME@CHECKSUM.SITTING: the plugin hands it back with the label, which
so is known to be drawn on this scan, and may replace what was saved in the same sitting.
"""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from dkuxnet.core.documents import parse_json
from dkuxnet.core.lookup import unknown
from dkuxnet.core.regular import check_regular
from dkuxnet.core.types import Case
from dkuxnet.data import formats
from dkuxnet.machine.files import checksum
from dkuxnet.serve.label_folder import Drawing, LabelFolder, Question, check_loaded, scan_checksum
from dkuxnet.serve.limits import Limits, Refused
from dkuxnet.serve.names import FILE, signature
from dkuxnet.serve.uploads import Uploads, file_of, received_form, store

STRATEGY = "suggest"
AS_THEY_ARE = (".nii.gz", ".nii", ".nrrd", ".mha")  # what 3D Slicer opens
TAKEN = (*AS_THEY_ARE, ".seg.nrrd")
NO_FOLDER = (
    "This server has no label folder. To save labels, and to be asked for the next scan, start it "
    "with `dkuxnet serve RUN --label-folder SCANS`."
)
NO_TRAINING = (
    "This server does not train. Run `dkuxnet loop FOLDER` on the label folder, or prepare it and "
    "run `dkuxnet train PREPARED NEWRUN --from RUN`; then serve the new run."
)


@dataclass(frozen=True)
class Sample:
    """A scan of the label folder as the plugin knows it; see the top of this file."""

    case: Case
    loaded: str = ""
    sitting: str = ""

    @classmethod
    def of(cls, image: str, labels: LabelFolder | None) -> "Sample":
        """The scan of an id, or of a bare name. Raises Refused where there is none."""
        if labels is None:
            raise Refused(404, NO_FOLDER)
        name, mark, rest = image.rpartition("@")
        if not mark:
            return cls(labels.case(image))
        loaded, _, sitting = rest.partition(".")
        return cls(labels.case(name), loaded, sitting)

    @property
    def id(self) -> str:
        return f"{self.case.name}@{self.loaded[:16]}.{self.sitting}"


def described(labels: LabelFolder | None) -> dict[str, Any]:
    """What /info/ says of the label folder."""
    if labels is None:
        return {"strategies": {}, "datastore": {"total": 0, "completed": 0}}
    text = "the scans without a label, in the order of `dkuxnet suggest`"
    return {
        "strategies": {STRATEGY: {"description": text, "config": {}}},
        "datastore": counted(labels),
    }


def counted(labels: LabelFolder) -> dict[str, int]:
    """How many scans there are, and how many have a label."""
    states = [each["labelled"] for each in labels.listed()]
    return {"total": len(states), "completed": sum(states)}


def router(labels: LabelFolder | None, limits: Limits) -> APIRouter:
    """The protocol's addresses. labels: None where there is no label folder."""
    routes = APIRouter()

    def folder() -> LabelFolder:
        if labels is None:
            raise Refused(404, NO_FOLDER)
        return labels

    @routes.get("/datastore/")
    def datastore(output: str = "stats") -> dict[str, Any]:
        """Objects are not listed: what the plugin looks for in them is not stored here."""
        if output == "all":
            return {"objects": {}}
        return {"total": 0, "completed": 0} if labels is None else counted(labels)

    @routes.put("/datastore/")
    def add_image() -> None:
        folder()
        raise Refused(
            409,
            "This server takes no scans into its label folder. Copy the scan there, and get it "
            "with Next Sample.",
        )

    @routes.post("/activelearning/{strategy}")
    def next_sample(strategy: str) -> dict[str, Any]:
        case = _next(folder(), strategy)
        return {} if case is None else _told_of(case)

    @routes.get("/datastore/image")
    def image(image: str) -> FileResponse:
        sample = Sample.of(image, labels)
        check_loaded(sample.case, sample.loaded)
        return _sent(sample.case, folder())

    uploads = Uploads(labels.private if labels else Path(), limits)

    @routes.put("/datastore/label")
    async def save_label(request: Request, image: str) -> dict[str, Any]:
        sample = await run_in_threadpool(Sample.of, image, labels)
        async with uploads.place() as place, received_form(request) as form:
            drawing = await _drawing(form, sample, folder(), place, limits)
            try:
                await run_in_threadpool(folder().save, sample.case.name, drawing)
            except Question as asked:  # the plugin cannot answer
                raise Refused(
                    409, f"{asked.fact} Nothing was saved; replace it on the page."
                ) from None
        return {"image": image, "label": sample.case.name}

    @routes.post("/train/")
    @routes.post("/train/{model}")
    def train(model: str = "") -> None:
        raise Refused(501, NO_TRAINING)

    return routes


def _next(labels: LabelFolder, strategy: str) -> Case | None:
    if strategy != STRATEGY:
        raise Refused(404, f"{unknown('strategy', strategy, [STRATEGY])}.")
    return labels.next()


def _told_of(case: Case) -> dict[str, Any]:
    """A scan for the plugin, which takes the name for that of a file."""
    sample = Sample(case, scan_checksum(case), secrets.token_hex(8))
    as_it_is = _as_it_is(case)
    name = as_it_is.name if as_it_is else f"{case.name}.nii.gz"
    return {"id": sample.id, "name": name} | (
        {"checksum": f"SHA256:{checksum(as_it_is)}"} if as_it_is else {}
    )


def _as_it_is(case: Case) -> Path | None:
    """The file of a scan that 3D Slicer opens; None where it has to be converted."""
    (first, *others) = case.images
    known = formats.longest_suffix(first.name, formats.READABLE) in AS_THEY_ARE
    return first if known and not others and not first.is_dir() else None


def _sent(case: Case, labels: LabelFolder) -> FileResponse:
    if file := _as_it_is(case):
        check_regular(file)
        return FileResponse(file, media_type="application/octet-stream", filename=file.name)
    place = labels.private / secrets.token_urlsafe(16)
    place.mkdir(mode=0o700)
    remove = BackgroundTask(shutil.rmtree, place, ignore_errors=True)
    try:
        written = place / f"{FILE}.nii.gz"
        formats.write(labels.scan(case, place), written)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return FileResponse(
        written,
        media_type="application/octet-stream",
        filename=f"{case.name}.nii.gz",
        background=remove,
    )


async def _drawing(
    form: FormData, sample: Sample, labels: LabelFolder, place: Path, limits: Limits
) -> Drawing:
    """The label map of a form, stored in `place`. Raises Refused for what is no such form."""
    upload = file_of(form, "label")
    ending = formats.longest_suffix((upload and upload.filename) or "", formats.READABLE)
    if upload is None or ending not in TAKEN:
        raise Refused(
            415, f"Expected a label map in the field `label` of the form: {', '.join(TAKEN)}."
        )
    try:
        params = parse_json(str(form.get("params") or "{}"))
        who, segments = params.get("client_id"), params.get("label_info")
        values = None if segments is None else _values(segments, labels.labels)
    except (ValueError, AttributeError, TypeError, KeyError):
        raise Refused(400, "Expected a JSON object in the field `params` of the form.") from None
    file = place / f"drawing{ending}"
    await store(upload, file, limits)
    return Drawing(
        file,
        list(labels.labels.values()) if values is None else values,
        sample.loaded,
        sitting=sample.sitting,
        who=signature(str(who or "")),
        program="3D Slicer",
    )


def _values(segments: list[dict[str, Any]], labels: dict[str, int]) -> list[int]:
    """Label values for 0, 1, 2, ..., which stand for the segments in their order.

    Raises Refused for a segment that is no class, and where the segments are numbered otherwise.
    """
    names = [str(segment["name"]) for segment in segments]
    if absent := [name for name in names if not labels.get(name)]:
        raise Refused(
            400,
            f"There is a segment “{absent[0]}”, which is no class of the model "
            f"({', '.join(list(labels)[1:])}). Rename or remove it; nothing was saved.",
        )
    if [segment["idx"] for segment in segments] != list(range(1, len(segments) + 1)):
        raise Refused(
            400,
            "The segments are not numbered 1, 2, ... in their order. Remove the segments that are "
            "no classes, such as a background; nothing was saved.",
        )
    return [0, *(labels[name] for name in names)]
