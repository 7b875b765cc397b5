"""What goes to stderr: errors and warnings, a line each."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from dkuxnet.core.errors import TOLD, DataWarning, UserError


def tell_error(error: UserError) -> None:
    """A line on stderr; of one of several processes, to whoever started them."""
    for line in error.table:
        typer.echo(line, err=True)
    # set by torchrun, and by --devices
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    lines, told = error.lines, os.environ.get(TOLD)
    if rank is None or world == "1" or told is None:
        who = f"process {rank} of {world}: " if rank and world != "1" else ""
        for line in lines:
            typer.echo(f"error: {who}{line}", err=True)
    elif not error.told_elsewhere:
        (Path(told) / rank).write_text("\n".join(lines), "utf-8")


def mute_libraries() -> None:
    """Keep from stderr what libraries log: it names no file, and a user can do nothing about it."""
    if logging.lastResort:
        logging.lastResort.addFilter(
            lambda record: record.name.split(".")[0] in ("dkuxnet", "asyncio")
        )
    # it writes to stderr by itself
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)


def telling_warnings(others: Callable[..., None]) -> Callable[..., None]:
    """A `warnings.showwarning` that prints a DataWarning as one line, all else as `others` does."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DataWarning):
            if os.environ.get("RANK", "0") == "0":  # of several processes each would say it
                typer.echo(f"warning: {message}", err=True)
        else:
            others(message, category, *where, **more)

    return show


def end_telling(failed: list[str]) -> None:
    """End with exit code 1 and a line on stderr for each part of the work that failed, if any."""
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    if failed:
        raise typer.Exit(1)
