"""The commands that put a model to use: what to label next, rounds of it, page and archive."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dkuxnet.cli.console import weights_of
from dkuxnet.cli.options import (
    Config,
    Credentials,
    Device,
    FinishedRun,
    Preset,
    Set,
    Steps,
    Weights,
)

if TYPE_CHECKING:
    from dkuxnet.core.schemas import Suggestions


def watch(
    run: FinishedRun,
    dicomweb: Annotated[str, typer.Option(metavar="URL", help="The archive (PACS).")],
    days: Annotated[
        int, typer.Option(min=0, help="Of studies of the last N days, with today; 0 for any.")
    ] = 2,
    description: Annotated[
        str, typer.Option(help='Of series described like this alone, * for anything: "*LGE*".')
    ] = "*",
    interval: Annotated[
        float, typer.Option(min=1, help="Seconds between two looks, in which nothing must arrive.")
    ] = 30,
    once: Annotated[bool, typer.Option("--once", help="Look, wait, look again, and end.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Folder of what was answered; RUN/watch by default.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="What is stored: dicom-seg or rtstruct.")
    ] = "dicom-seg",
    credentials: Credentials = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Segment the new series of an archive, and store each segmentation beside its series."""
    import time

    from dkuxnet.prediction.watch import watch_archive

    def tell(line: str, error: bool = False) -> None:
        typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", err=error)

    def show_start(wanted: str) -> None:
        if not once:  # a scheduler sends by mail what is printed
            typer.echo(f"weights: {weights_of(run, weights)}\n{wanted}   (Ctrl-C ends it)")

    try:
        faults = watch_archive(
            run,
            dicomweb,
            state,
            credentials,
            days,
            description,
            interval,
            once,
            weights,
            device,
            form=form,
            started=show_start,
            tell=tell,
            tell_fault=lambda line: tell(f"error: {line}", error=True),
        )
    except KeyboardInterrupt:
        typer.echo("ended", err=True)
        return
    if faults:
        raise typer.Exit(1)


def suggest(
    run: FinishedRun,
    scans: Annotated[Path, typer.Argument(help="Folder of scans, as `dkuxnet prepare` reads it.")],
    count: Annotated[int, typer.Option(min=1, help="How many to suggest.")] = 5,
    device: Device = "auto",
) -> None:
    """Which unlabelled scans to label next, the most useful first, and why."""
    from dkuxnet.cli.console import sentence_progress
    from dkuxnet.prediction.suggest import suggest_scans

    with sentence_progress("look at") as progress:
        found = suggest_scans(run, scans, count, device, progress)
    _show_suggestions(found)


def loop(
    folder: Annotated[
        Path, typer.Argument(help="Folder with images/ and labels/, some labels at least.")
    ],
    work: Annotated[
        Path | None, typer.Option(help="Folder for runs and predictions; FOLDER-loop by default.")
    ] = None,
    preset: Preset = "default",
    config: Config = None,
    steps: Steps = None,
    minutes: Annotated[
        float, typer.Option(help="Of training in a round, unless --steps says how much.")
    ] = 30,
    device: Device = "auto",
    set_: Set = None,
    count: Annotated[int, typer.Option(min=1, help="How many scans to suggest.")] = 5,
    then_serve: Annotated[
        bool, typer.Option("--serve", help="Then open the page on which these can be labelled.")
    ] = False,
) -> None:
    """A round of labelling: prepare what is new, train on, predict, suggest what to label next."""
    from dkuxnet.cli.launch import train_run
    from dkuxnet.cli.loop import run_round
    from dkuxnet.core.config import load_settings, parse_override
    from dkuxnet.runs.suggestions import read_suggestions

    overrides = dict(map(parse_override, set_ or [])) | {"train.device": device}
    if steps is not None:
        overrides["train.steps"] = steps

    def train(prepared: Path, run: Path, begin: Path | None, go_on: bool) -> None:
        more = {} if begin is None else {"train.pretrained": str(begin)}
        settings = load_settings(preset, config, overrides | more)
        train_run(
            prepared, run, settings, go_on, None, None if "train.steps" in overrides else minutes
        )

    work = work or folder.parent / f"{folder.name}-loop"
    run = run_round(folder, work, train, device, count)
    _show_suggestions(read_suggestions(run))
    again = shlex.join(["dkuxnet", *sys.argv[1:]])
    page = shlex.join(["dkuxnet", "serve", str(run), "--label-folder", str(folder)])
    typer.echo(f"label these ({page}), then again: {again}")
    if then_serve:
        serve(run, label_folder=folder, device=device)


def _show_suggestions(found: "Suggestions") -> None:
    for place, each in enumerate(found.scans, 1):
        typer.echo(f"{place}. {each.name}: {each.reason}")


def serve(
    run: FinishedRun,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is for this machine alone.")
    ] = "127.0.0.1",
    device: Device = "auto",
    max_upload_mb: Annotated[
        int, typer.Option(min=1, help="Largest file that is taken, in MB.")
    ] = 1024,
    max_voxels: Annotated[
        int, typer.Option(min=1, help="Largest scan that is taken.")
    ] = 300_000_000,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps every scan and result; else nothing stays."),
    ] = None,
    label_folder: Annotated[
        Path | None,
        typer.Option(help="Folder of scans to label on the page; labels are saved in it."),
    ] = None,
) -> None:
    """A local web page that segments scans; 3D Slicer can use it as a MONAI Label server."""
    from dkuxnet.serve import require_extra

    require_extra()

    from dkuxnet.serve.limits import Limits
    from dkuxnet.serve.server import serve_run

    limits = Limits(upload_bytes=max_upload_mb * 2**20, voxels=max_voxels)
    serve_run(
        run,
        host,
        port,
        device,
        limits,
        keep,
        label_folder,
        lambda where: typer.echo(f"weights: {weights_of(run)}\nopen {where}   (Ctrl-C ends it)"),
    )
