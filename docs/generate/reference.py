"""Writes the reference pages from the code: settings, command line and Python.

`docs/conf.py` calls this before every build, so the pages cannot differ from the program; they are
not committed.
"""

import dataclasses
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.core
import typer.main
from pydantic import BaseModel
from sphinx.util.inspect import stringify_signature

import dkuxnet
from dkuxnet.cli.commands import app
from dkuxnet.core.config import Settings
from dkuxnet.core.lookup import lookup
from dkuxnet.models.methods import METHODS
from dkuxnet.models.networks import NETWORKS

# what docstrings leave unsaid, or say by pointing to the code
MEANINGS = {
    "data.split": "JSON file that names the cases of each part",
    "data.cache_gib": "prepared cases that are kept in memory, in GiB",
    "data.workers": "threads that read patches ahead; 0 reads them when they are asked for",
    "network.name": "a network of `dkuxnet info`; the plan's advice by default",
    "network.queries": "how many queries, for networks that have them",
    "network.groups": "groups of queries: `name`, `classes`, `queries` of each; by default "
    "background, organ and tumour, half of the queries for background",
    "method.name": "a method of `dkuxnet info`",
    "augment.weak": "intensity changes of the weak view",
    "augment.strong": "intensity changes of the strong view",
    "train.steps": "optimiser steps",
    "train.seed": "every random draw is a function of seed and step",
    "train.device": "`auto`, `cpu`, `cuda`, `cuda:1`, ...",
    "train.optimiser": "AdamW, or SGD with momentum",
    "train.lr": "highest learning rate, reached after the warm-up",
    "train.weight_decay": "of the optimiser",
    "train.momentum": "of SGD",
    "train.clip": "largest norm of the gradients",
    "train.precision": "`auto` takes bfloat16 where the device is good at it",
    "train.log_every": "steps between two lines of metrics",
    "train.validate_every": "steps between two validations",
    # options of methods
    "w_qd": "weight of the query loss; 0 switches it off",
    "w_segc": "weight of the segmentation consistency; 0 switches it off",
    "w_qdc": "weight of the query-distribution consistency; 0 switches it off",
    "ramp_up_steps": "steps until the unlabelled patches count in full",
    "form": "of both consistencies: mean squared error, symmetric Kullback-Leibler divergence, or "
    "pseudo labels by cross-entropy, Dice or both",
    "gradient": "`both` branches learn from the consistencies, or only the one on the strong view",
    "threshold": "a voxel counts if its target is at least this confident",
    "outline": "how far the outline of a found organ moves at most, as a share of its radius",
    "predict": "which network answers",
    # options of networks
    "widths": "channels of the encoder's stages",
    "depths": "blocks in each stage",
    "heads": "attention heads of a kMaX layer",
    "drop_rate": "stochastic depth: share of residual branches that are left out",
    "layer_scale": "initial scale of the residual branches",
    "recompute": "compute the decoder's blocks again in the backward pass: less memory, more time",
}
# beside the public names: what a method, a network, a format or a layout of your own touches
EXTENSION_POINTS = {
    "Methods": (
        "dkuxnet.models.methods.base",
        ["Method", "all_patches", "probabilities", "ramp_up", "mean_output"],
    ),
    "Data in memory": (
        "dkuxnet.core.types",
        ["Volume", "Case", "Source", "Views", "Batch", "NetworkShape", "Group", "Output"],
    ),
    "Options": ("dkuxnet.core.lookup", ["parse_options"]),
    "Files of scans": ("dkuxnet.data.formats", ["Format", "peek", "read", "write"]),
    "The header of a file": ("dkuxnet.data.checks", ["Header"]),
    "What a run and a prepared set say of themselves": (
        "dkuxnet.core.schemas",
        ["Manifest", "Prepared", "Plan", "Fingerprint", "Split"],
    ),
    "Folders of scans": ("dkuxnet.data.layouts", ["find_source"]),
    "A model in memory": ("dkuxnet.prediction.segment", ["Segmenter", "Segmentation"]),
}


def write_pages(folder: Path) -> None:
    """Write settings.md, cli.md and api.md; a page that has not changed is not touched."""
    folder.mkdir(exist_ok=True)
    for name, page in (("settings", settings_page), ("cli", cli_page), ("api", api_page)):
        path, text = folder / f"{name}.md", page()
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


# --- settings ---


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "A run takes a preset (`--preset`), then a TOML file (`--config`), then single settings "
        "(`--set train.lr=0.001`); the later one wins. An unknown name is refused with its nearest "
        "match. `RUN/settings.json` holds the settings that a run used.",
        "",
        "The defaults here are those of the preset `default`.",
        "",
    ]
    for name, section in Settings():
        lines += [f"## {name}", "", *section_table(name, section), ""]
    lines += ["## Options of the methods", "", "Set as `--set method.NAME=VALUE`.", ""]
    for name in METHODS:
        lines += [f"### {name}", "", *options_table(lookup(METHODS, name, "method").Options), ""]
    lines += ["## Options of the networks", "", "Set as `--set network.NAME=VALUE`.", ""]
    for options, names in networks_by_options().items():
        lines += ["### " + ", ".join(names), ""]
        lines += [f"- `{name}`: {said}" for name, said in names.items()]
        lines += ["", *options_table(options), ""]
    return "\n".join(lines)


def section_table(prefix: str, section: BaseModel) -> list[str]:
    """A table of the settings under `prefix`; those of a section within it follow."""
    fields = type(section).model_fields
    said = meanings(inspect.getdoc(type(section)) or "", list(fields))
    rows, within = [], []
    for name, value in section:
        key = f"{prefix}.{name}"
        if isinstance(value, BaseModel):
            within += ["", f"### {key}", "", f"{MEANINGS[key].capitalize()}.", ""]
            within += section_table(key, value)
        else:
            field = fields[name]
            rows.append((key, kind(field.annotation, field.metadata), value, said[name]))
    return [*table(rows), *within]


def options_table(options: type) -> list[str]:
    """A table of the fields of a dataclass; what its docstring leaves unsaid its bases may say."""
    fields = dataclasses.fields(options)
    said = dict.fromkeys((field.name for field in fields), "")
    for base in reversed(options.__mro__[:-1]):
        found = meanings(inspect.getdoc(base) or "", list(said))
        said |= {name: text for name, text in found.items() if text}
    hints = inspect.get_annotations(options, eval_str=True)
    for base in options.__mro__:
        hints = inspect.get_annotations(base, eval_str=True) | hints
    rows = [
        (field.name, kind(hints[field.name]), default(field), said[field.name]) for field in fields
    ]
    return table(rows) if rows else ["Nothing to set."]


def networks_by_options() -> dict[type, dict[str, str]]:
    """Options class -> the networks that take it, each with the first line of its docstring."""
    found: dict[type, dict[str, str]] = {}
    for name in NETWORKS:
        builder = lookup(NETWORKS, name, "network")
        source = inspect.getsource(builder)
        (options,) = set(re.findall(r"\b\w+Options\b", source))
        sizes = re.findall(r"\{(\"widths\".+?)\}", source)
        said = first_line(builder) + "".join(f" (`{size}`)" for size in sizes)
        module = importlib.import_module(builder.__module__)
        found.setdefault(getattr(module, options), {})[name] = said
    return found


def meanings(docstring: str, names: list[str]) -> dict[str, str]:
    """What a docstring says of each name, in the form "name: what it is." or "a, b: what they are."

    Also "name (what it is)", where it stands within a sentence. Empty where it says nothing.
    """
    text = " ".join(docstring.split())
    name = r"(?:" + "|".join(map(re.escape, names)) + r"|w_\*)"
    said = dict.fromkeys(names, "")
    parts = re.split(rf"(?:^|(?<=[.;:] ))({name}(?:, {name})*): ", text)
    for heads, meaning in zip(parts[1::2], parts[2::2], strict=True):
        for head in heads.split(", "):
            for each in names if head == "w_*" else [head]:
                if head != "w_*" or each.startswith("w_"):
                    said[each] = meaning.strip().rstrip(".;")
    for each in names:
        within = re.search(rf"\b{re.escape(each)} \(((?:[^()]|\([^()]*\))+)\)", text)
        if within and not said[each]:
            said[each] = within[1]
    return said


def kind(annotation: Any, metadata: Any = ()) -> str:
    """A type in the words of a user: "number, 0 or more"."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return kind(inner, [*more, *metadata])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [each for each in get_args(annotation) if each is not type(None)]
        return " or ".join(kind(each, metadata) for each in inner)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if inner[-1] is Ellipsis:
            return f"list of {kind(inner[0])}"
        return f"{len(inner)} times {kind(inner[0])}"
    if get_origin(annotation) is list:
        return "list"
    words = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}
    return words.get(annotation, "text") + "".join(f", {bound}" for bound in bounds(metadata))


def bounds(metadata: Any) -> Iterator[str]:
    for mark in metadata:
        for each in getattr(mark, "metadata", [mark]):
            for name, words in (("ge", "{} or more"), ("gt", "over {}")):
                if getattr(each, name, None) is not None:
                    yield words.format(getattr(each, name))
            for name, words in (("le", "at most {}"), ("lt", "under {}")):
                if getattr(each, name, None) is not None:
                    yield words.format(getattr(each, name))


def table(rows: list[tuple[str, str, Any, str]]) -> list[str]:
    lines = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for key, values, default, said in rows:
        points = said.startswith(("see ", "weights", "of the teacher"))
        meaning = MEANINGS.get(key, said) if points or not said else said
        meaning = cell(re.sub(r"\bNone\b", "unset", meaning))
        lines.append(f"| `{key}` | {shown(default)} | {cell(values)} | {meaning} |")
    return lines


def default(option: dataclasses.Field) -> Any:
    share = option.metadata.get("share")
    return option.default if share is None else Share(share)


class Share(float):
    """Of the steps of the training."""


def shown(value: Any) -> str:
    if isinstance(value, Share):
        return f"`{value:g}` of `train.steps`"
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# --- command line ---


def cli_page() -> str:
    lines = [
        "# Command line",
        "",
        "Every command ends with exit code 0, or with 1 and one line on stderr that says what is "
        "wrong and what to do. `dkuxnet COMMAND --help` prints the same as this page.",
        "",
    ]
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for name, command in group.commands.items():
        arguments = [p for p in command.params if isinstance(p, typer.core.TyperArgument)]
        options = [p for p in command.params if isinstance(p, typer.core.TyperOption)]
        words = [argument(each) for each in arguments]
        words += [f"{each.opts[0]} {value_of(each)}" for each in options if each.required]
        usage = " ".join(["dkuxnet", name, *words, *(["[OPTIONS]"] if options else [])])
        lines += [f"## {name}", "", paragraph(command.help or ""), "", "```text", usage, "```", ""]
        lines += ["| | default | |", "|---|---|---|"]
        for each in arguments:
            lines.append(
                f"| `{argument(each)}` | {shown(each.default)} | {cell(each.help or '')} |"
            )
        for option in options:
            flags = f"{', '.join(option.opts)} {value_of(option)}".strip()
            default = "" if option.is_flag else shown(option.default)
            lines.append(f"| `{flags}` | {default} | {cell(option.help or '')} |")
        lines.append("")
    return "\n".join(lines)


def argument(parameter: typer.core.TyperArgument) -> str:
    return str(parameter.metavar or parameter.name.rstrip("_").upper())


def value_of(option: typer.core.TyperOption) -> str:
    """What stands for the value of an option: "PATH", "N"; nothing for a switch."""
    if option.is_flag:
        return ""
    if option.metavar:
        return str(option.metavar)
    inner = [each for each in leaves(option.type_descriptor.annotation) if each is not type(None)]
    return {Path: "PATH", int: "N", float: "X"}.get(inner[0], "TEXT")


def leaves(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [leaf for each in inner for leaf in leaves(each)] if inner else [annotation]


def paragraph(text: str) -> str:
    """Lines of a paragraph in one line; paragraphs stay apart."""
    return "\n\n".join(" ".join(each.split()) for each in inspect.cleandoc(text).split("\n\n"))


# --- Python ---


def api_page() -> str:
    lines = [
        "# Python",
        "",
        "First the names that `import dkuxnet` offers. Then what you meet when you "
        "[add a method, a network or a format](../extend.md); these names live in their modules.",
        "",
        "## dkuxnet",
        "",
    ]
    for name in dkuxnet.PUBLIC:
        lines += documented(getattr(dkuxnet, name), f"dkuxnet.{name}")
    for title, (module, names) in EXTENSION_POINTS.items():
        lines += [f"## {title}", ""]
        for name in names:
            found = getattr(importlib.import_module(module), name)
            lines += documented(found, f"{module}.{name}")
    return "\n".join(lines)


def documented(found: Any, path: str) -> list[str]:
    """The entry of a function or class; of a class also its public methods."""
    if not inspect.isclass(found):
        return entry("function", f"{path}{signature(found)}", doc(found))
    body = [doc(found), ""]
    for name, member in vars(found).items():
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(member, property):
            body += entry("property", name, doc(member), ":::")
        elif isinstance(member, types.FunctionType):
            body += entry("method", f"{name}{signature(member)}", doc(member), ":::")
    is_error = issubclass(found, BaseException)
    head = path if is_error or not has_own_init(found) else f"{path}{signature(found)}"
    return entry("exception" if is_error else "class", head, "\n".join(body), "::::")


def has_own_init(found: type) -> bool:
    return any("__init__" in vars(base) for base in found.__mro__[:-1])


def entry(what: str, head: str, body: str, fence: str = "::::") -> list[str]:
    return [f"{fence}{{py:{what}}} {head}", "", body, "", fence, ""]


def signature(found: Callable[..., Any]) -> str:
    """As Python writes it, with short names of types, without `self`."""
    shape = inspect.signature(found)
    parameters = [each for name, each in shape.parameters.items() if name != "self"]
    shape = shape.replace(parameters=parameters)
    return str(stringify_signature(shape, unqualified_typehints=True, short_literals=True))


def doc(found: Any) -> str:
    """A docstring with what it says of each parameter or field as a list."""
    names = [] if isinstance(found, property) else list(inspect.signature(found).parameters)
    if dataclasses.is_dataclass(found):
        names = [field.name for field in dataclasses.fields(found)]
    return "\n\n".join(
        itemised(each, names) for each in (inspect.getdoc(found) or "").split("\n\n")
    )


def itemised(text: str, names: list[str]) -> str:
    """A paragraph with "name: what it is." as items; as it stands where it has none."""
    name = r"(?:" + "|".join(map(re.escape, names)) + ")"
    flat = " ".join(text.split())
    before, *parts = (
        re.split(rf"(?:^|(?<=[.;] ))({name}(?:, {name})*): ", flat) if names else [flat]
    )
    if not parts:
        return text
    items, after = [], ""
    for heads, said in zip(parts[::2], parts[1::2], strict=True):
        said, *more = re.split(r"(?<=\. )(?=Raises |Returns )", said, maxsplit=1)
        after = " ".join([after, *more]).strip()
        items.append(f"- `{heads.replace(', ', '`, `')}`: {said.strip().rstrip(';')}")
    return "\n\n".join(each for each in [before.strip(), "\n".join(items), after] if each)


def first_line(found: Any) -> str:
    return (inspect.getdoc(found) or "").split("\n")[0]
