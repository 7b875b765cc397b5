"""A finished run in a format of others: what `dkuxnet export` calls."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dkuxnet.core.errors import UserError, disk_reason
from dkuxnet.core.lookup import lookup, unknown
from dkuxnet.machine.child import Child, Ended, Failed

TARGETS = {
    "monai-bundle": "dkuxnet.export.monai_bundle:write_bundle",
    "onnx": "dkuxnet.export.onnx:write_onnx",
    "torch-export": "dkuxnet.export.torch_graphs:write_torch_export",
    "torchscript": "dkuxnet.export.torch_graphs:write_torchscript",
}
# where it is a choice: TorchScript always is, a bundle's network comes as code
OF_ANY_SIZE = ("onnx", "torch-export")
WRITE = "dkuxnet.export.targets:write_target"
ROOM_FACTOR, ROOM_BYTES = 1.25, 2**21  # of the weights: a graph's code comes beside them


def export_run(
    run: Path,
    to: str,
    output: Path,
    weights: str | None = None,
    any_size: bool = False,
    licence: Path | None = None,
) -> str:
    """Write the predictor of a finished run to `output`; returns what was written, in words.

    to: a key of TARGETS. weights: "final" or "best"; by default the run's own. any_size: X, Y,
    Z of an ONNX or torch.export graph are free, instead of the run's patch. licence: file with the
    terms of the weights, for a bundle. Raises UserError where `run` is not finished, `output`
    exists, or the network cannot be exported, and for an option that the target does not have;
    nothing is left behind then.
    """
    if to not in TARGETS:
        raise unknown("target", to, TARGETS)
    output = Path(output)
    if licence and to != "monai-bundle":
        raise UserError(
            f"--license is for --to monai-bundle: a file of {to} has no place for it; leave it out"
        )
    if any_size and to not in OF_ANY_SIZE:
        raise UserError(
            f"--any-size is for --to {' and '.join(OF_ANY_SIZE)}, not for {to}; leave it out"
        )
    if output.exists():
        raise UserError(f"{output} exists already; choose another --output, or delete it first")
    if not output.absolute().parent.is_dir():
        raise UserError(
            f"{output.absolute().parent} is no folder; make it first, or choose another --output"
        )
    arguments = (TARGETS[to], str(run), weights, any_size, str(licence) if licence else None)
    return _in_a_child(to, Path(run), output, arguments)


def _in_a_child(to: str, run: Path, output: Path, arguments: Sequence[Any]) -> str:
    """Call `write_target` in a process of its own, for a name beside `output`; then move it there.

    torch's C++ ends its process where a disk is full, and libraries of others may as well.
    """
    child, beside = Child(), None
    try:
        _check_room(run, output)
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name[-100:]}.", dir=output.parent))
        part = beside / output.name
        try:
            said = str(child.call(WRITE, str(part), *arguments))
        except UserError as error:
            raise UserError(str(error).replace(str(part), str(output))) from error
        except (Ended, Failed) as error:
            raise UserError(
                f"{output}: cannot export to {to}: the process that writes it {error}; is there "
                "room on the disk, and memory?"
            ) from error
        os.replace(part, output)
        return said.replace(str(part), str(output))
    except OSError as error:
        raise UserError(f"{output}: cannot write: {disk_reason(error)}") from error
    finally:
        child.end()
        if beside:
            shutil.rmtree(beside, ignore_errors=True)


def write_target(
    output: str, target: str, run: str, weights: str | None, any_size: bool, licence: str | None
) -> str:
    """Load the model of a run and call the function that is named by `target`.

    Arguments and result are plain JSON: this runs in a child.
    """
    from dkuxnet.export.patch_model import Export
    from dkuxnet.prediction.predictor import load_predictor, predicting

    predictor, settings, manifest = load_predictor(Path(run), weights, "cpu")
    settings = predicting(settings, list(manifest.labels), manifest.postprocessing)
    coarse = Path(run) / "coarse"
    if manifest.coarse and target == TARGETS["monai-bundle"]:
        raise UserError(
            f"{run} has two stages, and a bundle holds one: export both as graphs (--to onnx, and "
            f"{coarse} as well), or one that was trained with --set coarse.use=false"
        )
    terms = Path(licence) if licence else None
    export = Export(Path(run), predictor, settings, manifest, Path(output), any_size, terms)
    said: str = lookup({target: target}, target, "target")(export)
    if settings.infer.tta:
        said += "; its views (infer.tta) are left out"
    if manifest.coarse:
        said += f"; this is the fine stage, whose last channels {coarse} gives: export that too"
    return said


def _check_room(run: Path, output: Path) -> None:
    """Raise UserError where the disk has no room for the weights of `run`, with a margin."""
    sizes = [path.stat().st_size for path in run.glob("*.safetensors")]
    needed = ROOM_BYTES + round(ROOM_FACTOR * max(sizes, default=0))
    free = shutil.disk_usage(output.absolute().parent).free
    if free < needed:
        raise UserError(
            f"{output}: cannot write: it takes about {needed / 2**20:.0f} MB and {free / 2**20:.0f}"
            " MB are free; make room there, or choose another --output"
        )
