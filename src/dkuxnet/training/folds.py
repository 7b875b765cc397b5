"""Cross-validation: each labelled case is held out by one of several runs, and segmented by it."""

import shutil
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from dkuxnet.core.config import Settings, validate
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import DataWarning, UserError, telling_disk_errors
from dkuxnet.core.schemas import Folds, Split
from dkuxnet.core.types import TrainProgress
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.data.splits import make_split
from dkuxnet.evaluation.evaluate import Evaluation
from dkuxnet.evaluation.found import notes_on
from dkuxnet.evaluation.stored import read_scores
from dkuxnet.machine.distributed import joined, on_rank_zero, rank
from dkuxnet.machine.files import inside, write_json
from dkuxnet.runs.folder import RunFolder
from dkuxnet.runs.folds import DESCRIPTION, fold_folder, read_folds
from dkuxnet.training.experiment import run_training
from dkuxnet.training.job import asked_of

NOTE = (
    "out of {folds} runs, each case by the one that did not see it; the runs share most of their "
    "training cases, which an interval over cases does not know of"
)


@telling_disk_errors()
def run_folds(
    prepared: StrPath,
    folder: StrPath,
    settings: Settings,
    folds: int,
    resume: bool = False,
    progress: TrainProgress | None = None,
) -> Evaluation:
    """Train `folds` runs in a new folder, see `runs.folds`; the scores of all labelled cases.

    The labelled cases of the split that the settings describe are dealt out. A run trains on the
    others; those that it holds out it sees in no way, its unlabelled cases are those of the split.
    A test list of the settings is kept out of all of them. resume: go on with what is there;
    `settings` and `folds` are then ignored. Raises what `run_training` does.
    """
    prepared, folder = Path(prepared), Path(folder)
    with joined():
        if not resume:
            on_rank_zero(lambda: begin(prepared, folder, settings, folds))
        asked = on_rank_zero(lambda: read_folds(folder))
        try:
            for number in range(1, asked.folds + 1):
                train_fold(prepared, folder, asked, number, progress)
        except BaseException:
            if not resume and not rank():
                discard_unless_saved(folder)
            raise
        return on_rank_zero(lambda: gathered(prepared, folder, asked))


def train_fold(
    prepared: Path, folder: Path, asked: Folds, number: int, progress: TrainProgress | None
) -> None:
    """Train a run, or go on with it, unless it has ended."""
    run = RunFolder(fold_folder(folder, number))
    if (state := on_rank_zero(partial(state_of, run))) != "finished":
        own = settings_of(folder, asked, number)
        show = _named(progress, f"fold {number} of {asked.folds}") if progress else None
        run_training(prepared, run.folder, own, state == "begun", show)


def begin(prepared: Path, folder: Path, settings: Settings, folds: int) -> None:
    """Write down what is to be done. Raises UserError where that is no cross-validation."""
    data, chosen = PreparedSet(prepared), settings.data
    whole = make_split(
        data.names,
        data.names_with_label,
        chosen.labelled,
        0,
        chosen.test_cases,
        chosen.split,
        chosen.labelled_seed,
    )
    if not 2 <= folds <= len(whole.labelled):
        raise UserError(
            f"--folds {folds}: expected 2 to {len(whole.labelled)}, the number of labelled cases "
            "that can train"
        )
    if (run := settings.train.pretrained) is not None:
        seen = RunFolder.open(run).manifest.split
        if known := {*seen.labelled, *seen.unlabelled, *seen.validation} & {*whole.labelled}:
            warnings.warn(
                f"{run} was trained on case '{min(known)}', which a fold holds out: the scores of "
                "runs that begin with it are too good",
                DataWarning,
                stacklevel=2,
            )
    RunFolder.check_new(folder)
    described = Folds(folds=folds, settings=settings.model_dump(mode="json", exclude_unset=True))
    folder.mkdir(parents=True, exist_ok=True)
    inside(folder, "splits").mkdir()
    for number in range(1, folds + 1):
        write_json(split_file(folder, number), fold_of(whole, folds, number).to_json())
    write_json(folder / DESCRIPTION, described.to_json())


def fold_of(whole: Split, folds: int, number: int) -> Split:
    """The split of a run: every `folds`-th labelled case is its test list."""
    held_out = whole.labelled[number - 1 :: folds]
    return Split(
        labelled=tuple(name for name in whole.labelled if name not in held_out),
        unlabelled=whole.unlabelled,
        validation=whole.validation,
        test=held_out,
    )


def split_file(folder: Path, number: int) -> Path:
    return inside(folder, "splits") / f"fold-{number}.json"


def settings_of(folder: Path, asked: Folds, number: int) -> Settings:
    """Those of a run; a number of validation cases is taken from its own labelled ones."""
    settings = validate(asked.settings)
    own = {"split": split_file(folder, number), "labelled": None, "labelled_seed": None}
    data = settings.data.model_copy(update={**own, "test_cases": 0})
    return settings.model_copy(update={"data": data})


def state_of(run: RunFolder) -> Literal["finished", "begun", "new"]:
    """What there is of a run; what a kill left before it was one is removed."""
    if run.is_finished:
        return "finished"
    if not run.is_run:
        shutil.rmtree(run.folder, ignore_errors=True)
    return "begun" if run.is_run else "new"


def discard_unless_saved(folder: Path) -> None:
    """Remove what a cross-validation has written that could not begin, and free its name."""
    if not any(path.is_dir() for path in folder.glob("fold-*")):
        shutil.rmtree(inside(folder, "splits"), ignore_errors=True)
        (folder / DESCRIPTION).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def gathered(prepared: Path, folder: Path, asked: Folds) -> Evaluation:
    """The scores of all runs as one evaluation, written to FOLDER/evaluation and folds.json."""
    target, data = inside(folder, "evaluation"), PreparedSet(prepared)
    inside(target, "predictions").mkdir(parents=True, exist_ok=True)
    write_json(target / "predictions" / "dataset.json", data.meta.description)
    more, rows, files = asked_of(validate(asked.settings)).metrics, [], {}
    for number in range(1, asked.folds + 1):
        run = RunFolder(fold_folder(folder, number))
        rows += read_scores(run.folder / "evaluation" / "cases.csv", more)
        for name in run.manifest.split.test:
            path = Path("predictions") / f"{name}.nii.gz"
            shutil.copyfile(run.folder / "evaluation" / path, target / path)
            files[name] = (path, data.folder / "cases" / f"{name}.truth.b2nd")
    order = {name: place for place, name in enumerate(data.names)}
    rows.sort(key=lambda row: order[row.case])  # stable: classes keep their order
    files = {name: files[name] for name in sorted(files, key=order.__getitem__)}
    ignored = tuple(filter(data.has_ignored, files))
    result = Evaluation(rows, files, asked=more, ignored=ignored)
    found = result.found()
    result.notes += [NOTE.format(folds=asked.folds), *result.label_notes(), *notes_on(found)]
    result.write_json(target / "summary.json")
    result.write_csv(target / "cases.csv")
    write_json(
        folder / DESCRIPTION,
        asked.model_copy(update={"test": result.summary(), "found": found}).to_json(),
    )
    return result


def _named(progress: TrainProgress, fold: str) -> TrainProgress:
    return lambda what, done, total, figures: progress(f"{fold}: {what}", done, total, figures)
