"""The command line: each command parses and makes one call.

Nothing here imports torch before a command needs it.
"""

import io
import os
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dkuxnet.cli.console import weights_of
from dkuxnet.cli.labelling import loop, serve, suggest, watch
from dkuxnet.cli.options import (
    Cases,
    Config,
    Credentials,
    Device,
    Devices,
    DicomWeb,
    FinishedRun,
    Format,
    From,
    Inputs,
    Labelled,
    LabelledSeed,
    LabelMaps,
    Localise,
    MarginMm,
    Method,
    Minutes,
    Network,
    Preset,
    Resume,
    SaveProbabilities,
    SaveUncertainty,
    Seed,
    SegmentationType,
    SeriesUid,
    Set,
    Shard,
    SkipExisting,
    Split,
    Steps,
    Study,
    TestSplit,
    TrainDevice,
    Update,
    Weights,
    With,
    numbers,
    numbers_or,
)
from dkuxnet.cli.telling import end_telling, mute_libraries, tell_error, telling_warnings
from dkuxnet.core.errors import DataWarning, UserError, telling_disk_errors

app = typer.Typer(
    name="dkuxnet",
    help="A few labelled 3D scans and many unlabelled ones become a segmentation model.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command.

    A UserError becomes one line on stderr and exit code 1, a DataWarning one line on stderr.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal or log that cannot show every name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    mute_libraries()
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = telling_warnings(warnings.showwarning)
        try:
            with telling_disk_errors():
                app()
        except UserError as error:
            tell_error(error)
            sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dkuxnet {version('dkuxnet')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """What stands before the name of a command."""


@app.command()
def prepare(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of scans: nnU-Net, MSD, left atrium, DICOM, or plain files."),
    ],
    prepared: Annotated[Path, typer.Argument(help="New folder for the prepared cases.")],
    spacing_mm: Annotated[
        Any,  # what the parser gives: typer takes a list for an option that is given several times
        typer.Option(
            parser=numbers,
            metavar="<float>",
            help="Edge of a voxel in mm, or X,Y,Z; the data's median by default.",
        ),
    ] = None,
    coarse_mm: Annotated[
        Any,
        typer.Option(
            parser=numbers_or("auto", "none"),
            metavar="<float>",
            help="The same of a coarse stage that comes first; auto where patches are small beside "
            "the scans; none.",
        ),
    ] = "auto",
    layout: Annotated[
        str, typer.Option(help="auto, or a name that `dkuxnet info` lists.")
    ] = "auto",
    processes: Annotated[int, typer.Option(min=1, help="Cases worked on at once.")] = 2,
    test_cases: Annotated[
        int, typer.Option(min=0, help="Keep the last N labelled cases out of all that is measured.")
    ] = 0,
    split: TestSplit = None,
    update: Update = False,
    shard: Shard = None,
) -> None:
    """Check raw scans, plan, resample, normalise and store them."""
    from dkuxnet.cli.console import case_progress, next_of_prepared, show_prepared, show_updated
    from dkuxnet.data.prepare import prepare_scans
    from dkuxnet.data.update import update_prepared

    if update:
        others = (spacing_mm, coarse_mm, layout, test_cases, split, shard)
        if others != (None, "auto", "auto", 0, None, None):
            raise typer.BadParameter(
                "--update keeps plan, layout and test cases of PREPARED: leave the other options "
                "out, but for --processes"
            )
        with case_progress() as progress:
            show_updated(update_prepared(source, prepared, processes, progress), prepared)
        return
    with case_progress() as progress:
        meta = prepare_scans(
            source,
            prepared,
            spacing_mm,
            layout,
            processes,
            progress,
            test_cases,
            split,
            None if coarse_mm == "none" else coarse_mm,
            shard,
        )
    show_prepared(meta, prepared)
    typer.echo(next_of_prepared(meta, prepared, split))


@app.command()
def train(
    prepared: Annotated[Path, typer.Argument(help="Folder that `dkuxnet prepare` made.")],
    run: Annotated[Path, typer.Argument(help="New folder for this run.")],
    preset: Preset = "default",
    config: Config = None,
    network: Network = None,
    method: Method = None,
    labelled: Labelled = None,
    labelled_seed: LabelledSeed = None,
    split: Split = None,
    from_: From = None,
    steps: Steps = None,
    minutes: Minutes = None,
    seed: Seed = None,
    device: TrainDevice = None,
    set_: Set = None,
    resume: Resume = False,
    devices: Devices = 1,
) -> None:
    """Train on a prepared data set, then evaluate the test list."""
    from dkuxnet.core.config import load_settings, parse_override

    named = {
        "network.name": network,
        "method.name": method,
        "data.labelled": labelled,
        "data.labelled_seed": labelled_seed,
        "train.pretrained": None if from_ is None else str(from_),
        "train.steps": steps,
        "data.split": None if split is None else str(split),
        "train.seed": seed,
        "train.device": device,
    }
    overrides = dict(map(parse_override, set_ or [])) | {
        key: value for key, value in named.items() if value is not None
    }
    if resume and (overrides.keys() - {"train.steps"} or config or preset != "default"):
        raise typer.BadParameter(
            "--resume takes the settings of the run: leave out --preset, --config, --set and the "
            "others but --steps"
        )
    if minutes is not None and (resume or "train.steps" in overrides):
        other = "--resume: give --steps there" if resume else "the number of steps: leave one out"
        raise typer.BadParameter(f"--minutes does not go with {other}")
    settings = load_settings(preset, config, overrides)
    if devices > 1 and "RANK" not in os.environ:
        from dkuxnet.cli.launch import in_processes

        code, errors = in_processes(devices)
        end_telling(errors)
        raise typer.Exit(code)
    from dkuxnet.cli.launch import train_run  # after what can be told without torch

    train_run(prepared, run, settings, resume, steps if resume else None, minutes)


@app.command()
def predict(
    run: FinishedRun,
    inputs: Inputs = None,
    output: LabelMaps = None,
    save_probabilities: SaveProbabilities = False,
    save_uncertainty: SaveUncertainty = False,
    weights: Weights = None,
    device: Device = "auto",
    localise: Localise = None,
    margin_mm: MarginMm = None,
    with_: With = None,
    series_uid: SeriesUid = None,
    format_: Format = "auto",
    segmentation_type: SegmentationType = None,
    cases: Cases = None,
    shard: Shard = None,
    skip_existing: SkipExisting = False,
    dicomweb: DicomWeb = None,
    study: Study = None,
    credentials: Credentials = None,
) -> None:
    """Segment scans; every label map lies on its scan's own grid, in its scan's format."""
    from dkuxnet.cli.console import sentence_progress
    from dkuxnet.prediction.predict import ScansFailed, predict_scans

    options: dict[str, Any] = {
        "save_probabilities": save_probabilities,
        "save_uncertainty": save_uncertainty,
        "weights": weights,
        "device": device,
        "localise": localise,
        "margin_mm": margin_mm,
        "others": with_ or [],
        "series_uid": series_uid,
        "form": format_,
        "segmentation_type": segmentation_type,
    }
    if dicomweb is None:
        if study or credentials:
            raise typer.BadParameter("--study and --credentials are for an archive: --dicomweb URL")
        # neither is missing here, see `unless_archive`
        options |= {"cases": cases, "shard": shard, "skip_existing": skip_existing}
        job = partial(predict_scans, run, _listed(inputs or []), output or Path(), **options)
    else:
        from dkuxnet.prediction.archive import predict_study

        study = _study_given(study, inputs, cases)
        job = partial(predict_study, run, dicomweb, study, output, credentials, **options)
    failed: list[str] = []
    try:
        with sentence_progress("predict") as progress:
            written = job(progress=progress)
    except ScansFailed as error:
        failed, written = error.lines, error.written
    if written:
        kind = "RT Structure Set" if format_ == "rtstruct" else "DICOM SEG"
        where = output or f"{dicomweb}, as {kind}"
        maps = f"{len(written)} label map{'s' if len(written) > 1 else ''} in {where}"
        typer.echo(f"{maps}; weights: {weights_of(run, weights)}")
    end_telling(failed)


def _listed(inputs: list[Path]) -> list[Path]:
    """The inputs, with the lines of stdin in the place of -."""
    lines = [line.rstrip("\n") for line in sys.stdin] if Path("-") in inputs else []
    return [path for path in inputs if path != Path("-")] + [Path(line) for line in lines if line]


def _study_given(study: str | None, inputs: list[Path] | None, cases: Path | None) -> str:
    if inputs or cases:
        raise typer.BadParameter("--dicomweb takes its scan from the archive: leave out the others")
    if study is None:
        raise typer.BadParameter("--dicomweb needs the study: --study UID")
    return study


for _command in (watch, suggest, loop, serve):
    app.command()(_command)


@app.command()
def export(
    run: FinishedRun,
    to: Annotated[str, typer.Option(help="monai-bundle, onnx, torch-export or torchscript.")],
    output: Annotated[Path, typer.Option(help="New file; for monai-bundle a new folder.")],
    weights: Weights = None,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="onnx, torch-export: X, Y, Z stay free.")
    ] = False,
    license_: Annotated[
        Path | None,
        typer.Option("--license", help="monai-bundle: text file with the weights' terms."),
    ] = None,
) -> None:
    """The model of a run in a format of others: MONAI bundle, ONNX, torch.export, TorchScript."""
    from dkuxnet.export.targets import export_run

    slow = ", which can take a minute or more" if to in ("onnx", "torch-export") else ""
    typer.echo(f"export {run} to {to}{slow}", err=True)
    written = export_run(run, to, output, weights, any_size, license_)
    typer.echo(f"{output}: {written}; weights: {weights_of(run, weights)}")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps.")],
    labels: Annotated[Path, typer.Argument(help="Folder of true label maps, or a source folder.")],
    output: Annotated[
        Path | None, typer.Option(help="JSON file, with nnU-Net's summary keys.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file, a row a case and class.")] = None,
    cases: Cases = None,
    metrics: Annotated[
        str, typer.Option(help="Further ones, with commas: nsd, assd, volume, lesions.")
    ] = "",
    tolerance_mm: Annotated[
        str, typer.Option(metavar="MM", help="Of nsd: 2, or by class: liver=3,tumour=1.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON file instead.")] = False,
) -> None:
    """Dice, Jaccard, 95HD and ASD per case and class, with mean, spread and confidence interval."""
    from dkuxnet.cli.console import case_progress, show_evaluation
    from dkuxnet.evaluation.evaluate import evaluate_folders

    with case_progress() as progress:
        result = evaluate_folders(
            predictions,
            labels,
            lambda done, total: None if as_json else progress("evaluate", done, total),
            cases,
            metrics,
            tolerance_mm,
        )
    if output:
        result.write_json(output)
    if csv:
        result.write_csv(csv)
    if as_json:
        typer.echo(result.as_json())
    else:
        show_evaluation(result)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folder of a run, several are compared; or of label maps that predict wrote.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Page to write; RUN/report.html or ./comparison.html by default."),
    ] = None,
) -> None:
    """One offline html page of a run: figures, scans, curves, settings.

    Of several: who is better, and how sure that is. Of a folder of `predict`: what to look at
    first.
    """
    from dkuxnet.benchmark.compare_runs_page import write_runs_report
    from dkuxnet.report.page import write_report
    from dkuxnet.report.predictions import are_predictions, write_predictions_report

    if len(runs) > 1:
        page = write_runs_report(runs, output)
    elif are_predictions(runs[0]):
        page = write_predictions_report(runs[0], output)
    else:
        page = write_report(runs[0], output)
    typer.echo(f"report: {page}")


@app.command()
def benchmark(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.toml", help="Methods, networks, labelled counts, seeds, one recipe."
        ),
    ],
    prepared: Annotated[
        Path | None, typer.Option(help="Folder that `dkuxnet prepare` made; the file's by default.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for runs and tables; the file's by default.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Trainings at once.")] = 1,
) -> None:
    """Compare methods: train the missing runs of a grid; tables and a page say how sure that is."""
    from dkuxnet.benchmark.grid import read_grid

    read_grid(file, prepared, output)  # tells a mistake in the file at once, mostly without torch

    from dkuxnet.benchmark.benchmark import run_benchmark
    from dkuxnet.cli.console import benchmark_watch, show_benchmark
    from dkuxnet.training.loop import Interrupted

    try:
        with benchmark_watch() as watch:
            comparison = run_benchmark(file, prepared, output, processes, watch)
    except Interrupted as stop:
        again = shlex.join(["dkuxnet", *sys.argv[1:]])
        typer.echo(f"{stop}\nGo on with the same command: {again}", err=True)
        raise typer.Exit(130) from None
    show_benchmark(comparison)
    end_telling([f"{name} failed: {line}" for name, line in comparison.failed.items()])


def catalogue() -> dict[str, str | list[str]]:
    """The version and the names in every table; no entry is imported."""
    from importlib.metadata import version

    from dkuxnet.core.config import presets
    from dkuxnet.data.formats import FORMATS
    from dkuxnet.data.layouts import LAYOUTS
    from dkuxnet.models.methods import METHODS
    from dkuxnet.models.networks import NETWORKS

    return {
        "version": version("dkuxnet"),
        "networks": list(NETWORKS),
        "methods": list(METHODS),
        "formats": list(FORMATS),
        "layouts": list(LAYOUTS),
        "presets": presets(),
    }


def all_settings(preset: str) -> dict[str, Any]:
    """Every setting of a preset, as `--set` takes it -> its value."""
    from dkuxnet.core.config import load_settings

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            inner = isinstance(value, dict) and value
            found |= flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
        return found

    return flat(load_settings(preset).model_dump(mode="json"))


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="Every setting instead, with its value in --preset.")
    ] = False,
    preset: Preset = "default",
) -> None:
    """List networks, methods, formats, layouts and presets, or all settings."""
    import json

    if settings:
        values = all_settings(preset)
        lines = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        typer.echo(json.dumps(values, indent=1) if as_json else "\n".join(lines))
        return
    listed = catalogue()
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
    else:
        for what, names in listed.items():
            typer.echo(f"{what:9} {names if isinstance(names, str) else ', '.join(names)}")


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Argument(help="New folder for what the demonstration makes.")
    ] = Path("demo"),
) -> None:
    """The whole chain on synthetic scans: prepare, train, predict, evaluate, report.

    A few minutes on two cores.
    """
    from dkuxnet.cli.console import show_demo
    from dkuxnet.cli.demo import run_demo

    show_demo(run_demo(folder))
