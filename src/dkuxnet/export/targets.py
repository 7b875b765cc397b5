"""A finished run in a format of others: what `dkuxnet export` calls."""

from collections.abc import Callable
from pathlib import Path

from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup
from dkuxnet.export.patch_model import Export
from dkuxnet.prediction.predictor import load_predictor

TARGETS = {
    "monai-bundle": "dkuxnet.export.monai_bundle:write_bundle",
    "onnx": "dkuxnet.export.onnx:write_onnx",
    "torch-export": "dkuxnet.export.torch_graphs:write_torch_export",
    "torchscript": "dkuxnet.export.torch_graphs:write_torchscript",
}
OF_ANY_SIZE = (
    "onnx",
    "torch-export",
)  # where it is a choice: TorchScript always is, a bundle's network comes as code


def export_run(
    run: Path,
    to: str,
    output: Path,
    weights: str = "final",
    any_size: bool = False,
    licence: Path | None = None,
) -> str:
    """Write the predictor of a finished run to `output`; returns what was written, in words.

    to: a key of TARGETS. weights: "final" or "best". any_size: X, Y, Z of an ONNX or torch.export
    graph are free, instead of the run's patch. licence: file with the terms of the weights, for a
    bundle. Raises UserError where `run` is not finished, `output` exists, or the network cannot be
    exported, and for an option that the target does not have; nothing is left behind then.
    """
    write: Callable[[Export], str] = lookup(TARGETS, to, "target")
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
    predictor, settings, manifest = load_predictor(run, weights, "cpu")
    return write(Export(Path(run), predictor, settings, manifest, output, any_size, licence))
