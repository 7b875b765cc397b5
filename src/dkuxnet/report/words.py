"""The page's sentences: what was done and with which data, in plain words."""

from collections.abc import Sequence

from dkuxnet.core.config import Settings
from dkuxnet.core.schemas import Hounsfield, Manifest
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.evaluate import foreground
from dkuxnet.runs.folder import RunFolder


def tell(settings: Settings, manifest: Manifest, steps: int, finished: bool) -> list[str]:
    """What was done, in plain words, a sentence each."""
    train, split, unlabelled = settings.train, manifest.split, uses_unlabelled(manifest)
    aside = count(len(split.unlabelled), "scan")
    also = f" and {aside} whose labels it did not see" if unlabelled else ""
    told = [
        f"The program was trained to outline {join([*manifest.scored])} in 3D scans "
        f"from {count(len(split.labelled), 'scan')} with their labels{also}."
    ]
    if split.unlabelled and not unlabelled:
        aside = count(len(split.unlabelled), "unlabelled scan")
        told.append(f"This method leaves the {aside} aside.")
    done = (
        f"for {steps:,} steps" if finished else f"and has come to step {steps:,} of {train.steps}"
    )
    gpu = manifest.machine.gpu
    where = f"on {gpu}" if gpu else "on the processor, without a GPU"
    told.append(
        f"It trained the network {manifest.network} ({manifest.parameters / 1e6:.1f} million "
        f"parameters, all networks of the method together) by the method {manifest.method} {done} "
        f"{where}."
    )
    batch = f"{train.labelled_batch} labelled"
    batch += f" and {train.unlabelled_batch} unlabelled" if unlabelled else ""
    patches = "patch" if train.labelled_batch == 1 and not unlabelled else "patches"
    told.append(f"Every step looked at {batch} {patches} of {by(manifest.patch)} voxels.")
    if split.validation:
        apart = f"{count(len(split.validation), 'labelled scan')} took no part in training and"
        if manifest.weights == "best":
            told.append(f"{apart} chose the weights: those that were best on them are used.")
        else:
            told.append(f"{apart} followed its progress.")
    if manifest.postprocessing and (chosen := manifest.postprocessing.in_words):
        told.append(f"{chosen}.")
    if split.test:
        told.append(
            f"{count(len(split.test), 'scan')} took no part in training: on these the figures "
            "below were measured, each on the scan's own voxels and over the whole scan."
        )
    return told


def uses_unlabelled(manifest: Manifest) -> bool:
    """Whether there are unlabelled scans and the method learned from them."""
    return bool(manifest.split.unlabelled) and manifest.uses_unlabelled


def wall_times(manifest: Manifest, rows: list[dict[str, float]]) -> dict[str, str]:
    """Training and evaluation, "" where not known.

    Of an unfinished run the training up to its last logged step.
    """
    logged = [row["seconds"] for row in rows if "seconds" in row]
    train = manifest.train_seconds or (logged[-1] if logged else None)
    test = manifest.evaluate_seconds
    return {
        "train": "" if train is None else duration(train),
        "test": "" if test is None else duration(test),
    }


def duration(seconds: float) -> str:
    """As in "42 s", "12 min 5 s", "3 h 20 min"."""
    minutes, left = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{left} s"
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def tell_data(manifest: Manifest, oriented: bool) -> list[str]:
    """The fingerprint (what the scans are like) and the plan (what was made of them).

    A sentence each. oriented: whether the scans' files say how the patient lies.
    """
    scans, plan = manifest.fingerprint, manifest.plan
    axes = "left-right, back-front, down-up" if oriented else "x, y, z of the files"
    names = {str(value): name for name, value in foreground(manifest.labels).items()}
    shares = [
        f"{names[value]} {100 * share:.3g} %"
        for value, share in scans.label_share.items()
        if value in names
    ]
    told = [
        f"The data set has {count(scans.cases, 'scan')}, {scans.labelled} of them with a label; "
        f"channels: {join(manifest.channels)}.",
        f"A scan has {by(scans.shape_median)} voxels of {by(scans.spacing_mm_median, 3)} mm, which "
        f"is {by(scans.extent_mm_median)} mm (medians; axes: {axes}).",
        *([f"Share of a labelled scan's voxels: {join(shares)}."] if shares else []),
        f"The network sees every scan resampled to voxels of about {by(plan.spacing_mm, 3)} mm, in "
        f"patches of {by(manifest.patch)} voxels; predictions are brought back to the scan's own.",
    ]
    if manifest.coarse:
        told.append(
            "Two stages: it also sees the probabilities of a network that was trained before it at "
            "coarser voxels (the run in the folder coarse). Predictions are the mean of both."
        )
    for channel, how in zip(manifest.channels, plan.normalisation, strict=True):
        text = "each scan brought to mean 0 and standard deviation 1"
        if isinstance(how, Hounsfield):
            text = (
                f"clipped to {how.low:.4g} and {how.high:.4g}, then scaled by the data set's mean "
                "and spread"
            )
        told.append(f"Intensities of {channel}: {text}.")
    return told


def places(
    folder: RunFolder, manifest: Manifest, data: PreparedSet | None
) -> list[tuple[str, str]]:
    """(what, where) on the machine that wrote the page."""
    run = folder.folder.resolve()
    found = [("This run", str(run)), ("Prepared data set", manifest.prepared)]
    if (run / "evaluation").is_dir():
        found.append(("Predictions and figures of the test cases", str(run / "evaluation")))
    if data is not None and data.meta.source:
        found.append((f"Source scans (layout {data.meta.layout or '?'})", data.meta.source))
    return found


def count(number: int, noun: str) -> str:
    """As in "1 scan", "2 scans"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def by(numbers: Sequence[float], digits: int = 0) -> str:
    """As in "48 × 48 × 32", with at most `digits` decimals."""
    texts = (f"{number:.{digits}f}" for number in numbers)
    return " × ".join(text.rstrip("0").rstrip(".") if "." in text else text for text in texts)


def join(names: Sequence[str]) -> str:
    """As in "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
