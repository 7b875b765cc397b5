"""What the JSON of a prepared set and of a run must say of itself, checked before anything is
opened, built or held by it.

The documents may hold more; what stands here is what others rely on. Bounds are far above every
real data set, and keep a stranger's numbers from filling the memory.
"""

import math
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dkuxnet.core.documents import names_a_file
from dkuxnet.core.errors import UserError

MAX_VOXELS = 2**31  # of a case: 8 GiB
MAX_LABEL = 2**31 - 1


def _file_name(name: str) -> str:
    if not names_a_file(name):
        raise ValueError("a name of a case can hold no slash, control or leading dot")
    return name


def _can_be_held(shape: list[int]) -> list[int]:
    if math.prod(shape) > MAX_VOXELS:
        raise ValueError(f"more than {MAX_VOXELS} voxels")
    return shape


Voxels = Annotated[int, Field(ge=1, le=2**16)]
Shape = Annotated[list[Voxels], Field(min_length=3, max_length=3), AfterValidator(_can_be_held)]
Edge = Annotated[int, Field(ge=16, le=8192, multiple_of=16)]
Patch = Annotated[list[Edge], Field(min_length=3, max_length=3)]
Millimetres = Annotated[float, Field(ge=1e-3, le=1e3)]
Spacing = Annotated[list[Millimetres], Field(min_length=3, max_length=3)]
Three = Annotated[list[float], Field(min_length=3, max_length=3)]
Row = Annotated[list[float], Field(min_length=4, max_length=4)]
Affine = Annotated[list[Row], Field(min_length=4, max_length=4)]
CaseName = Annotated[str, Field(max_length=250), AfterValidator(_file_name)]
ClassName = Annotated[str, Field(max_length=1000)]
Labels = Annotated[
    dict[ClassName, Annotated[int, Field(ge=0, le=MAX_LABEL)]], Field(min_length=2, max_length=256)
]
Channels = Annotated[list[ClassName], Field(min_length=1, max_length=64)]
Seconds = Annotated[float, Field(ge=0)]
ABSENT: Any = None  # what may not be there yet; where it is, null is no value


class Part(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class ZScore(Part):
    kind: Literal["z-score"]


class Hounsfield(Part):
    kind: Literal["ct"]
    low: float
    high: float
    mean: float
    std: float


class Plan(Part):
    """See `plan.make_plan`."""

    spacing_mm: Spacing
    normalisation: list[Annotated[ZScore | Hounsfield, Field(discriminator="kind")]]
    patch: Patch
    network: str


class Fingerprint(Part):
    """What `report` tells of it, see `fingerprint.take_fingerprint`."""

    cases: int = ABSENT
    labelled: int = ABSENT
    shape_median: Three = ABSENT
    spacing_mm_median: Three = ABSENT
    extent_mm_median: Three = ABSENT
    label_share: dict[str, float] = {}


class PreparedCase(Part):
    name: CaseName
    labelled: bool
    shape: Shape


class Prepared(Part):
    """dataset.json of a prepared set, see `data.dataset`."""

    channels: Channels
    labels: Labels
    cases: list[PreparedCase]
    fingerprint: Fingerprint
    plan: Plan

    @model_validator(mode="after")
    def _agrees(self) -> "Prepared":
        if len({case.name for case in self.cases}) < len(self.cases):
            raise ValueError("a name of a case stands twice")
        _check_normalisation(self)
        return self


class PreparedInfo(Part):
    """cases/NAME.json of a prepared set."""

    images: Annotated[list[str], Field(min_length=1)]
    oriented: bool = True
    shape: Shape
    affine: Affine
    spacing_mm: Spacing
    prepared_affine: Affine


class QueryGroup(Part):
    name: str
    classes: list[Annotated[int, Field(ge=0, le=255)]] = []
    queries: Annotated[int, Field(ge=1, le=4096)] = 1


class ShapeOfNetwork(Part):
    in_channels: Annotated[int, Field(ge=1, le=64)] = 1
    classes: Annotated[int, Field(ge=2, le=256)] = 2
    groups: Annotated[list[QueryGroup], Field(max_length=256)] = []


class Manifest(Part):
    """manifest.json of a run, see `job.describe`; a run that is being made has only a part of it."""

    labels: Labels = ABSENT
    channels: Channels = ABSENT
    cases: list[CaseName] = ABSENT
    split: dict[Literal["labelled", "unlabelled", "validation", "test"], list[CaseName]] = ABSENT
    plan: Plan = ABSENT
    network_shape: ShapeOfNetwork = ABSENT
    patch: Patch = ABSENT
    prepared: str = ABSENT
    network: str = ABSENT
    method: str = ABSENT
    parameters: int = ABSENT
    steps_done: int = ABSENT
    train_seconds: Seconds = ABSENT
    evaluate_seconds: Seconds = ABSENT
    fingerprint: Fingerprint = ABSENT
    machine: dict[str, Any] = ABSENT

    @model_validator(mode="after")
    def _agrees(self) -> "Manifest":
        _check_normalisation(self)
        shape = self.network_shape
        if shape and self.channels and shape.in_channels != len(self.channels):
            raise ValueError("network_shape.in_channels is not the number of channels")
        if shape and self.labels and shape.classes != len(self.labels):
            raise ValueError("network_shape.classes is not the number of labels")
        return self


def _check_normalisation(described: Prepared | Manifest) -> None:
    if (
        described.plan
        and described.channels
        and len(described.plan.normalisation) != len(described.channels)
    ):
        raise ValueError("plan.normalisation must have an entry for each channel")


class SettingsOfRun(Part):
    """settings.json of a run; `config.validate` knows more of it."""

    data: dict[str, Any] = {}
    network: dict[str, Any] = {}
    method: dict[str, Any] = {}
    augment: dict[str, Any] = {}
    train: dict[str, Any] = {}
    infer: dict[str, Any] = {}


def check_described(content: Any, form: type[Part], path: Path, remedy: str) -> dict[str, Any]:
    """`content` itself, where it is what `form` says.

    Raises UserError that names the first thing that is not.
    """
    try:
        form.model_validate(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise UserError(
            f"{path}: {where}: {first['msg']}, got {brief(first['input'])}; {remedy}"
        ) from error
    return content
