"""The file of a benchmark: methods x networks x labelled counts x seeds under one recipe.

It is checked, and gives the runs that it asks for.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from dkuxnet.core.config import Section, Settings, explain, flatten, load_settings
from dkuxnet.core.documents import StrPath, read_toml
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup, parse_options, unknown
from dkuxnet.models.methods import METHODS
from dkuxnet.models.networks import NETWORKS

BOUND = "supervised"  # the arm that all are measured against: with as many labels, and with all
MAX_RUNS = 100_000
SAFE = r"[A-Za-z0-9][A-Za-z0-9.+-]*"  # what an arm may be called: it names folders
OWNED = {
    "method": "[methods.ARM]",
    "network.name": "networks",
    "data.labelled": "labelled",
    "data.labelled_seed": "draw_labelled",
    "train.seed": "seeds",
}


class GridFile(Section):
    """The file of a benchmark.

    Each of `methods` is an arm: `method` (a key of METHODS; the arm's name where left out) and that
    method's options. networks: keys of NETWORKS, None for the preset's or the plan's. settings:
    dotted keys over the preset, the same for every run. reference: the arm that the others are
    tested against. draw_labelled: each seed also draws which cases keep their label, so that the
    spread over seeds is that over subsets too; else the first ones do.
    """

    prepared: Path | None = None
    output: Path | None = None
    preset: str = "default"
    networks: list[str] | None = None
    labelled: list[PositiveInt]
    seeds: list[NonNegativeInt]
    draw_labelled: bool = False
    reference: str = BOUND
    settings: dict[str, Any] = Field({})
    methods: dict[str, dict[str, Any]]


class Grid(GridFile):
    """A benchmark: its folders are known, its settings flat, its bound is among its methods."""

    prepared: Path
    output: Path


@dataclass(frozen=True)
class WantedRun:
    """One training of the grid; labelled: None for all labels of the pool."""

    arm: str
    network: str
    labelled: int | None
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.arm}_{self.network}_n{self.labelled or 'all'}_seed{self.seed}"


def read_grid(
    file: StrPath, prepared: StrPath | None = None, output: StrPath | None = None
) -> Grid:
    """The grid that `file` describes, its bound added where it is not listed.

    prepared, output: in place of the file's; paths in the file are relative to its folder. Raises
    UserError for whatever is wrong with it, whatever the data are.
    """
    file = Path(file)
    values = read_toml(file)
    try:
        form = GridFile.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error, GridFile, 'key')}") from error
    places = {}
    for key, given in (("prepared", prepared), ("output", output)):
        named = getattr(form, key)
        if given is None and named is None:
            raise UserError(
                f'{file} names no folder as {key}: add {key} = "..." to it, or give --{key}'
            )
        places[key] = Path(given) if given is not None else file.parent / named
    try:
        _check_lists(form)
        methods = {
            arm: {"method": arm} | form.methods.get(arm, {}) for arm in (BOUND, *form.methods)
        }
        settings = _recipe(form.settings, file.parent)
        _check_arms(methods, form.reference)
        load_settings(form.preset, None, settings)
        for arm, options in methods.items():
            _check_options(arm, options)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return Grid(**dict(form) | places | {"settings": settings, "methods": methods})


def wanted_runs(grid: Grid, advised: str) -> list[WantedRun]:
    """Every run of the grid, seed by seed, so that an early table has every arm.

    advised: the network that the plan of the data advises, used where neither grid nor preset names
    one.
    """
    networks: Sequence[str | None] = grid.networks or [None]
    return [
        run
        for seed in grid.seeds
        for network in networks
        for run in _of_one_seed(grid, network, advised, seed)
    ]


def _of_one_seed(grid: Grid, network: str | None, advised: str, seed: int) -> Iterator[WantedRun]:
    of_counts = ((arm, count) for count in grid.labelled for arm in grid.methods)
    for arm, count in ((BOUND, None), *of_counts):
        chosen = grid.settings | {"data.labelled": count, "train.seed": seed}
        if grid.draw_labelled and count is not None:
            chosen["data.labelled_seed"] = seed
        if network is not None:
            chosen["network.name"] = network
        for key, value in grid.methods[arm].items():
            chosen["method.name" if key == "method" else f"method.{key}"] = value
        settings = load_settings(grid.preset, None, chosen)
        yield WantedRun(arm, settings.network.name or advised, count, seed, settings)


def _check_lists(grid: GridFile) -> None:
    for key, each in (("networks", "network"), ("labelled", "labelled count"), ("seeds", "seed")):
        values = getattr(grid, key)
        if values is None:
            continue
        if not values:
            raise UserError(
                f"{key} is empty: name at least one {each}"
                + (", or leave it out" if key == "networks" else "")
            )
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            raise UserError(f"{key} repeats {repeated[0]}: each {each} must stand once")
    for name in grid.networks or ():
        if name not in NETWORKS:
            raise unknown("network", name, NETWORKS)
    networks = len(grid.networks) if grid.networks else 1
    wanted = (len(grid.methods) + 1) * networks * (len(grid.labelled) + 1) * len(grid.seeds)
    if wanted > MAX_RUNS:
        raise UserError(
            f"the grid asks for up to {wanted} runs, at most {MAX_RUNS} are made; take some out"
        )
    if not grid.methods:
        raise UserError(f"[methods] is empty: name at least one, as in [methods.{BOUND}]")


def _recipe(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """[settings] with dotted keys; a split file is found beside the grid's file."""
    flat = dict(flatten(settings))
    for key in flat:
        for owned, where in OWNED.items():
            if f"{key}.".startswith(f"{owned}."):
                raise UserError(
                    f"[settings] holds {key}, but that varies over the grid: move it to {where}"
                )
    if isinstance(flat.get("data.split"), str):
        flat["data.split"] = str(folder / flat["data.split"])
    return flat


def _check_arms(methods: dict[str, dict[str, Any]], reference: str) -> None:
    seen: dict[str, str] = {}
    for arm, options in methods.items():
        if not re.fullmatch(SAFE, arm):
            raise UserError(
                f"[methods.{arm}]: an arm's name becomes part of folder names; expected letters, "
                "digits, '.', '+' and '-', as in [methods.paper]"
            )
        if seen.setdefault(arm.lower(), arm) != arm:
            raise UserError(
                f"the arms {seen[arm.lower()]} and {arm} differ in capitals alone, which some "
                "disks do not keep; rename one"
            )
        name = options["method"]
        if not isinstance(name, str) or name not in METHODS:
            raise unknown(f"method in [methods.{arm}]:", name, METHODS)
    if methods[BOUND]["method"] != BOUND:
        raise UserError(
            f"[methods.{BOUND}] is the bound that all are measured against: its method must be "
            f"{BOUND}, not {methods[BOUND]['method']}; rename the arm"
        )
    if reference not in methods:
        raise unknown("reference", reference, methods)


def _check_options(arm: str, options: dict[str, Any]) -> None:
    method = lookup(METHODS, options["method"], "method")
    own = {key: value for key, value in options.items() if key != "method"}
    parse_options(method.Options, own, f"methods.{arm}")
