"""ONNX: one graph from a patch to class probabilities, with the run's constants as metadata."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dkuxnet.core.errors import UserError
from dkuxnet.core.extras import require
from dkuxnet.export.patch_model import Export, check_equal, first_line
from dkuxnet.export.torch_graphs import exported, other_sizes, size_words
from dkuxnet.machine.files import atomically

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

OPSET = 18  # the one that torch's exporter writes natively


def write_onnx(export: Export) -> str:
    """Write a graph from image (B, C, X, Y, Z) to probabilities (B, K, X, Y, Z), float32.

    The batch is free, X, Y and Z where the export says so. The file is compared with torch in
    onnxruntime before it gets its name. Raises UserError where onnx is not installed, the network
    cannot be exported, or the answers differ.
    """
    require("export", "onnx", "onnxscript", "onnxruntime")
    model, apart = export.model(probabilities=True), 0.0
    program = _program(export)

    def write(part: Path) -> None:
        nonlocal apart
        program.save(str(part), external_data=False)
        sizes = other_sizes(model) if export.any_size else [model.patch]
        apart = check_equal(model, _in_onnxruntime(part), "ONNX graph", sizes)

    atomically(export.output, write)
    return (
        f"ONNX opset {OPSET}, any batch, {size_words(export)}; onnxruntime differs from torch by "
        f"{apart:.1g} at most"
    )


def _program(export: Export) -> "ONNXProgram":
    network = export.manifest.network
    captured = exported(export.model(probabilities=True), export.any_size, network)
    try:
        with _quiet():
            program = torch.onnx.export(
                captured,
                (),
                dynamo=True,
                input_names=["image"],
                output_names=["probabilities"],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # torch and onnxscript raise many kinds here
        raise UserError(f"the network '{network}' has no ONNX form: {first_line(error)}") from error
    if program is None:
        raise UserError(f"the network '{network}' has no ONNX form")
    for key, value in export.constants().items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    return program


def _in_onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a refusal comes as an exception
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["probabilities"], {"image": image.numpy()})[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log: it is of no use to users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
