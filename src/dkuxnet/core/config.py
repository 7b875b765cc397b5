"""The settings of a run: preset, then TOML file, then `--set`, validated once.

An unknown key is refused.
"""

import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from dkuxnet.core.documents import StrPath, parse_toml, read_toml
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import unknown

MAX_STEPS = 10**9  # of a training
Edge = Annotated[int, Field(ge=1, le=8192)]
Step = Annotated[int, Field(ge=1, le=2)]
# lists in JSON, tuples here
OneStride = Annotated[tuple[Step, Step, Step], Field(strict=False)]
Axes = Annotated[tuple[bool, bool, bool], Field(strict=False)]
LevelsAxes = Annotated[tuple[Axes, Axes, Axes, Axes, Axes], Field(strict=False)]
FourStrides = Annotated[tuple[OneStride, OneStride, OneStride, OneStride], Field(strict=False)]
Queries = Annotated[int, Field(ge=1, le=4096)]
# what other programs call a setting
OTHERS_NAMES = {
    "train.lr": ("learning_rate", "initial_lr", "base_lr"),
    "train.steps": (
        *("epochs", "num_epochs", "max_epochs", "n_epochs", "num_steps", "max_steps"),
        *("iterations", "num_iterations", "max_iterations", "iters", "max_iters"),
    ),
    "train.labelled_batch": ("batch_size", "batch", "labeled_bs", "labelled_bs", "bs"),
    "train.patch": ("patch_size", "crop_size", "roi_size"),
    "train.optimiser": ("optim", "optimizer"),
    "train.weight_decay": ("wd", "l2"),
    "train.average": ("ema", "ema_decay"),
    "train.clip": ("grad_clip", "gradient_clip", "gradient_clip_val", "max_grad_norm"),
    "train.precision": ("amp", "fp16", "bf16", "mixed_precision"),
    "train.patience": ("early_stopping", "early_stopping_patience"),
    "train.validate_every": ("val_interval", "val_every", "eval_every"),
    "data.labelled": ("labelnum", "label_num", "labeled_num", "num_labelled", "num_labeled"),
    "data.workers": ("num_workers", "n_workers"),
}
MEANT = {name: setting for setting, names in OTHERS_NAMES.items() for name in names}


def _volumes(value: Any) -> Any:
    numbers = value.values() if isinstance(value, dict) else [value]
    if not all(type(each) in (int, float) and 0 <= each < math.inf for each in numbers):
        raise ValueError("expected ml from 0 on, for every class or by class")
    return value


def _classes(value: Any) -> Any:
    listed = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    if not listed and not isinstance(value, bool):
        raise ValueError("expected true, false or a list of classes")
    return value


ByClass = Annotated[float | dict[str, float], BeforeValidator(_volumes)]
SomeClasses = Annotated[bool | tuple[str, ...], BeforeValidator(_classes)]
HOW = "how"  # marks a setting of how a run is made, which does not change what the run is


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Section):
    """Which cases train.

    labelled: keep the labels of the first N cases (None: of all). labelled_seed: draws which N
    keep them instead.
    validation_cases: how many of these choose a checkpoint instead of training. test_cases: the
    last N labelled cases are the test list, where no split file says otherwise.
    foreground_share: share of labelled patches that are centred on a voxel of a foreground class,
    drawn among those of the case.
    """

    labelled: PositiveInt | None = None
    labelled_seed: NonNegativeInt | None = None
    split: Path | None = None
    validation_cases: NonNegativeInt = 0
    test_cases: NonNegativeInt = 0
    foreground_share: float = Field(0.5, ge=0, le=1)
    cache_gib: Annotated[float, Field(ge=0), HOW] = 4.0
    workers: Annotated[int, Field(ge=0, le=1024), HOW] = 1


class GroupSettings(Section):
    """A group of queries, by the names of its classes."""

    name: str
    classes: list[str]
    queries: Queries


class WithOptions(BaseModel):
    """A section whose further keys are options of what it names, checked where that is built."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def options(self) -> dict[str, Any]:
        """The further keys."""
        return self.model_extra or {}


class NetworkSettings(WithOptions):
    """name: a key of NETWORKS, None for what the plan of the data set advises.

    strides: of the four reductions, along (X, Y, Z), None for the plan's; the paper's are all 2.
    flat: at full resolution and after each reduction, whether kernels do not look along X, Y and Z;
    None for the plan's: they do not while slices are twice as thick as other edges are long.
    Other keys are the network's own options.
    """

    name: str | None = None
    queries: Queries = 16
    groups: list[GroupSettings] = []
    strides: FourStrides | None = None
    flat: LevelsAxes | None = None


class MethodSettings(WithOptions):
    """name: a key of METHODS. Other keys are the method's own options."""

    name: str = "dual-mutual"


class ViewSettings(Section):
    """Intensity changes of one view, drawn for each patch, in standard deviations of the image.

    noise: largest standard deviation of Gaussian noise. brightness: largest shift. contrast, gamma:
    largest factor and exponent (and their inverses). blur: largest Gaussian sigma in voxels along
    their shortest edge. bias_field: strength of a smooth multiplicative field, exp(+-b). cutout:
    largest share of an edge that is blanked.
    """

    noise: float = Field(0.0, ge=0)
    brightness: float = Field(0.0, ge=0)
    contrast: float = Field(1.0, ge=1)
    gamma: float = Field(1.0, ge=1)
    blur: float = Field(0.0, ge=0)
    bias_field: float = Field(0.0, ge=0)
    cutout: float = Field(0.0, ge=0, lt=1)


class AugmentSettings(Section):
    """Geometry shared by both views.

    rotation: largest angle in degrees about each axis. scale: largest factor. shift: largest, in
    voxels along their shortest edge. elastic: largest displacement of a smooth field, in the same.
    Where slices are over three times as thick as their pixels are wide, rotation and scale stay in
    their plane. margin: voxels that are read around a patch on every side, so that one that is
    turned or shrunk shows the scan there and not its own border, repeated. flip: axes, of "xyz",
    that are mirrored with probability 1/2. outline: of labelled patches, the largest displacement
    of the foreground's outline, outwards or inwards, as a share of the radius of a ball as large as
    the foreground.
    """

    rotation: float = Field(15.0, ge=0, le=180)
    scale: float = Field(1.2, ge=1)
    shift: float = Field(0.0, ge=0)
    elastic: float = Field(0.0, ge=0)
    margin: Annotated[int, Field(ge=0, le=64)] = 0
    flip: str = Field("", pattern="^x?y?z?$")
    outline: float = Field(0.0, ge=0, le=0.4)
    weak: ViewSettings = ViewSettings(noise=0.05)
    strong: ViewSettings = ViewSettings(
        noise=0.2, brightness=0.3, contrast=1.5, gamma=1.5, blur=1.0, bias_field=0.3
    )


class TrainSettings(Section):
    """The loop.

    patch: voxels, None for the plan's. labelled_batch, unlabelled_batch: patches a step. average:
    decay of the moving average of weights that predicts; 0 switches it off. warm_up_steps: in which
    the learning rate rises linearly; left out, an eighth of the steps where that is less. poly:
    exponent of the decay. save_every, save_minutes: a checkpoint after so many steps and after so
    many minutes, whichever comes first. on_nan: what a loss or gradient that is not finite does:
    end the training, or leave that step out and count it. deterministic: on a GPU, take algorithms
    that give the same bits every time where torch has one, at some cost in speed (a CPU always
    does). torch_compile: have torch.compile translate how the networks train, which takes minutes
    at the start; for GPUs, where it is untried. reference_cases: how many training scans, and as
    many held-out ones, are predicted at the end, so that later predictions can be compared with
    them; fewer than 8 leave that out.
    pretrained: a finished run with whose weights the networks begin, as far as these fit. patience:
    the training ends after so many validations in a row without a better score. wandb: the project
    on Weights & Biases that gets the curves too. mlflow: the folder or address of MLflow that does.
    """

    pretrained: Path | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 4000
    seed: NonNegativeInt = 0
    device: Annotated[str, HOW] = "auto"
    patch: tuple[Edge, Edge, Edge] | None = None
    labelled_batch: Annotated[int, Field(ge=1, le=4096)] = 2
    unlabelled_batch: Annotated[int, Field(ge=0, le=4096)] = 2
    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 2e-3
    weight_decay: float = Field(0.01, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    warm_up_steps: NonNegativeInt = 50
    poly: float = Field(0.9, ge=0)
    clip: PositiveFloat = 1.0
    average: float = Field(0.0, ge=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: Annotated[PositiveInt, HOW] = 20
    validate_every: PositiveInt = 200
    patience: PositiveInt | None = None
    save_every: Annotated[PositiveInt, HOW] = 200
    save_minutes: Annotated[PositiveFloat, HOW] = 10.0
    on_nan: Literal["stop", "skip"] = "stop"
    deterministic: bool = False
    torch_compile: bool = False
    reference_cases: Annotated[NonNegativeInt, HOW] = 24
    wandb: Annotated[str, HOW] = ""
    mlflow: Annotated[str, HOW] = ""


class LossSettings(Section):
    """L_seg, the loss on labels: soft Dice + cross-entropy. As it stands here it is plain.

    class_weights: of a class in both terms, by its name, the background's too; 1 where left out.
    focal: the cross-entropy of a voxel is multiplied by (1 - p)^focal, p being the probability of
    its class. tversky: how much a voxel that is missed counts in place of Dice, one that is too
    much counts 1 - tversky; 0.5 is Dice. Sources: Lin et al., ICCV 2017; Salehi et al., MLMI 2017.
    """

    class_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = {}
    focal: float = Field(0.0, ge=0, le=10)
    tversky: float = Field(0.5, gt=0, lt=1)


class InferSettings(Section):
    """Sliding window, and what becomes of its result.

    overlap: share of a window that its neighbour covers again. batch: windows at once. tta: further
    views of a scan whose predictions are averaged with its own, see `prediction.tta`.
    largest_component: keep the largest connected piece alone (for organs of which there is one), of
    each class or of those that are named. largest_foreground: before that, keep the largest
    connected piece of all classes together alone (for classes that touch each other, as the parts
    of a heart do). min_ml: remove connected pieces that are smaller, of each class or by class.
    postprocessing: "chosen": where there are validation cases, largest_component and min_ml are
    chosen for each class by its Dice on them, beside what is set; "set": they are as they are set.
    """

    overlap: float = Field(0.5, ge=0, lt=1)
    batch: Annotated[int, Field(ge=1, le=4096)] = 2
    tta: tuple[Literal["mirror", "rotate", "scale"], ...] = ()
    largest_component: SomeClasses = False
    largest_foreground: bool = False
    min_ml: ByClass = 0.0
    postprocessing: Literal["chosen", "set"] = "chosen"


class EvaluateSettings(Section):
    """Scores of the test list beside Dice, Jaccard, 95HD and ASD: those of `dkuxnet evaluate`.

    metrics: nsd, assd, volume, lesions; several with commas. tolerance_mm: of nsd, for all classes
    or by class: "2", "liver=3,tumour=1".
    """

    metrics: Annotated[str, HOW] = ""
    tolerance_mm: Annotated[str, HOW] = ""


class CoarseSettings(Section):
    """The coarse stage, whose probabilities the fine one sees beside the scan.

    use: whether there is one; None where the prepared set has the voxels for it. run: a finished
    run that is it; None to train one. start: the fine networks begin with the weights of the coarse
    ones, as far as these fit. share: of the coarse probabilities in the prediction, which is the
    mean of both stages. network, method, augment, train, infer: what is otherwise than in the fine
    stage, whose `train.patch` and `network.strides` it never has.
    """

    use: bool | None = None
    run: Path | None = None
    start: bool = True
    share: float = Field(0.5, ge=0, le=1)
    network: dict[str, Any] = {}
    method: dict[str, Any] = {}
    augment: dict[str, Any] = {}
    train: dict[str, Any] = {}
    infer: dict[str, Any] = {}


class Settings(Section):
    """All settings of a run; RUN/settings.json holds them as they were used."""

    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    method: MethodSettings = MethodSettings()
    augment: AugmentSettings = AugmentSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    infer: InferSettings = InferSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    coarse: CoarseSettings = CoarseSettings()

    def coarse_stage(self) -> "Settings":
        """Those of the coarse stage. Raises ValidationError where they are none."""
        values = self.model_dump(
            exclude={"coarse": True, "train": {"patch"}, "network": {"strides", "flat"}},
            exclude_unset=True,
        )
        _lay_over(values, self.coarse.model_dump(exclude={"use", "run", "start", "share"}))
        return Settings.model_validate(values | {"coarse": {"use": False}})


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(
        f.name.removesuffix(".toml")
        for f in resources.files("dkuxnet.core.presets").iterdir()
        if f.name.endswith(".toml")
    )


def load_settings(
    preset: str = "default", config: StrPath | None = None, overrides: dict[str, Any] | None = None
) -> Settings:
    """Merge preset, file and overrides ("train.lr" -> value), later ones winning.

    Raises UserError for an unknown preset or key (with the near match), a value of the wrong type,
    a file that is not TOML.
    """
    if preset not in presets():
        raise unknown("preset", preset, presets())
    values = parse_toml(
        (resources.files("dkuxnet.core.presets") / f"{preset}.toml").read_text("utf-8")
    )
    if config is not None:
        _lay_over(values, read_toml(Path(config)))
    given: dict[str, Any] = {}
    # gathered first, so that a name and its options come together
    for key, value in (overrides or {}).items():
        _merge(given, _nested(key, value))
    _lay_over(values, given)
    return validate(values)


def validate(values: dict[str, Any]) -> Settings:
    """A tree of plain values -> Settings. Raises UserError naming the first key that is wrong."""
    what = "setting"
    try:
        settings = Settings.model_validate(values)
        what = "setting of the coarse stage"
        settings.coarse_stage()
    except ValidationError as error:
        raise explain(error, Settings, what) from error
    return settings


def parse_override(text: str) -> tuple[str, Any]:
    """'train.lr=0.01' -> ("train.lr", 0.01). The value is read as TOML, or else as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set expects key=value, as in --set train.lr=0.01; got '{text}'")
    try:
        return key.strip(), parse_toml(f"value = {value}")["value"]
    except ValueError:
        return key.strip(), value.strip()


def how_settings(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings that say how a run is made and not what it is."""
    for name, field in section.model_fields.items():
        if HOW in field.metadata:
            yield f"{prefix}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from how_settings(field.annotation, f"{prefix}{name}.")


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"train": {"lr": 1}} -> ("train.lr", 1), as --set takes them."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(key: str, value: Any) -> dict[str, Any]:
    *parts, last = key.split(".")
    nested = {last: value}
    for part in reversed(parts):
        nested = {part: nested}
    return nested


def _lay_over(values: dict[str, Any], layer: dict[str, Any]) -> None:
    """Write a layer over what is below.

    Where it names another network or method, that one's options are dropped.
    """
    for section, own in (("network", NetworkSettings), ("method", MethodSettings)):
        below, above = values.get(section, {}), layer.get(section, {})
        if isinstance(above, dict) and "name" in above and above["name"] != below.get("name"):
            values[section] = {
                key: value for key, value in below.items() if key in own.model_fields
            }
    _merge(values, layer)


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def explain(error: ValidationError, model: type[BaseModel], what: str) -> UserError:
    """The first thing that is wrong with values for `model`, in one line.

    An unknown key gets its near match. what: how the message calls a key.
    """
    # a key may be missing because it is misspelt
    first = min(error.errors(), key=lambda each: each["type"] == "missing")
    path = [str(part) for part in first["loc"]]
    if first["type"] == "missing":
        return UserError(f"{what} {'.'.join(path)} is missing")
    if first["type"] != "extra_forbidden":
        return UserError(f"{what} {'.'.join(path)}: {first['msg']}, got {first['input']!r}")
    within: Any = model
    for part in path[:-1]:
        # a list's entry, or a field
        entry = part.isdigit()
        within = get_args(within)[0] if entry else within.model_fields[part].annotation
    prefix = ".".join(path[:-1])
    return unknown(
        what,
        ".".join(path),
        [f"{prefix}.{name}" if prefix else name for name in within.model_fields],
        MEANT.get(path[-1].lower().replace("-", "_"), ""),
    )
