"""What can be given to several commands."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

# what several commands take
FinishedRun = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
Cases = Annotated[
    Path | None, typer.Option(help="Text file that names cases, one a line: these alone.")
]
Weights = Annotated[
    str | None, typer.Option(help="final or best; by default best where validation cases chose it.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
SaveProbabilities = Annotated[
    bool, typer.Option("--save-probabilities", help="Also OUTPUT/probabilities.")
]
SaveUncertainty = Annotated[
    bool, typer.Option("--save-uncertainty", help="Also OUTPUT/uncertainty.")
]
With = Annotated[
    list[Path] | None,
    typer.Option("--with", help="Another run whose probabilities are averaged with RUN's."),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="auto (the scan's own, NIfTI for DICOM; in an archive DICOM SEG), dicom-seg or "
        "rtstruct.",
    ),
]
SegmentationType = Annotated[
    str | None, typer.Option(help="Of a DICOM SEG: binary (so by default) or labelmap.")
]
Localise = Annotated[
    Path | None, typer.Option(help="A coarse run that chooses where in each scan RUN looks.")
]
MarginMm = Annotated[
    float | None, typer.Option(help="Around what the coarse run finds; 20 by default.")
]


def part_of(text: str) -> tuple[int, int]:
    """I/N -> (I, N)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 0 < int(number) <= int(count)):
        raise typer.BadParameter("expected I/N, such as 2/8 for the second of eight")
    return int(number), int(count)


def torchrun_s(shard: tuple[int, int] | None) -> tuple[int, int] | None:
    """The shard that was asked for, or that of this process where torchrun started several."""
    number, count = (int(os.environ.get(name, at)) for name, at in (("RANK", 0), ("WORLD_SIZE", 1)))
    return shard or ((number + 1, count) if count > 1 else None)


def unless_archive(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    if not value and context.params.get("dicomweb") is None:
        what = f"{parameter.param_type_name} {parameter.name}"
        raise typer.BadParameter(f"Missing {what}, or an archive: --dicomweb URL --study UID")
    return value


# what `predict` takes, from files or from an archive
Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="INPUT...",
        callback=unless_archive,
        help="Scans, folders of scans, DICOM folders or zips; - takes their paths from stdin, a "
        "line each.",
    ),
]
LabelMaps = Annotated[
    Path | None,
    typer.Option(
        callback=unless_archive,
        help="Folder for the label maps; without it an archive gets them itself.",
    ),
]
SeriesUid = Annotated[
    str | None,
    typer.Option(
        "--series-uid", "--series", help="The one that is meant, where there are several."
    ),
]
DicomWeb = Annotated[
    str | None,
    typer.Option(metavar="URL", is_eager=True, help="An archive (PACS), in place of INPUT."),
]
Study = Annotated[str | None, typer.Option(metavar="UID", help="The study in the archive.")]
Credentials = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of mode 600: user and password, or token. Else the environment: "
        "DKUXNET_DICOMWEB_USER and _PASSWORD, or _TOKEN."
    ),
]
Shard = Annotated[
    Any,
    typer.Option(
        parser=part_of,
        callback=torchrun_s,
        metavar="I/N",
        help="The I-th of N shares of the cases; by default that of torchrun.",
    ),
]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out what OUTPUT has already.")
]

# what `prepare` takes
TestSplit = Annotated[
    Path | None, typer.Option(help="JSON file; its test list is kept out instead.")
]
Update = Annotated[
    bool, typer.Option("--update", help="Add what is new to PREPARED; its plan and the rest stay.")
]

# what is set for a training
Preset = Annotated[str, typer.Option(help="Settings to start from; `dkuxnet info` lists them.")]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings, over the preset's.")]
Network = Annotated[str | None, typer.Option(help="Network by name.")]
Method = Annotated[str | None, typer.Option(help="Semi-supervised method by name.")]
Labelled = Annotated[int | None, typer.Option(help="Keep the labels of the first N cases only.")]
LabelledSeed = Annotated[
    int | None, typer.Option(min=0, help="Draw the N cases of --labelled by this seed instead.")
]
Split = Annotated[
    Path | None, typer.Option(help="JSON file with train, validation and test lists.")
]
From = Annotated[
    Path | None, typer.Option("--from", help="Begin with the weights of this run, where they fit.")
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
Minutes = Annotated[
    float | None,
    typer.Option(help="As many steps as fit into these, measured before; without the evaluation."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.")]
TrainDevice = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting: --set train.lr=0.001")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with RUN where it stopped; its settings count, but for --steps."
    ),
]
Devices = Annotated[
    int, typer.Option(min=1, help="Processes on this machine that share every batch: one a GPU.")
]


def numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter("expected a number, or three: 1.5,1.5,10") from None


def numbers_or(*words: str) -> Callable[[str], list[float] | str]:
    def parse(text: str) -> list[float] | str:
        return text if text in words else numbers(text)

    return parse
