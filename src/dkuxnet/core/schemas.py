"""The documents of a prepared set and of a run as objects, checked before anything relies on them.

What stands here is what others rely on; a document may hold more, which is kept. The bounds are far
above every real data set, and keep a stranger's numbers from filling the memory.
"""

import math
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dkuxnet.core.config import Edge, FourStrides, LevelsAxes
from dkuxnet.core.documents import names_a_file, read_json
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import HALVINGS, NEVER_FLAT, Group, NetworkShape, divisor_of

MAX_VOXELS = 2**31  # of a case: 8 GiB
MAX_EDGE = 2**16
LEAST_MM, MOST_MM = 1e-3, 1e3
MAX_LABEL = 2**31 - 1


def _file_name(name: str) -> str:
    if not names_a_file(name):
        raise ValueError("a name of a case can hold no slash, control or leading dot")
    return name


def _can_be_held(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if math.prod(shape) > MAX_VOXELS:
        raise ValueError(f"more than {MAX_VOXELS} voxels")
    return shape


LISTED = Field(strict=False)  # JSON has lists where we have tuples
Voxels = Annotated[int, Field(ge=1, le=MAX_EDGE)]
Shape = Annotated[tuple[Voxels, Voxels, Voxels], LISTED, AfterValidator(_can_be_held)]
Patch = Annotated[tuple[Edge, Edge, Edge], LISTED]
Millimetres = Annotated[float, Field(ge=LEAST_MM, le=MOST_MM)]
Spacing = Annotated[tuple[Millimetres, Millimetres, Millimetres], LISTED]
Three = Annotated[tuple[float, float, float], LISTED]
Row = Annotated[tuple[float, float, float, float], LISTED]
Affine = Annotated[tuple[Row, Row, Row, Row], LISTED]
CaseName = Annotated[str, Field(max_length=250), AfterValidator(_file_name)]
CaseNames = Annotated[tuple[CaseName, ...], LISTED]
ClassName = Annotated[str, Field(max_length=1000)]
LabelValue = Annotated[int, Field(ge=0, le=MAX_LABEL)]
Labels = Annotated[dict[ClassName, LabelValue], Field(min_length=2, max_length=256)]
Channels = Annotated[list[ClassName], Field(min_length=1, max_length=64)]
Seconds = Annotated[float, Field(ge=0)]


class Document(BaseModel):
    """A JSON object. Unknown keys are kept; `to_json` gives back what was read, and no defaults."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.model_dump(mode="json", exclude_unset=True)


class ZScore(Document):
    """Mean 0 and standard deviation 1 in every scan."""

    kind: Literal["z-score"] = "z-score"


class Hounsfield(Document):
    """CT: clipped to [low, high], then shifted and scaled by the data set's figures."""

    kind: Literal["ct"] = "ct"
    low: float
    high: float
    mean: float
    std: float


Normalisation = Annotated[ZScore | Hounsfield, Field(discriminator="kind")]


class NetworkGrid(Document):
    """How a scan looks to the network: voxel edges in RAS order, intensities of each channel."""

    spacing_mm: Spacing
    normalisation: list[Normalisation]


class Plan(NetworkGrid):
    """What follows from a fingerprint, see `data.plan.make_plan`.

    strides, flat: see `core.types.NetworkShape`; sets of before they were planned have none.
    """

    patch: Patch
    network: str
    strides: FourStrides = HALVINGS
    flat: LevelsAxes = NEVER_FLAT

    @model_validator(mode="after")
    def _patch_fits(self) -> Self:
        if any(n % d for n, d in zip(self.patch, divisor_of(self.strides), strict=True)):
            raise ValueError("the patch is no multiple of what its strides reduce")
        return self


class Fingerprint(Document):
    """What the scans of a set are like, in RAS order: see `data.fingerprint.take_fingerprint`.

    percentiles_median, mean, std: of each channel. label_share: label value, as text, -> share of a
    labelled scan's voxels.
    """

    cases: int
    labelled: int
    shape_median: Three
    shape_max: Three
    spacing_mm_median: Three
    extent_mm_median: Three
    percentiles_median: list[Three]
    mean: list[float]
    std: list[float]
    label_share: dict[str, float]


class PreparedCase(Document):
    """A case in dataset.json. sha256: of its files, by what follows "NAME." in their names."""

    name: CaseName
    labelled: bool
    shape: Shape
    sha256: dict[str, str] = {}


class _Planned(Document):
    """A document with channels and a plan for them."""

    channels: Channels
    labels: Labels
    fingerprint: Fingerprint
    plan: Plan

    @model_validator(mode="after")
    def _a_normalisation_for_each_channel(self) -> Self:
        if len(self.plan.normalisation) != len(self.channels):
            raise ValueError("plan.normalisation must have an entry for each channel")
        return self


class Prepared(_Planned):
    """dataset.json of a prepared set, see `data.prepared_set`."""

    version: int = 1
    source: str = ""
    layout: str = ""
    cases: list[PreparedCase]
    held_back: CaseNames = ()
    notes: list[str] = []

    @model_validator(mode="after")
    def _no_case_twice(self) -> Self:
        if len({case.name for case in self.cases}) < len(self.cases):
            raise ValueError("a name of a case appears twice")
        return self


class PreparedInfo(Document):
    """cases/NAME.json of a prepared set: the scan's files and grid, the prepared grid's affine.

    oriented: whether the files say how the patient lies. nifti: see `core.types.Volume`, in
    hexadecimal; empty in sets of earlier versions.
    """

    name: str = ""
    images: Annotated[list[str], Field(min_length=1)]
    oriented: bool = True
    shape: Shape
    affine: Affine
    spacing_mm: Spacing
    prepared_affine: Affine
    nifti: Annotated[str, Field(max_length=2000)] = ""


class Split(Document):
    """Names of cases. `unlabelled`: those whose labels are absent or must not be opened."""

    labelled: CaseNames = ()
    unlabelled: CaseNames = ()
    validation: CaseNames = ()
    test: CaseNames = ()

    def lists(self) -> dict[str, tuple[str, ...]]:
        """Name of a list -> its cases."""
        return {name: getattr(self, name) for name in type(self).model_fields}


class QueryGroup(Document):
    """See `core.types.Group`."""

    name: str
    classes: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], LISTED]
    queries: Annotated[int, Field(ge=1, le=4096)]


class ShapeOfNetwork(Document):
    """See `core.types.NetworkShape`."""

    in_channels: Annotated[int, Field(ge=1, le=64 + 255)]
    classes: Annotated[int, Field(ge=2, le=256)]
    groups: Annotated[tuple[QueryGroup, ...], Field(max_length=256, strict=False)]
    strides: FourStrides = HALVINGS
    flat: LevelsAxes = NEVER_FLAT


class Machine(Document):
    """Versions, and the hardware that a training used."""

    dkuxnet: str = "unknown"
    python: str = "?"
    torch: str = "?"
    platform: str = "?"
    cpu_threads: int | None = None
    gpu: str | None = None
    started: str | None = None


class Statistic(Document):
    """Over the test cases; std and the 95 % interval of the mean only where there are several.

    mean: None where the figure applies to no case. cases: to how many it does; older files do not
    say.
    """

    mean: float | None
    std: float | None
    ci95: Annotated[tuple[float, float] | None, LISTED]
    cases: int | None = None


class Found(Document):
    """How often a class is in the labels, and where label and prediction do not both have it.

    scans: how many there are. present: how many labels have the class; missed: how many of those
    predictions have none of it. false_alarms: how many predictions have some where the label has
    none; false_alarm_ml: the volume of these, all together.
    """

    scans: int
    present: int
    missed: int
    false_alarms: int
    false_alarm_ml: float


class Calibration(Document):
    """Of the probabilities on the test cases, see `evaluation.calibration`.

    ece: expected calibration error; ece_scaled: with the logits divided by a temperature.
    """

    ece: float
    temperature: float
    ece_scaled: float


class Manifest(_Planned):
    """manifest.json of a run: what a machine must know to use it without the prepared set.

    arrays_sha256: one checksum over all arrays that the run opens; older runs have none.
    weights: those that `test` is of, see `RunFolder.choose_weights`; final in older runs.
    planned_steps: the steps that the run was begun with, and then was lengthened to; none in older
    runs. coarse: whether RUN/coarse is a stage that comes first, whose foreground probabilities are
    further channels of this one. class_first: how foreground patches are drawn, see `PatchStream`.
    What has a None comes when the training, then the test, has ended. test: class -> metric ->
    figures. found: class -> in how many test cases it is, and is missed. calibration: None with
    fewer than two test cases.
    """

    prepared: str
    cases: list[CaseName]
    split: Split
    network_shape: ShapeOfNetwork
    network: str
    method: str
    patch: Patch
    parameters: int
    machine: Machine
    uses_unlabelled: bool = True
    arrays_sha256: str | None = None
    class_first: bool = False
    coarse: bool = False
    planned_steps: Annotated[tuple[int, ...], LISTED] = ()
    steps_done: int | None = None
    train_seconds: Seconds | None = None
    evaluate_seconds: Seconds | None = None
    peak_memory_gib: float | None = None
    weights: Literal["final", "best"] | None = None
    test: dict[str, dict[str, Statistic]] | None = None
    found: dict[str, Found] | None = None
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _network_fits(self) -> Self:
        priors = len(self.labels) - 1 if self.coarse else 0
        if self.network_shape.in_channels != len(self.channels) + priors:
            raise ValueError("network_shape.in_channels is not the number of channels")
        if self.network_shape.classes != len(self.labels):
            raise ValueError("network_shape.classes is not the number of labels")
        if any(n % d for n, d in zip(self.patch, self.shape.divisor, strict=True)):
            raise ValueError("the patch is no multiple of what network_shape.strides reduce")
        return self

    @property
    def shape(self) -> NetworkShape:
        """What the network must hold."""
        described = self.network_shape
        groups = (Group(g.name, g.classes, g.queries) for g in described.groups)
        return NetworkShape(
            described.in_channels,
            described.classes,
            tuple(groups),
            described.strides,
            described.flat,
        )


class HeldOut(Document):
    """A labelled case that the training did not see, as the model segments it.

    unlike: see `prediction.trust`, None where there are too few training scans. confidence
    (`core.confidence`) and Dice are of each class that label and prediction both have.
    """

    name: CaseName
    unlike: float | None
    confidence: dict[ClassName, float]
    dice: dict[ClassName, float]


class Reference(Document):
    """reference.json of a run: what predictions of other scans are compared with.

    signatures: see `prediction.signature`, of scans that the training saw. volumes_ml: class -> as
    it was predicted in each of them, where it was.
    """

    signatures: list[list[float]]
    volumes_ml: dict[ClassName, list[float]]
    held_out: list[HeldOut]


class Suggestion(Document):
    """A scan worth a label. path: of its first file, as it was given; reason: in words."""

    name: CaseName
    path: str
    reason: str


class Suggestions(Document):
    """suggestions.json of a run: the scan that would teach most comes first."""

    scans: list[Suggestion]


class LabelMade(Document):
    """labels-made/NAME.json beside labels/NAME.nii.gz: how `serve` came to that label.

    who: as they called themselves, often empty. when: in UTC. run: the folder's name. start: what
    was drawn on. program: "page", or the name of another one. sitting: see `serve`.
    """

    scan_sha256: str
    label_sha256: str
    who: Annotated[str, Field(max_length=200)]
    when: str
    run: str
    start: Literal["model", "label", "empty"]
    program: Annotated[str, Field(max_length=200)]
    sitting: Annotated[str, Field(max_length=200)]


class AnsweredSeries(Document):
    """A series that `dkuxnet watch` is done with.

    images: how many it had. why_not: why it got no segmentation; empty where it got one.
    """

    images: Annotated[int, Field(ge=0)]
    why_not: str = ""


class Answered(Document):
    """answered.json of `dkuxnet watch`: the archive's address, and UIDs of its series."""

    version: int = 1
    archive: str
    series: dict[Annotated[str, Field(max_length=64)], AnsweredSeries] = Field(default_factory=dict)


AnyDocument = TypeVar("AnyDocument", bound=Document)


def read_document(
    path: Path, form: type[AnyDocument], remedy: str, missing: str | None = None
) -> AnyDocument:
    """The document in a JSON file.

    Raises UserError that names the first thing that is not as `form` says, with the `remedy`;
    missing: what it says where there is no JSON at all.
    """
    return parse_document(read_json(path, missing), form, path, remedy)


def parse_document(content: Any, form: type[AnyDocument], path: Path, remedy: str) -> AnyDocument:
    """As `read_document`, for what was read from `path` already."""
    try:
        return form.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise UserError(
            f"{path}: {where}: {first['msg']}, got {brief(first['input'])}; {remedy}"
        ) from error
