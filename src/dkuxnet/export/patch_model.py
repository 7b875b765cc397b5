"""What every target starts from: a module from patches to scores, and its constants.

With the proof that a copy in another format computes the same.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dkuxnet.core.config import Settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest
from dkuxnet.core.types import NetworkShape

# of a probability, between torch and a copy; float32 alone costs up to 1.5e-4 (docs/export.md)
TOLERANCE = 1e-3


class PatchModel(nn.Module):
    """Patches (B, C, X, Y, Z) -> class probabilities, or logits, (B, K, X, Y, Z), all float32.

    On the network's grid, normalised. Unlike a network, which returns `Output`, it returns a bare
    tensor: what the graphs and frameworks of others expect.
    """

    def __init__(
        self, predictor: nn.Module, shape: NetworkShape, patch: Sequence[int], probabilities: bool
    ):
        super().__init__()
        self.predictor = predictor
        self.channels, self.divisor = shape.in_channels, shape.divisor
        self.patch, self.probabilities = tuple(patch), probabilities

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.predictor(image).logits.float()
        return logits.softmax(dim=1) if self.probabilities else logits

    def noise(self, batch: int, patch: Sequence[int] | None = None) -> Tensor:
        """Patches with the spread of a normalised scan, (batch, C, X, Y, Z), the same each time."""
        return torch.randn(
            batch, self.channels, *(patch or self.patch), generator=torch.Generator().manual_seed(0)
        )

    @torch.no_grad()
    def traced(self) -> torch.jit.ScriptModule:
        """This module as TorchScript; batch, X, Y and Z stay free."""
        with warnings.catch_warnings():
            # TorchScript as a whole is deprecated, as the documentation says; channel counts, which
            # the tracer warns of, are fixed
            warnings.simplefilter("ignore", DeprecationWarning)
            tracer: type[Warning] = torch.jit.TracerWarning  # type: ignore[attr-defined]  # public
            warnings.simplefilter("ignore", tracer)
            trace: Any = torch.jit.trace
            graph: torch.jit.ScriptModule = trace(self.eval(), self.noise(2), check_trace=False)
            return graph

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script, and so MONAI's ckpt_export, takes in place of this module.

        It compiles no `Output`.
        """
        return _Around(self.traced())


class _Around(nn.Module):
    """A traced graph as a module that torch.jit.script compiles: it takes no graph by itself."""

    def __init__(self, graph: torch.jit.ScriptModule):
        super().__init__()
        self.graph = graph

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.graph(image)
        return answer


@dataclass(frozen=True)
class Export:
    """A finished run and where its export goes.

    any_size: X, Y, Z of a graph are free. licence: file with the terms of the weights.
    """

    run: Path
    predictor: nn.Module
    settings: Settings
    manifest: Manifest
    output: Path
    any_size: bool = False
    licence: Path | None = None

    def model(self, probabilities: bool) -> PatchModel:
        """The predictor on bare tensors, in eval mode."""
        return PatchModel(
            self.predictor, self.manifest.shape, self.manifest.patch, probabilities
        ).eval()

    def constants(self) -> dict[str, Any]:
        """What a caller must know to prepare a scan and to read the answer; plain JSON."""
        manifest, infer = self.manifest, self.settings.infer
        two_stages = {
            "coarse_probabilities": list(manifest.labels)[1:],  # channels after those of the scan
            "coarse_share": self.settings.coarse.share,  # of them in the answer
        }
        return {
            "dkuxnet_version": metadata.version("dkuxnet"),
            "network": manifest.network,
            "method": manifest.method,
            "channels": manifest.channels,
            "labels": manifest.labels,
            "orientation": "RAS+",
            "spacing_mm": list(manifest.plan.spacing_mm),
            "normalisation": [how.to_json() for how in manifest.plan.normalisation],
            "patch": list(manifest.patch),
            "window_overlap": infer.overlap,
            "largest_component": infer.largest_component,
            "largest_foreground": infer.largest_foreground,
            "min_ml": infer.min_ml,
            **(two_stages if manifest.coarse else {}),
        }


@torch.no_grad()
def check_equal(
    model: PatchModel, copy: Callable[[Tensor], Tensor], what: str, sizes: Sequence[Sequence[int]]
) -> float:
    """The largest difference of a probability between `model` and its `copy`.

    On noise of these sizes, one patch and three at a time. Raises UserError where it is above
    TOLERANCE, or the copy refuses.
    """
    largest = 0.0
    for size in sizes:
        for batch in (1, 3):
            image = model.noise(batch, size)
            try:
                there = copy(image)
            except Exception as error:  # each runtime has kinds of its own
                raise UserError(
                    f"the {what} does not take {batch} patches of {list(size)}: {first_line(error)}"
                ) from error
            here = model(image)
            apart = float((here - there).abs().max()) if here.shape == there.shape else float("inf")
            if not apart <= TOLERANCE:  # NaN is not
                raise UserError(
                    f"the {what} answers otherwise than torch, by {apart:.2g} with {batch} patches "
                    f"of {list(size)}, where {TOLERANCE:g} is allowed; nothing was written"
                )
            largest = max(largest, apart)
    return largest


def first_line(error: Exception) -> str:
    """An error of another library, short enough for a line of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
