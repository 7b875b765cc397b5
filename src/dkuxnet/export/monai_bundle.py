"""A MONAI bundle: `python -m monai.bundle run` segments with it as `dkuxnet predict` does.

Source: the MONAI bundle specification (Project MONAI), as MONAI 1.6 reads it.
"""

import io
from importlib import metadata
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import torch

from dkuxnet.core.documents import parse_json, read_text
from dkuxnet.core.errors import UserError
from dkuxnet.core.extras import how_to_install, require
from dkuxnet.export.patch_model import Export
from dkuxnet.machine.files import whole_folder, write_json
from dkuxnet.models.components import Cleaning

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
MAX_TERMS_BYTES = 2**20
PARTS = "dkuxnet.export.bundle_parts"
RUNS_WITH = ("fire", "ignite")  # `python -m monai.bundle run`
NO_TERMS = (
    "The weights in models/ were trained by whoever exported this bundle with dkuxnet. Their "
    "licence is that person's to choose; none is granted here.\n"
)


def write_bundle(export: Export) -> str:
    """Write the bundle, all of it or nothing; returns how to run it.

    LICENSE, configs/metadata.json, configs/inference.json, models/model.pt (a state dict),
    docs/README.md. Raises UserError where the disk does not take it.
    """
    require("export", "monai")
    terms = _terms(export)
    with whole_folder(export.output) as folder:
        for name in ("configs", "models", "docs"):
            (folder / name).mkdir()
        write_json(folder / "configs" / "metadata.json", bundle_metadata(export))
        write_json(folder / "configs" / "inference.json", inference_config(export))
        weights = {
            key: tensor.detach().cpu()
            for key, tensor in export.model(probabilities=False).state_dict().items()
        }
        content = io.BytesIO()  # torch's own writer ends the process where a disk is full
        torch.save(weights, content)
        (folder / "models" / "model.pt").write_bytes(content.getbuffer())
        (folder / "docs" / "README.md").write_text(_readme(export), "utf-8")
        (folder / "LICENSE").write_text(terms, "utf-8")
    return (
        f"MONAI bundle; segment with: cd {export.output} && python -m monai.bundle run "
        "--config_file configs/inference.json --dataset_dir SCANS --output_dir OUTPUT"
        f"{_to_install()}"
    )


def _to_install() -> str:
    """What MONAI's command needs and is not here, in words."""
    missing = [name for name in RUNS_WITH if find_spec(name) is None]
    if not missing:
        return ""
    return f"; it needs {' and '.join(missing)}: {how_to_install('export')}"


def inference_config(export: Export) -> dict[str, Any]:
    """configs/inference.json.

    It holds no name that a data set chose: MONAI runs strings that begin with $ as code.
    """
    manifest, infer = export.manifest, export.settings.infer
    shape, values = manifest.network_shape, list(manifest.labels.values())
    cleaning = Cleaning.of(infer, list(manifest.labels))
    network = export.settings.network.model_dump(mode="json", exclude={"groups"})
    groups = [{"classes": list(group.classes), "queries": group.queries} for group in shape.groups]
    filled: dict[str, dict[str, Any]] = {
        "build_network": {
            "network": network
            | {"name": manifest.network, "strides": shape.strides, "flat": shape.flat},
            "method": export.settings.method.model_dump(mode="json"),
            "channels": shape.in_channels,
            "classes": shape.classes,
            "groups": groups,
            "patch": list(manifest.patch),
        },
        "find_scans": {"channels": shape.in_channels},
        "LoadScand": {"channels": shape.in_channels},
        "ToNetworkGridd": {key: export.constants()[key] for key in ("spacing_mm", "normalisation")},
        "WindowInferer": {
            "patch": list(manifest.patch),
            "classes": shape.classes,
            "overlap": infer.overlap,
            "batch": infer.batch,
        },
        "LabelOnScand": {
            "label_values": values,
            "largest_component": sorted(cleaning.largest),
            "min_ml": [cleaning.least_ml.get(k, 0.0) for k in range(shape.classes)],
            "largest_foreground": cleaning.foreground,
        },
        "WriteLabeld": {"label_values": values},
    }

    config: dict[str, Any] = _filled(parse_json(_text("bundle_inference.json")), filled)
    return config


def _filled(part: Any, values: dict[str, dict[str, Any]]) -> Any:
    """`part` of the configuration, with arguments for each of our own parts that it names."""
    if isinstance(part, list):
        return [_filled(each, values) for each in part]
    if not isinstance(part, dict):
        return part
    module, _, name = part.get("_target_", "").rpartition(".")
    own = values.get(name, {}) if module == PARTS else {}
    return {key: _filled(value, values) for key, value in part.items()} | own


def bundle_metadata(export: Export) -> dict[str, Any]:
    """configs/metadata.json: what the specification asks for; "dkuxnet": the run's constants."""
    manifest, here = export.manifest, metadata.version
    labels, channels = [*map(_plain, manifest.labels)], [*map(_plain, manifest.channels)]
    space = {
        "type": "image",
        "spatial_shape": [f"{divisor}*n" for divisor in manifest.shape.divisor],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by dkuxnet"},
        "name": f"{manifest.network} {manifest.method}",
        "monai_version": here("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": here("numpy"),
        "required_packages_version": {name: here(name) for name in ("dkuxnet", "nibabel", "scipy")}
        | _ignite(),
        "task": f"3D segmentation: {', '.join(labels[1:])}",
        "description": f"A {manifest.network} trained by {manifest.method} with dkuxnet, "
        "semi-supervised 3D medical image segmentation",
        "authors": "whoever trained and exported it with dkuxnet",
        "copyright": "see LICENSE",
        "network_data_format": {
            "inputs": {
                "image": space
                | {
                    "format": "magnitude",
                    "modality": ", ".join(channels),
                    "num_channels": len(channels),
                    "channel_def": {str(i): name for i, name in enumerate(channels)},
                }
            },
            "outputs": {
                "pred": space
                | {
                    "format": "segmentation",
                    "num_channels": len(labels),
                    "channel_def": {str(i): name for i, name in enumerate(labels)},
                }
            },
        },
        "dkuxnet": export.constants()
        | {
            "labels": dict(zip(labels, manifest.labels.values(), strict=True)),
            "channels": channels,
        },
    }


def _plain(name: str) -> str:
    """A data set's name as MONAI reads it as text: what begins with $, @ or % it would run."""
    return name.lstrip("$@%") or "class"


def _ignite() -> dict[str, str]:
    try:
        return {"pytorch-ignite": metadata.version("pytorch-ignite")}
    except metadata.PackageNotFoundError:  # it runs bundles; writing one needs none
        return {"pytorch-ignite": "0.5.5"}


def _terms(export: Export) -> str:
    code = (
        metadata.distribution("dkuxnet").read_text("licenses/LICENSE")
        or "MIT licence, see the package dkuxnet\n"
    )
    try:
        terms = read_text(export.licence, MAX_TERMS_BYTES) if export.licence else NO_TERMS
    except (OSError, ValueError) as error:
        raise UserError(
            f"--license {export.licence}: not a readable text file ({error})"
        ) from error
    heading = "CONFIGURATION, AND THE PACKAGE dkuxnet THAT IT CALLS"
    return f"WEIGHTS\n\n{terms.rstrip()}\n\n{heading}\n\n{code}"


def _readme(export: Export) -> str:
    manifest, words = export.manifest, " x ".join
    return _text("bundle_readme.md").format(
        network=manifest.network,
        method=manifest.method,
        labels=", ".join(f"{value} {name}" for name, value in manifest.labels.items()),
        channels=", ".join(manifest.channels),
        spacing=words(f"{s:.4g}" for s in manifest.plan.spacing_mm),
        patch=words(map(str, manifest.patch)),
        version=metadata.version("dkuxnet"),
    )


def _text(name: str) -> str:
    return files("dkuxnet.export").joinpath(name).read_text("utf-8")
