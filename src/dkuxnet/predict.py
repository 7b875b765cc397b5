"""Scans in, label maps out, each on its scan's own grid and in its scan's own format."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dkuxnet import formats
from dkuxnet.data.layouts import find_source
from dkuxnet.errors import UserError
from dkuxnet.experiment import load_predictor
from dkuxnet.infer import grid_bytes, label_on_scan, label_volume, map_on_scan, sliding_window
from dkuxnet.prepare import read_image, to_network_grid
from dkuxnet.run import atomically
from dkuxnet.types import Case, Volume

COMMON_NAMES = ("mri_norm2", "lgemri")  # the same in every patient's folder: there the folder names the case
Progress = Callable[[str, int, int], None]  # a sentence, cases done, of how many


def predict(
    run: Path,
    inputs: Sequence[Path],
    output: Path,
    save_probabilities: bool = False,
    save_uncertainty: bool = False,
    weights: str = "final",
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Path]:
    """Segment scans with the model of `run`; returns the label maps written to `output`, one a case.

    inputs: scans, or folders in any layout that `prepare` reads. A label map has its scan's shape, affine and format, and
    the label values of the training data. output/probabilities holds (K, X, Y, Z) float32, output/uncertainty (X, Y, Z)
    float32 in [0, 1], where asked for. Raises UserError naming the case; maps that are done stay.
    """
    progress = progress or (lambda sentence, done, total: None)
    cases = find_cases(inputs)
    predictor, settings, manifest = load_predictor(run, weights, device)
    labels, channels = manifest["labels"], len(manifest["channels"])
    output = _make_folder(output, labels)
    where = next(predictor.parameters()).device
    written = []
    for done, case in enumerate(cases):
        scan = read_image(case, channels)
        grid = to_network_grid(scan, manifest["plan"])
        size = grid_bytes(grid.shape, manifest["patch"], len(labels), save_uncertainty)
        progress(f"{case.name}: {_voxels(scan.shape)} voxels, {_voxels(grid.shape)} for the network, "
                 f"about {size / 2**30:.2g} GiB", done, len(cases))
        result = sliding_window(predictor, grid.array, manifest["patch"], len(labels), settings.infer, where,
                                save_uncertainty)
        ending = formats.suffix(case.images[0])
        label = label_on_scan(result.prob, scan.shape, scan.affine)
        written.append(output / f"{case.name}{ending}")
        formats.write(label_volume(label, scan.affine, list(labels.values())), written[-1])
        for kind, values in (("probabilities", result.prob if save_probabilities else None),
                             ("uncertainty", result.uncertainty)):
            if values is not None:
                (output / kind).mkdir(exist_ok=True)
                on_scan = Volume(map_on_scan(values, scan.shape, scan.affine), scan.affine)
                formats.write(on_scan, output / kind / f"{case.name}{ending}")
    progress("done", len(cases), len(cases))
    return written


def find_cases(inputs: Sequence[Path]) -> list[Case]:
    """The cases that the inputs name. Raises UserError for a missing input and for two cases of one name."""
    cases: dict[str, Case] = {}
    for path in map(Path, inputs):
        if not path.exists():
            raise UserError(f"{path} does not exist; give a scan or a folder of scans")
        for case in find_source(path).cases if path.is_dir() else [_single(path)]:
            if case.name in cases:
                if path.is_file() and path in cases[case.name].images:
                    continue  # another channel of a case that is there already
                raise UserError(f"two inputs give the case name '{case.name}': {cases[case.name].images[0]} and "
                                f"{case.images[0]}; rename one or predict them into different folders")
            cases[case.name] = case
    return list(cases.values())


def _single(path: Path) -> Case:
    """A file as a case; nnU-Net's NAME_0000 brings its sibling channels along."""
    stem = formats.stem(path)
    name, underscore, number = stem.rpartition("_")
    if underscore and len(number) == 4 and number.isdigit():
        return Case(name, tuple(sorted(path.parent.glob(f"{name}_[0-9][0-9][0-9][0-9]{formats.suffix(path)}"))))
    return Case(path.parent.name if stem in COMMON_NAMES else stem, (path,))


def _make_folder(output: Path, labels: dict[str, int]) -> Path:
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot write there: {error.strerror}") from error
    # `dkuxnet evaluate` reads from it what the values mean
    atomically(output / "dataset.json", lambda part: part.write_text(json.dumps({"labels": labels}, indent=1), "utf-8"))
    return output


def _voxels(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
