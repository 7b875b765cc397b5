"""What a training is about, from its settings or from the folder of a run that goes on."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dkuxnet.core.config import MethodSettings, Settings, validate
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup, parse_options
from dkuxnet.core.types import Group, NetworkShape
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.splits import Split, make_split
from dkuxnet.machine.devices import choose_device
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.base import Method
from dkuxnet.models.networks.grouping import default_groups
from dkuxnet.runs.folder import RunFolder, described_network, machine


@dataclass(frozen=True)
class Job:
    """What a training is about: who trains and judges, what the network must hold, the patch (X,
    Y, Z) in voxels.

    data describes the set and opens no array. `training`, `validation` and `test` open what the
    split lets each of them see.
    """

    settings: Settings
    data: PreparedSet
    training: PreparedSet
    validation: PreparedSet
    test: PreparedSet
    split: Split
    shape: NetworkShape
    patch: tuple[int, int, int]
    device: torch.device


def new_job(prepared: Path, settings: Settings) -> Job:
    """The job that the settings describe."""
    settings = write_out_options(settings)
    data, chosen = PreparedSet(prepared, settings.data.cache_gib), settings.data
    split = make_split(
        data.names,
        data.names_with_label,
        chosen.labelled,
        chosen.validation_cases,
        chosen.test_cases,
        chosen.split,
    )
    check_held_back(data, split)
    patch = tuple(settings.train.patch or data.meta["plan"]["patch"])
    return Job(
        settings,
        *views(data, split),
        split,
        network_shape(data, settings),
        patch,
        choose_device(settings.train.device),
    )


def check_held_back(data: PreparedSet, split: Split) -> None:
    """Raises UserError where the split takes a case for anything but a test that `prepare` was
    told to hold back for it.
    """
    held_back = set(data.meta.get("held_back", ()))
    if taken := [
        name
        for name in (*split.labelled, *split.unlabelled, *split.validation)
        if name in held_back
    ]:
        raise UserError(
            f"case '{taken[0]}' was held back for testing when {data.folder} was prepared, and "
            "this split trains "
            f"on it: set data.test_cases={len(held_back)}, or data.split as it was then"
        )


def views(
    data: PreparedSet, split: Split
) -> tuple[PreparedSet, PreparedSet, PreparedSet, PreparedSet]:
    """The set with all arrays closed; and as training, choosing a checkpoint and the evaluation
    may open it, each its own cases: a mistake elsewhere can then not train on a label that the
    split holds back.
    """
    return (
        data.only(),
        data.only(image=(*split.labelled, *split.unlabelled), label=split.labelled),
        data.only(image=split.validation, label=split.validation),
        data.only(image=split.test, truth=split.test),
    )


def resumed_job(prepared: Path, run: Path) -> Job:
    """The job of a run that is there, as its manifest has it.

    Raises UserError where the prepared set is another one.
    """
    folder = RunFolder.open(run)
    folder.check_own()
    settings, manifest = settings_of(folder), folder.manifest
    data = PreparedSet(prepared, settings.data.cache_gib)
    shape, patch = described_network(manifest, run)
    for key, now in data_identity(data).items():
        if manifest.get(key) != now:
            raise UserError(
                f"{run} was trained on another data set than {prepared} (its {key} differ); resume "
                "it with "
                f"{manifest.get('prepared')}"
            )
    split = Split(**{name: tuple(cases) for name, cases in manifest["split"].items()})
    check_in(data, split, run)
    here = arrays_sha256(data, split)
    if manifest.get("arrays_sha256", here) != here:  # it is not in older manifests
        raise UserError(
            f"{run} was trained on other scans or labels than those of the same names in "
            f"{prepared}; resume it "
            "with the set as it was, or train a new run"
        )
    return Job(
        settings, *views(data, split), split, shape, patch, choose_device(settings.train.device)
    )


def check_in(data: PreparedSet, split: Split, run: Path) -> None:
    """Raises UserError where the split of a manifest is none of this data set."""
    lists, labelled = split.to_json(), set(data.names_with_label)
    names = [name for cases in lists.values() for name in cases]
    needed = {name for key in ("labelled", "validation", "test") for name in lists[key]}
    if (
        len(set(names)) < len(names)
        or not set(names) <= set(data.names)
        or not needed <= labelled
        or not split.labelled
    ):
        raise UserError(
            f"{run}/manifest.json is damaged: its split does not fit the cases of {data.folder}"
        )


def uses_unlabelled(settings: Settings) -> bool:
    """Whether the method learns from unlabelled scans, if there are some."""
    return lookup(METHODS, settings.method.name, "method").uses_unlabelled


def unlabelled_patches(job: Job) -> int:
    """How many unlabelled patches a step takes."""
    return (
        job.settings.train.unlabelled_batch
        if job.split.unlabelled and uses_unlabelled(job.settings)
        else 0
    )


def write_out_options(settings: Settings) -> Settings:
    """The settings with every option of the method: a default that changes later then changes no
    run that is there.
    """
    method = lookup(METHODS, settings.method.name, "method")
    options = parse_options(
        method.Options, settings.method.model_extra, f"method.{settings.method.name}"
    )
    return settings.model_copy(
        update={"method": MethodSettings(name=settings.method.name, **dataclasses.asdict(options))}
    )


def settings_of(run: RunFolder) -> Settings:
    """The settings of a run that is there.

    An option of its method that is newer than the run is as things were before it.
    """
    settings = validate(run.settings)
    options = dataclasses.fields(lookup(METHODS, settings.method.name, "method").Options)
    before = {
        option.name: option.metadata["before"] for option in options if "before" in option.metadata
    }
    method = MethodSettings(name=settings.method.name, **(before | settings.method.model_extra))
    return settings.model_copy(update={"method": method})


def describe(job: Job, method: Method[Any]) -> dict[str, Any]:
    """The manifest: what a machine needs to know to use this run without the prepared set."""
    return {
        "prepared": str(job.data.folder.resolve()),
        **data_identity(job.data),
        "arrays_sha256": arrays_sha256(job.data, job.split),
        "fingerprint": job.data.meta["fingerprint"],
        "split": job.split.to_json(),
        "network_shape": dataclasses.asdict(job.shape),
        "network": job.settings.network.name or job.data.meta["plan"]["network"],
        "method": job.settings.method.name,
        "uses_unlabelled": unlabelled_patches(job) > 0,
        "patch": list(job.patch),
        "parameters": sum(p.numel() for p in method.parameters()),
        "machine": machine(job.device),
    }


def data_identity(data: PreparedSet) -> dict[str, Any]:
    """By what a resumed run knows its data set again, before it is sure of the split; then by
    `arrays_sha256`.
    """
    return {"cases": data.names} | {key: data.meta[key] for key in ("labels", "channels", "plan")}


def arrays_sha256(data: PreparedSet, split: Split) -> str:
    """One checksum over all arrays that a run with this split opens (see `views`), by the
    checksums that the set keeps. Labels that the split holds back may change.
    """
    opened = [
        (name, kind)
        for kind, names in (
            ("image", (*split.labelled, *split.unlabelled, *split.validation, *split.test)),
            ("label", (*split.labelled, *split.validation)),
            ("truth", split.test),
        )
        for name in names
    ]
    return hashlib.sha256(
        json.dumps([data.sha256(name, kind) for name, kind in opened]).encode()
    ).hexdigest()


def network_shape(data: PreparedSet, settings: Settings) -> NetworkShape:
    """Channels, classes and query groups for a data set; the groups of the settings, or else those
    of its classes.
    """
    names = data.class_names
    if not settings.network.groups:
        groups = default_groups(names, settings.network.queries)
    else:
        for group in settings.network.groups:
            for name in group.classes:
                if name not in names:
                    raise UserError(
                        f"network.groups: '{group.name}' names the class '{name}'; the data set "
                        f"has {names}"
                    )
        groups = tuple(
            Group(g.name, tuple(names.index(name) for name in g.classes), g.queries)
            for g in settings.network.groups
        )
    return NetworkShape(len(data.meta["channels"]), len(names), groups)
