"""What a MONAI bundle names: the network, and each step of `dkuxnet predict` as a MONAI part.

A bundle's inference.json calls these by their full names, so they are public: their arguments are
plain JSON.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms.transform import MapTransform
from torch import Tensor

from dkuxnet.core.config import InferSettings, validate
from dkuxnet.core.schemas import NetworkGrid
from dkuxnet.core.types import HALVINGS, NEVER_FLAT, Case, Group, NetworkShape, Output, Volume
from dkuxnet.data import formats
from dkuxnet.data.images import read_image
from dkuxnet.data.inputs import find_cases
from dkuxnet.data.network_grid import to_network_grid
from dkuxnet.export.patch_model import PatchModel
from dkuxnet.machine.devices import to_device
from dkuxnet.models.build import build_method
from dkuxnet.models.components import Cleaning
from dkuxnet.prediction.windows import Windows, label_on_scan, label_volume, sliding_window


def build_network(
    network: Mapping[str, Any],
    method: Mapping[str, Any],
    channels: int,
    classes: int,
    groups: Sequence[Mapping[str, Any]],
    patch: Sequence[int],
) -> PatchModel:
    """The predictor without its weights: (B, C, X, Y, Z) -> logits (B, K, X, Y, Z).

    network, method: those sections of the run's settings. groups: of the queries, each {"classes":
    [..], "queries": n}.
    """
    settings = validate({"network": dict(network), "method": dict(method)})
    shape = NetworkShape(
        channels,
        classes,
        tuple(
            Group(f"group {i}", tuple(group["classes"]), group["queries"])
            for i, group in enumerate(groups)
        ),
        settings.network.strides or HALVINGS,
        settings.network.flat or NEVER_FLAT,
    )
    predictor = build_method(settings, shape, settings.network.name or "").predictor()
    # kernels lie in memory as they do for `dkuxnet predict`: the same sums, bit for bit
    return PatchModel(
        to_device(predictor, torch.device("cpu")), shape, patch, probabilities=False
    ).eval()


def find_scans(folder: str, channels: int = 0) -> list[dict[str, Any]]:
    """The cases of a folder in any layout that `dkuxnet predict` reads, or one scan.

    Each is {"image": [a file a channel], "name", "series_uid"}, the last empty where the file holds
    one scan. channels: of the model; bundles of earlier versions do not say it.
    """
    return [
        {
            "image": [str(path) for path in case.images],
            "name": case.name,
            "series_uid": case.series_uid or "",
        }
        for case in find_cases([Path(folder)], channels=channels)
    ]


class LoadScand(MapTransform):
    """Files (one a channel) -> MetaTensor (C, X, Y, Z) float32 with its RAS+ affine; checked."""

    def __init__(self, keys: Any, channels: int):
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            case = Case(
                result["name"],
                tuple(map(Path, result[key])),
                series_uid=result["series_uid"] or None,
            )
            scan = read_image(case, self.channels)
            result[key] = MetaTensor(
                torch.from_numpy(np.ascontiguousarray(scan.array)),
                affine=torch.from_numpy(scan.affine),
            )
            result["scan_nifti"] = scan.nifti.hex()
        return result


class ToNetworkGridd(MapTransform):
    """A scan -> RAS order, the network's spacing, normalised.

    The scan's own grid goes to scan_affine and scan_shape.
    """

    def __init__(
        self, keys: Any, spacing_mm: Sequence[float], normalisation: Sequence[Mapping[str, Any]]
    ):
        super().__init__(keys)
        self.plan = NetworkGrid.model_validate(
            {"spacing_mm": list(spacing_mm), "normalisation": list(normalisation)}
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            scan = Volume(result[key].numpy(), np.asarray(result[key].affine, np.float64))
            grid = to_network_grid(scan, self.plan)
            result[key] = MetaTensor(
                torch.from_numpy(grid.array), affine=torch.from_numpy(grid.affine)
            )
            result["scan_affine"] = torch.from_numpy(scan.affine.copy())
            result["scan_shape"] = torch.tensor(scan.shape)
        return result


class WindowInferer(Inferer):
    """The sliding window of `dkuxnet predict`.

    Scans (B, C, X, Y, Z), network of logits -> probabilities (B, K, X, Y, Z).
    """

    def __init__(self, patch: Sequence[int], classes: int, overlap: float, batch: int):
        super().__init__()
        self.patch, self.classes = tuple(patch), classes
        self.settings = InferSettings(overlap=overlap, batch=batch)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        def predictor(patches: Tensor) -> Output:
            return Output(logits=network(patches, *args, **kwargs))

        windows = Windows(self.patch, self.classes, self.settings, inputs.device)
        scans = torch.as_tensor(inputs).cpu().numpy()
        probs = [sliding_window(predictor, scan, windows).prob for scan in scans]
        return torch.stack([torch.from_numpy(prob) for prob in probs])


class LabelOnScand(MapTransform):
    """Probabilities on the network's grid -> label values (1, X, Y, Z) on the scan's own grid.

    largest_component: class indices, or all classes; min_ml: by class index; these and
    largest_foreground: see `InferSettings`.
    """

    def __init__(
        self,
        keys: Any,
        label_values: Sequence[int],
        largest_component: bool | Sequence[int],
        min_ml: Sequence[float] = (),
        largest_foreground: bool = False,
    ):
        super().__init__(keys)
        self.label_values = list(label_values)
        if isinstance(largest_component, bool):
            largest_component = range(1, len(label_values)) if largest_component else ()
        least_ml = dict(enumerate(min_ml))
        self.cleaning = Cleaning(frozenset(largest_component), least_ml, largest_foreground)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        affine = np.asarray(result["scan_affine"], np.float64)
        shape = [int(n) for n in result["scan_shape"]]
        for key in self.key_iterator(result):
            prob = torch.as_tensor(result[key]).cpu().numpy()
            indices = label_on_scan(prob, shape, affine, self.cleaning)
            # torch has no uint16 to speak of
            label = label_volume(indices, affine, self.label_values).array.astype(np.int32)
            result[key] = MetaTensor(torch.from_numpy(label)[None], affine=torch.from_numpy(affine))
        return result


class WriteLabeld(MapTransform):
    """A label map -> FOLDER/NAME.nii.gz, in the smallest integer type for `label_values`."""

    def __init__(self, keys: Any, folder: str, label_values: Sequence[int]):
        super().__init__(keys)
        self.folder, self.type = Path(folder), np.min_scalar_type(max(label_values))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            label = Volume(
                data[key][0].numpy().astype(self.type),
                np.asarray(data[key].affine, np.float64),
                nifti=formats.place_of(data.get("scan_nifti", "")),
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            formats.write(label, self.folder / f"{data['name']}.nii.gz")
        return dict(data)
