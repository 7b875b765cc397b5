"""The page's sentences: what was done and with which data, in plain words."""

from collections.abc import Sequence
from typing import Any

from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.runs.folder import RunFolder


def tell(
    settings: dict[str, Any],
    manifest: dict[str, Any],
    split: dict[str, int],
    steps: int,
    finished: bool,
) -> list[str]:
    """What was done, in plain words, a sentence each."""
    train, machine = settings.get("train", {}), manifest.get("machine", {})
    foreground = [name for name, value in manifest.get("labels", {}).items() if value != 0]
    parameters = manifest.get("parameters")
    told = [
        f"The program learned to outline {join(foreground) or 'the labelled structures'} in 3D "
        "scans from "
        f"{count(split['labelled'], 'scan')} with their labels"
        + (
            f" and {count(split['unlabelled'], 'scan')} whose labels it did not see."
            if uses_unlabelled(manifest, split)
            else "."
        )
    ]
    if split["unlabelled"] and not uses_unlabelled(manifest, split):
        told.append(
            f"This method leaves the {count(split['unlabelled'], 'unlabelled scan')} aside."
        )
    told.append(
        f"It trained the network {manifest.get('network', '?')}"
        + (
            f" ({parameters / 1e6:.1f} million parameters, all networks of the method together)"
            if parameters
            else ""
        )
        + f" by the method {manifest.get('method', '?')} "
        + (
            f"for {steps:,} steps"
            if finished
            else f"and has come to step {steps:,} of {train.get('steps', '?')}"
        )
        + (f" on {machine['gpu']}." if machine.get("gpu") else " on the processor, without a GPU.")
    )
    if patch := manifest.get("patch"):
        batch = f"{train.get('labelled_batch', '?')} labelled"
        if uses_unlabelled(manifest, split):
            batch += f" and {train.get('unlabelled_batch', '?')} unlabelled"
        told.append(f"Every step looked at {batch} patches of {by(patch)} voxels.")
    if split["validation"]:
        told.append(
            f"{count(split['validation'], 'labelled scan')} took no part in training and followed "
            "its progress."
        )
    if split["test"]:
        told.append(
            f"{count(split['test'], 'scan')} took no part in training: on these the figures below "
            "were measured, "
            "each on the scan's own voxels and over the whole scan."
        )
    return told


def uses_unlabelled(manifest: dict[str, Any], split: dict[str, int]) -> bool:
    return split["unlabelled"] > 0 and manifest.get("uses_unlabelled", True)


def wall_times(manifest: dict[str, Any], rows: list[dict[str, float]]) -> dict[str, str]:
    """Training and evaluation, "" where not known; of an unfinished run the training up to its
    last logged step.
    """
    logged = [row["seconds"] for row in rows if "seconds" in row]
    train = manifest.get("train_seconds") or (logged[-1] if logged else None)
    test = manifest.get("evaluate_seconds")
    return {
        "train": "" if train is None else duration(train),
        "test": "" if test is None else duration(test),
    }


def duration(seconds: float) -> str:
    """ "42 s", "12 min 5 s", "3 h 20 min"."""
    minutes, left = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{left} s"
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def tell_data(manifest: dict[str, Any], oriented: bool) -> list[str]:
    """The fingerprint (what the scans are like) and the plan (what was made of them), a sentence
    each. oriented: whether the scans' files say how the patient lies.
    """
    print_, plan, told = manifest.get("fingerprint", {}), manifest.get("plan", {}), []
    if "cases" in print_:
        told.append(
            f"The data set has {count(print_['cases'], 'scan')}, {print_.get('labelled', '?')} of "
            "them with a label; "
            f"channels: {join(manifest.get('channels', []))}."
        )
    if "shape_median" in print_:
        axes = "left-right, back-front, down-up" if oriented else "x, y, z of the files"
        told.append(
            f"A scan has {by(print_['shape_median'])} voxels of "
            f"{by(print_['spacing_mm_median'], 3)} mm, which is "
            f"{by(print_['extent_mm_median'])} mm (medians; axes: {axes})."
        )
    names = {str(value): name for name, value in manifest.get("labels", {}).items() if value != 0}
    shares = [
        f"{name} {100 * share:.3g} %"
        for key, share in print_.get("label_share", {}).items()
        if (name := names.get(key))
    ]
    if shares:
        told.append(f"Share of a labelled scan's voxels: {join(shares)}.")
    if "spacing_mm" in plan:
        told.append(
            f"The network sees every scan resampled to voxels of about {by(plan['spacing_mm'], 3)} "
            "mm, in patches of "
            f"{by(manifest.get('patch') or plan['patch'])} voxels; predictions are brought back to "
            "the scan's own."
        )
    for channel, how in zip(
        manifest.get("channels", []), plan.get("normalisation", []), strict=False
    ):
        told.append(
            f"Intensities of {channel}: "
            + (
                f"clipped to {how['low']:.4g} and {how['high']:.4g}, then scaled by the data set's "
                "mean and spread."
                if how.get("kind") == "ct"
                else "each scan brought to mean 0 and standard deviation 1."
            )
        )
    return told


def places(
    folder: RunFolder, manifest: dict[str, Any], data: PreparedSet | None
) -> list[tuple[str, str]]:
    """(what, where) on the machine that wrote the page."""
    found = [
        ("This run", str(folder.folder.resolve())),
        ("Prepared data set", str(manifest.get("prepared", "?"))),
    ]
    if (folder.folder / "evaluation").is_dir():
        found.append(
            (
                "Predictions and figures of the test cases",
                str((folder.folder / "evaluation").resolve()),
            )
        )
    if data is not None and "source" in data.meta:
        found.append(
            (f"Source scans (layout {data.meta.get('layout', '?')})", str(data.meta["source"]))
        )
    return found


def count(number: int, noun: str) -> str:
    """ "1 scan", "2 scans"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def by(numbers: Sequence[float], digits: int = 0) -> str:
    """ "48 × 48 × 32", with at most `digits` decimals."""
    texts = (f"{number:.{digits}f}" for number in numbers)
    return " × ".join(text.rstrip("0").rstrip(".") if "." in text else text for text in texts)


def join(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    names = [str(name) for name in names]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
