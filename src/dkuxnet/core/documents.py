"""JSON and TOML from anybody, bounded.

A regular file, of bounded size and depth, of text and numbers that others can hold. Where the file
is not that, it is a UserError; what stands in the document is its reader's to check.
"""

import json
import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import UserError
from dkuxnet.core.regular import open_regular

StrPath = str | os.PathLike[str]  # a path as users give it
MAX_BYTES = 1 << 24
MAX_TOML_BYTES = 1 << 18
MAX_DEPTH = 64
MAX_INT = 2**63 - 1
PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""  # of a dotted key in TOML
# tomllib takes memory by the square of the parts
TOO_DEEP_KEY = re.compile(rf"(?<![\w-])(?:{PART}\.[ \t]*+){{{MAX_DEPTH}}}")
NOT_A_NAME = re.compile(r"[/\\\x00-\x1f\x7f]|^[A-Za-z]:|^\.|^$")


def read_json(path: Path, trouble: str | None = None, most: int = MAX_BYTES) -> Any:
    """The content of a JSON file of at most so many bytes.

    Raises UserError where it is missing, unreadable or too large; trouble: what it then says.
    """
    try:
        return parse_json(read_text(path, most))
    except (OSError, ValueError) as error:
        raise UserError(f"{trouble or f'{path}: missing or not JSON'} ({reason(error)})") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises UserError, naming it, where it is missing, unreadable or too large.
    """
    try:
        text = read_text(path, MAX_TOML_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the settings: {reason(error)}") from error
    try:
        return parse_toml(text)
    except ValueError as error:
        raise UserError(f"{path}: not a TOML file: {reason(error)}") from error


def read_text(path: Path, most: int, errors: str = "strict") -> str:
    """The text of a regular file of at most so many bytes, without a byte-order mark.

    Raises OSError or ValueError.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most / 2**20:g} MiB")
    return content.decode("utf-8-sig", errors)


def parse_json(text: str) -> Any:
    """The content of `text`.

    Raises ValueError where it is not JSON, or is nested too deeply, or holds a number that is NaN,
    infinite or over 64 bits, or a text that is not Unicode.
    """
    return _bounded(json.loads, text)


def parse_toml(text: str) -> dict[str, Any]:
    """As `parse_json`, for TOML."""
    if TOO_DEEP_KEY.search(text):
        raise ValueError("it is nested too deeply")
    content: dict[str, Any] = _bounded(tomllib.loads, text)
    return content


def names_a_file(name: str) -> bool:
    """Whether `name` can name a file of a folder, and nothing outside of it.

    It then has no separator, drive, control character or leading dot.
    """
    return not NOT_A_NAME.search(name)


def reason(error: BaseException) -> str:
    """The error's text on one line, without the path."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def _bounded(parse: Any, text: str) -> Any:
    try:
        content = parse(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(content)
    return content


def _check(content: Any) -> None:
    """Raises ValueError for what no document of ours holds.

    Without recursion, since the depth is what is checked.
    """
    level = [content]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                value.encode()  # half of a surrogate pair is a ValueError
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"it holds {value}, which is not finite")
            elif isinstance(value, int) and abs(value) > MAX_INT:
                raise ValueError("it holds a whole number of more than 64 bits")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
