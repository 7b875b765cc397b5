"""Graphs that plain torch loads without this package: TorchScript (.ts) and torch.export (.pt2)."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from dkuxnet.core.errors import UserError
from dkuxnet.export.patch_model import Export, PatchModel, check_equal, first_line
from dkuxnet.machine.files import atomically

CONSTANTS = "dkuxnet.json"  # the extra file with Export.constants


def write_torchscript(export: Export) -> str:
    """Write a graph from image (B, C, X, Y, Z) to class probabilities (B, K, X, Y, Z).

    All sizes but C and K are free. CONSTANTS lie beside the graph.
    """
    model, apart = export.model(probabilities=True), 0.0

    def write(part: Path) -> None:
        nonlocal apart
        try:
            graph = model.traced()
        except Exception as error:  # torch raises many kinds here
            raise UserError(
                f"network '{export.manifest.network}' cannot be traced: {first_line(error)}"
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            content = io.BytesIO()  # torch's own writer ends the process where a disk is full
            torch.jit.save(graph, content, _extra_files={CONSTANTS: json.dumps(export.constants())})
            part.write_bytes(content.getbuffer())
            load: Any = torch.jit.load
            apart = check_equal(model, load(str(part)), "TorchScript", other_sizes(model))

    atomically(export.output, write)
    return (
        "TorchScript, any batch, any X, Y, Z that the network takes; differs from torch by "
        f"{apart:.1g} at most"
    )


def write_torch_export(export: Export) -> str:
    """The same as torch.export's .pt2; batch is free, X, Y and Z where the export says so."""
    model, apart = export.model(probabilities=True), 0.0
    program = exported(model, export.any_size, export.manifest.network)

    def write(part: Path) -> None:
        nonlocal apart
        content = io.BytesIO()  # as above
        with warnings.catch_warnings():
            # of weights that are not on the CPU, where these are
            warnings.simplefilter("ignore", UserWarning)
            torch.export.save(
                program, content, extra_files={CONSTANTS: json.dumps(export.constants())}
            )
        part.write_bytes(content.getbuffer())
        with part.open("rb") as file:
            loaded = torch.export.load(file).module()
        apart = check_equal(
            model,
            loaded,
            "torch.export file",
            other_sizes(model) if export.any_size else [model.patch],
        )

    atomically(export.output, write)
    return (
        f"torch.export, any batch, {size_words(export)}; differs from torch by {apart:.1g} at most"
    )


@torch.no_grad()
def exported(model: PatchModel, any_size: bool, network: str) -> ExportedProgram:
    """`model` as torch.export's program with a free batch.

    Raises UserError for a network that torch cannot capture.
    """
    free = {0: Dim("batch")}
    if any_size:
        free |= {
            axis: Dim(name) if d == 1 else d * Dim(f"{name}_over_{d}")
            for axis, (name, d) in enumerate(zip("xyz", model.divisor, strict=True), 2)
        }
    # all edges differ, none is one voxel deep down: else torch takes them as fixed
    sizes = [n * d for n, d in zip((2, 3, 4), model.divisor, strict=True)] if any_size else None
    try:
        example = model.noise(2, sizes)
        return torch.export.export(model, (example,), dynamic_shapes=(free,), strict=False)
    except Exception as error:  # torch raises many kinds here
        hint = "; try without --any-size" if any_size else ""
        raise UserError(
            f"torch cannot export the network '{network}'{hint}: {first_line(error)}"
        ) from error


def other_sizes(model: PatchModel) -> list[tuple[int, ...]]:
    """The patch, and a larger one that no graph was made with."""
    return [model.patch, tuple(n + d for n, d in zip(model.patch, model.divisor, strict=True))]


def size_words(export: Export) -> str:
    patch = " x ".join(map(str, export.manifest.patch))
    if not export.any_size:
        return f"patches of {patch} voxels"
    return "X, Y, Z any multiples of " + ", ".join(map(str, export.manifest.shape.divisor))
