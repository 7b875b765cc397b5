"""A MONAI bundle: a folder that `python -m monai.bundle run` segments scans with, to the same
voxels as `dkuxnet predict`.

Source: the MONAI bundle specification (Project MONAI), as MONAI 1.6 reads it.
"""

import os
import shutil
import tempfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from dkuxnet.core.errors import UserError
from dkuxnet.core.extras import require
from dkuxnet.export.patch_model import Export
from dkuxnet.machine.files import write_json

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
PARTS = "dkuxnet.export.bundle_parts"
NO_TERMS = (
    "The weights in models/ were trained by whoever exported this bundle with dkuxnet. Their "
    "licence is "
    "that person's to choose; none is granted here.\n"
)


def write_bundle(export: Export) -> str:
    """LICENSE, configs/metadata.json, configs/inference.json, models/model.pt (a state dict),
    docs/README.md; all or none.
    """
    require("export", "monai")
    terms = _terms(export)
    try:
        folder = Path(
            tempfile.mkdtemp(prefix=f".{export.output.name}.", dir=export.output.absolute().parent)
        )
        try:
            for name in ("configs", "models", "docs"):
                (folder / name).mkdir()
            write_json(folder / "configs" / "metadata.json", bundle_metadata(export))
            write_json(folder / "configs" / "inference.json", inference_config(export))
            weights = {
                key: tensor.detach().cpu()
                for key, tensor in export.model(probabilities=False).state_dict().items()
            }
            torch.save(weights, folder / "models" / "model.pt")
            (folder / "docs" / "README.md").write_text(_readme(export), "utf-8")
            (folder / "LICENSE").write_text(terms, "utf-8")
            folder.chmod(0o755)  # mkdtemp makes it private; the folder becomes the user's
            os.replace(folder, export.output)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{export.output}: cannot write there: {error.strerror or error}"
        ) from error
    return (
        f"MONAI bundle; segment with: cd {export.output} && python -m monai.bundle run "
        "--config_file configs/inference.json --dataset_dir SCANS --output_dir OUTPUT"
    )


def inference_config(export: Export) -> dict[str, Any]:
    """configs/inference.json.

    It holds no name that a data set chose: MONAI runs strings that begin with $ as code.
    """
    manifest, infer, plan = export.manifest, export.settings.infer, export.manifest["plan"]
    shape, values = manifest["network_shape"], list(manifest["labels"].values())
    network = export.settings.network.model_dump(mode="json", exclude={"groups"}) | {
        "name": manifest["network"]
    }
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/predictions'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": f"{PARTS}.build_network",
            "network": network,
            "method": export.settings.method.model_dump(mode="json"),
            "channels": shape["in_channels"],
            "classes": shape["classes"],
            "groups": [
                {"classes": group["classes"], "queries": group["queries"]}
                for group in shape["groups"]
            ],
            "patch": manifest["patch"],
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": f"{PARTS}.LoadScand",
                    "keys": "image",
                    "channels": shape["in_channels"],
                },
                {
                    "_target_": f"{PARTS}.ToNetworkGridd",
                    "keys": "image",
                    "spacing_mm": plan["spacing_mm"],
                    "normalisation": plan["normalisation"],
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": {"_target_": f"{PARTS}.find_scans", "folder": "@dataset_dir"},
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {
            "_target_": f"{PARTS}.WindowInferer",
            "patch": manifest["patch"],
            "classes": shape["classes"],
            "overlap": infer.overlap,
            "batch": infer.batch,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": f"{PARTS}.LabelOnScand",
                    "keys": "pred",
                    "label_values": values,
                    "largest_component": infer.largest_component,
                },
                {
                    "_target_": f"{PARTS}.WriteLabeld",
                    "keys": "pred",
                    "folder": "@output_dir",
                    "label_values": values,
                },
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def bundle_metadata(export: Export) -> dict[str, Any]:
    """configs/metadata.json: the keys that the specification asks for, and the run's constants
    under "dkuxnet".
    """
    manifest, here = export.manifest, metadata.version
    labels, channels = (
        [_plain(name) for name in manifest["labels"]],
        [_plain(name) for name in manifest["channels"]],
    )
    space = {
        "type": "image",
        "spatial_shape": ["16*n"] * 3,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by dkuxnet"},
        "name": f"{manifest['network']} {manifest['method']}",
        "monai_version": here("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": here("numpy"),
        "required_packages_version": {name: here(name) for name in ("dkuxnet", "nibabel", "scipy")}
        | _ignite(),
        "task": f"3D segmentation: {', '.join(labels[1:])}",
        "description": f"A {manifest['network']} trained by {manifest['method']} with dkuxnet, "
        "semi-supervised 3D medical "
        "image segmentation",
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
            "labels": dict(zip(labels, manifest["labels"].values(), strict=True)),
            "channels": channels,
        },
    }


def _plain(name: str) -> str:
    """A name of a data set as a text that MONAI reads as a text: what begins with $, @ or % it
    would run or look up.
    """
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
        terms = export.licence.read_text("utf-8") if export.licence else NO_TERMS
    except (OSError, ValueError) as error:
        raise UserError(
            f"--license {export.licence}: not a readable text file ({error})"
        ) from error
    return f"WEIGHTS\n\n{terms.rstrip()}\n\nCONFIGURATION, AND THE PACKAGE dkuxnet THAT IT CALLS\n\n{code}"


def _readme(export: Export) -> str:
    manifest, words = export.manifest, " x ".join
    return (
        files("dkuxnet.export")
        .joinpath("bundle_readme.md")
        .read_text("utf-8")
        .format(
            network=manifest["network"],
            method=manifest["method"],
            labels=", ".join(f"{value} {name}" for name, value in manifest["labels"].items()),
            channels=", ".join(manifest["channels"]),
            spacing=words(f"{s:.4g}" for s in manifest["plan"]["spacing_mm"]),
            patch=words(map(str, manifest["patch"])),
            version=metadata.version("dkuxnet"),
        )
    )
