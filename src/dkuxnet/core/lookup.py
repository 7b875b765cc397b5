"""Tables of names, plain dicts of name -> "module:attribute", and the error for other names."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dkuxnet.core.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def unknown(what: str, name: str, known: Iterable[str], meant: str = "") -> UserError:
    """The error for a `what` whose name is not among `known`: the near match, then the list.

    meant: the near match where the meaning tells more than the letters.
    """
    known = list(known)
    near = [meant] if meant else difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return UserError(f"unknown {what} '{name}'{hint} known: {', '.join(known) or 'none'}")


def lookup(table: Mapping[str, str], name: str, what: str) -> Any:
    """Import what `table` holds under `name`.

    Raises UserError (near match and list) where it holds nothing.
    """
    if name not in table:
        raise unknown(what, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def parse_options(options: type[Options], values: Mapping[str, Any], where: str) -> Options:
    """Build the dataclass `options` from settings.

    Raises UserError for an unknown key or a value of the wrong type.
    """
    import dataclasses

    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in dataclasses.fields(options)]
    for key in values:
        if key not in known:
            raise unknown(f"setting in {where}:", key, known)
    try:
        return TypeAdapter(options).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}.{field}: {first['msg']}, got {first['input']!r}") from error
