"""Predictions x labels -> a table of every case and class; mean, spread and interval; JSON, CSV."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import Faults, UserError, data_warnings, disk_reason
from dkuxnet.core.schemas import Found, Statistic
from dkuxnet.core.types import IGNORE, CountProgress, Volume
from dkuxnet.data import formats
from dkuxnet.data.affines import on_grid
from dkuxnet.data.labels import (
    MAX_FOUND_LABELS,
    classes_of,
    read_label,
    segment_names,
    with_classes,
)
from dkuxnet.data.layouts import find_source
from dkuxnet.data.layouts.files import (
    by_stem,
    case_list,
    label_files,
    read_dataset_json,
    warn_left_out,
)
from dkuxnet.data.layouts.label_map import LabelMap, label_map
from dkuxnet.evaluation.found import count_found, notes_on
from dkuxnet.evaluation.metrics import (
    METRICS,
    Array,
    Metric,
    confusion_counts,
    segmentation_metrics,
    without_outline,
)
from dkuxnet.evaluation.more_metrics import Asked, parse_asked
from dkuxnet.evaluation.statistics import known_mean, summarise
from dkuxnet.machine.files import write_text

NOTHING_MORE, NOTHING_LEFT_OUT = Asked(), LabelMap({})
Values = int | tuple[int, ...]  # of a class, or of a region, its own first
Meaning = Mapping[str, Values]
Files = dict[str, tuple[Path, Path]]  # case -> (prediction file, label file)


class Score(NamedTuple):
    """One class of one case: METRICS in [0, 1], mm and voxels; counts of voxels; volumes in ml.

    value: of the class in the prediction. METRICS are NaN where they do not apply: all where
    neither prediction nor label has the class, distances where one has it alone. confidence: see
    `core.confidence`, NaN where it is not known, as of a label map alone. more: what was asked for
    beside METRICS. Of a label that leaves voxels out only the others count, and a figure that needs
    the whole outline is NaN; of a class that nobody outlined all are, counts too.
    """

    case: str
    class_name: str
    value: int
    dice: float
    jaccard: float
    hd95_mm: float
    asd_mm: float
    hd95_voxels: float
    asd_voxels: float
    tp: float
    fp: float
    fn: float
    tn: float
    n_pred: float
    n_ref: float
    pred_ml: float = math.nan
    ref_ml: float = math.nan
    confidence: float = math.nan
    more: tuple[float, ...] = ()


COUNTS = {"tp": "TP", "fp": "FP", "fn": "FN", "tn": "TN", "n_pred": "n_pred", "n_ref": "n_ref"}
EXTRAS = {name: name for name in ("pred_ml", "ref_ml", "confidence")}
# -> key in summary.json
KEYS = {metric.key: metric.summary for metric in METRICS} | COUNTS | EXTRAS
COLUMNS = ("case", "class", *Score._fields[2:-1])  # of cases.csv


@dataclass
class Evaluation:
    """What `evaluate_folders` found.

    rows: one per case and class; every case has every class. notes: what a reader of the figures
    must know, a sentence each. asked: the metrics beside METRICS. ignored: names of the cases whose
    labels leave voxels out.
    """

    rows: list[Score]
    files: Files
    notes: list[str] = field(default_factory=list)
    asked: tuple[Metric, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def classes(self) -> dict[str, int]:
        """Class name -> value, without background."""
        return {row.class_name: row.value for row in self.rows}

    def summary(self) -> dict[str, dict[str, Statistic]]:
        """Class, or FOREGROUND_MEAN (of each case's classes) -> key of a metric -> statistic."""
        metrics = (*METRICS, *self.asked)
        figures = self._figures(metric.key for metric in metrics)
        return summarise(figures, [*self.classes], metrics)

    def found(self) -> dict[str, Found]:
        """Class -> in how many cases it is, and where prediction and label do not both have it."""
        n_pred, n_ref, pred_ml = np.moveaxis(self._figures(["n_pred", "n_ref", "pred_ml"]), 2, 0)
        return count_found([*self.classes], n_pred, n_ref, pred_ml)

    def label_notes(self) -> list[str]:
        """What labels that do not say all mean for the figures, a sentence each."""
        told = []
        if self.ignored:
            told.append(
                f"the labels of {len(self.ignored)} of {len(self.files)} cases leave voxels out "
                f"({_some(self.ignored)}): figures are of the labelled ones, and distances, which "
                "need the whole outline, have none"
            )
        left_out = Counter(row.class_name for row in self.rows if math.isnan(row.n_ref))
        of = len(self.files)
        if cases := [f"'{name}' in {count} of {of}" for name, count in left_out.items()]:
            told.append(f"not labelled, so that no mean counts it: {', '.join(cases)} cases")
        return told

    def write_json(self, path: Path) -> None:
        """Write nnU-Net's summary.json with our keys, whole or not at all.

        A figure that does not apply is null. "foreground_mean" is that of nnU-Net, the mean over
        the classes of their means; under "statistics", as everywhere else, it is the mean over the
        cases of each case's mean. Where every class is in every case these are equal. Raises
        UserError where it cannot be written.
        """
        _write(path, self.as_json() + "\n")

    def as_json(self) -> str:
        """The text of `write_json`."""
        return json.dumps(self._as_json(), indent=2, ensure_ascii=False, allow_nan=False)

    def write_csv(self, path: Path) -> None:
        """Write the rows, an empty cell where a figure does not apply; errors as `write_json`."""
        text = io.StringIO()
        rows = ([csv_cell(value) for value in _flat(row)] for row in self.rows)
        csv.writer(text, lineterminator="\n").writerows([self._columns, *rows])
        _write(path, text.getvalue())

    def _figures(self, columns: Iterable[str]) -> Array:
        """(cases, classes, columns)."""
        places = [self._columns.index(column) for column in columns]
        figures = [[_flat(row)[place] for place in places] for row in self.rows]
        shape = (len(self.files), len(self.classes), len(places))
        return np.array(figures, dtype=np.float64).reshape(shape)

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*COLUMNS, *(metric.key for metric in self.asked))

    def _as_json(self) -> dict[str, Any]:
        keys = KEYS | {metric.key: metric.summary for metric in self.asked}

        def by_key(values: Iterable[float]) -> dict[str, float | None]:
            known = (None if math.isnan(value) else value for value in values)
            return dict(zip(keys.values(), known, strict=True))

        metrics: dict[str, dict[str, dict[str, float | None]]] = {case: {} for case in self.files}
        for row in self.rows:
            metrics[row.case][str(row.value)] = by_key(_flat(row)[3:])
        means = known_mean(self._figures(keys), axis=0)
        by_class = zip(self.classes.values(), means.tolist(), strict=True)
        return {
            "foreground_mean": by_key(known_mean(means, axis=0).tolist()),
            "mean": {str(value): by_key(mean) for value, mean in by_class},
            "metric_per_case": [
                {
                    "prediction_file": str(prediction),
                    "reference_file": str(label),
                    "metrics": metrics[case],
                }
                for case, (prediction, label) in self.files.items()
            ],
            "statistics": {
                name: {keys[key]: statistic.to_json() for key, statistic in each.items()}
                for name, each in self.summary().items()
            },
            "found": {name: found.to_json() for name, found in self.found().items()},
            "n_cases": len(self.files),
            "labels": self.classes,
            "notes": self.notes,
        }


def evaluate_pair(
    case: str,
    prediction: Volume,
    truth: Volume,
    labels: Meaning,
    truth_labels: Meaning | None = None,
    asked: Asked = NOTHING_MORE,
    ignore: int | None = None,
    not_labelled: Collection[str] = (),
) -> list[Score]:
    """Score one case: a row for every class of `labels` but value 0, the background.

    prediction, truth: label maps (X, Y, Z) of integers on one grid, in any order of axes.
    labels: class name -> value in `prediction`, or values of a region, its own first. truth_labels:
    the same for `truth`, where its values differ. asked: further metrics. ignore: the value in
    `truth` of voxels that nobody labelled. not_labelled: classes that nobody outlined: NaN
    throughout. Raises UserError where shape or affine differ, and where a value stands in neither
    map; a DataWarning where the affines differ by rounding.
    """
    truth_labels = truth_labels or labels
    truth = _on_grid(case, prediction, truth)
    _check_values(case, "the prediction", prediction.array, labels)
    _check_values(case, "the label file", truth.array, truth_labels, ignore)
    out = None if ignore is None else truth.array == ignore
    left_out = 0 if out is None else int(np.count_nonzero(out))
    rows, voxel_ml = [], math.prod(truth.spacing_mm) / 1000
    for name, values in foreground(labels).items():
        value = values_of(values)[0]
        if name in not_labelled:
            rows.append(_not_scored(case, name, value, len(asked.metrics)))
            continue
        predicted, true = _mask(prediction, values), _mask(truth, truth_labels[name])
        if out is not None:
            predicted &= ~out
        figures = segmentation_metrics(predicted, true, truth.spacing_mm)
        counts = confusion_counts(predicted, true)
        more = asked.figures(name, predicted, true, truth.spacing_mm)
        if left_out:
            counts["tn"] -= left_out
            figures = without_outline(figures)
            more = tuple(
                math.nan if metric.whole else figure
                for metric, figure in zip(asked.metrics, more, strict=True)
            )
        pred_ml, ref_ml = (counts[key] * voxel_ml for key in ("n_pred", "n_ref"))
        rows.append(
            Score(case, name, value, **figures, **counts, pred_ml=pred_ml, ref_ml=ref_ml, more=more)
        )
    return rows


def _not_scored(case: str, name: str, value: int, more: int) -> Score:
    """The row of a class of which a label says nothing."""
    nothing = dict.fromkeys(Score._fields[3:-1], math.nan)
    return Score(case, name, value, **nothing, more=(math.nan,) * more)


def evaluate_folders(
    predictions: StrPath,
    labels: StrPath,
    progress: CountProgress | None = None,
    cases: StrPath | None = None,
    metrics: str = "",
    tolerance_mm: str = "",
) -> Evaluation:
    """Score every prediction of a folder against the label of the same case.

    predictions: folder of label maps CASE.nii.gz (or any known format) and, where it has one, their
    dataset.json. labels: folder of label files named alike, or a source folder in any known layout.
    Its dataset.json, or the one above, names the classes where the predictions' does not; without
    any, values found become class_1, class_2, ... Where both name the same classes, each side is
    read by its own values. progress: called with (cases done, cases in all) after each case. cases:
    a file that names the cases to score, one a line, each of which must have been predicted.
    metrics, tolerance_mm: further ones, see `parse_asked`. Raises UserError where nothing pairs, a
    prediction has no label, grids differ, or a value has no class.
    """
    asked = parse_asked(metrics, tolerance_mm)
    listed = None if cases is None else case_list(Path(cases))
    files, meant, unpaired = _pair_files(Path(predictions), Path(labels), listed)
    described = _class_map(Path(predictions))
    truth_labels: Meaning | None = meant.scored if meant else None
    _, ignore, not_labelled, *_ = meant or described or NOTHING_LEFT_OUT
    prediction_labels: Meaning
    prediction_labels = described.scored if described else truth_labels or _found_labels(files)
    if not foreground(prediction_labels):
        raise UserError(
            f"{labels}: expected at least one class beside the background, found none: nothing to "
            "score"
        )
    asked.check([*foreground(prediction_labels)])
    if truth_labels and not foreground(prediction_labels).keys() <= truth_labels.keys():
        truth_labels = None  # other names for the same values
    rows: list[Score] = []
    ignored: list[str] = []
    faults = Faults()
    for done, (case, pair) in enumerate(files.items(), start=1):
        with faults.noting():
            prediction, truth = _read_pair(
                case, pair, prediction_labels, truth_labels or prediction_labels, ignore
            )
            rows += evaluate_pair(
                case,
                prediction,
                truth,
                prediction_labels,
                truth_labels,
                asked,
                ignore,
                not_labelled.get(case, ()),
            )
            ignored += [case] if ignore is not None and (truth.array == ignore).any() else []
        if progress:
            progress(done, len(files))
    faults.tell()
    result = Evaluation(rows, files, asked=asked.metrics, ignored=tuple(ignored))
    if unpaired:
        labelled = unpaired + len(files)
        result.notes.append(f"{unpaired} of {labelled} labelled cases have no prediction")
    result.notes += [*result.label_notes(), *notes_on(result.found())]
    return result


def _pair_files(
    predictions: Path, labels: Path, listed: Sequence[str] | None
) -> tuple[Files, LabelMap | None, int]:
    """(files, what the labels' own values mean, how many labels have no prediction)."""
    found = label_files(predictions)
    predicted = by_stem(found)
    warn_left_out(predictions, found)
    if listed is not None:
        if missing := set(listed) - predicted.keys():
            raise UserError(
                f"{predictions}: expected a prediction of every case in the list, none for "
                f"{_some(missing)}; predict them, or correct the list"
            )
        predicted = {case: predicted[case] for case in listed}
    if not predicted:
        raise UserError(
            f"{predictions}: expected a folder of label maps such as CASE.nii.gz, found none; "
            "predict first"
        )
    true, meant = _label_files(labels, predicted.keys())
    if not predicted.keys() & true.keys():
        raise UserError(
            f"expected predictions and labels with the same names, got {_some(predicted)} in "
            f"{predictions} and {_some(true)} in {labels}; give the folder of these cases' labels"
        )
    if missing := predicted.keys() - true.keys():
        raise UserError(
            f"{labels}: expected a label for every prediction, none for {_some(missing)}; add or "
            "remove them"
        )
    files = {case: (predicted[case], true[case]) for case in sorted(predicted)}
    return files, meant, 0 if listed is not None else len(true) - len(files)


def _label_files(folder: Path, wanted: Set[str]) -> tuple[dict[str, Path], LabelMap | None]:
    """(case -> label file, what its values mean) of a folder of labels, else of a source folder."""
    direct = by_stem(label_files(folder))
    if wanted & direct.keys():
        return direct, _class_map(folder) or _class_map(folder.absolute().parent)
    source = with_classes(find_source(folder))
    found = {case.name: case.label for case in source.cases if case.label}
    if found:
        label = next(iter(found.values()))
        # A source leaves out the cases of a test list; where each case has its folder, theirs stand
        # beside the others'.
        beside = {case: label.parent.parent / case / label.name for case in wanted - found.keys()}
        found |= {case: path for case, path in beside.items() if path.is_file()}
    if source.labels is None:
        return found or direct, None
    left_out, regions = source.not_labelled, source.regions
    return found or direct, LabelMap(source.labels, source.ignore, left_out, regions, source.same)


def _some(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    return (", ".join(names[:most]) or "none") + (
        f" and {len(names) - most} more" if names[most:] else ""
    )


def _class_map(folder: Path) -> LabelMap | None:
    """What values mean by the folder's dataset.json; None where it has none."""
    fields = read_dataset_json(folder) if (folder / "dataset.json").is_file() else {}
    return label_map(folder, fields) if "labels" in fields else None


def _found_labels(files: Files) -> dict[str, int]:
    names = [segment_names(path) for pair in files.values() for path in pair]
    if any(names):
        return classes_of([name for each in names for name in each or ()])
    values: set[int] = set()
    for case, pair in files.items():
        for path in pair:
            with data_warnings():  # they come again where the pair is scored
                values |= set(np.unique(_read(case, path).array).tolist())
        if len(values) > MAX_FOUND_LABELS:
            raise UserError(
                f"case '{case}': {len(values)} different label values up to here: these are not "
                "label maps; give those, or name the classes in dataset.json"
            )
    return {"background": 0} | {f"class_{value}": value for value in sorted(values - {0})}


def foreground(labels: Mapping[str, Values]) -> dict[str, Values]:
    """The classes but value 0, the background."""
    return {name: value for name, value in labels.items() if value != 0}


def values_of(values: Values) -> tuple[int, ...]:
    """Those of a class or of a region."""
    return (values,) if isinstance(values, int) else values


def _mask(volume: Volume, values: Values) -> Array:
    if isinstance(values, int):
        return np.asarray(volume.array == values)
    return np.isin(volume.array, values)


def _single(labels: Meaning) -> dict[str, int]:
    """The values of segments, which are classes: of a region its own."""
    return {name: values_of(values)[0] for name, values in labels.items()}


def _read_pair(
    case: str, files: tuple[Path, Path], labels: Meaning, truth_labels: Meaning, ignore: int | None
) -> tuple[Volume, Volume]:
    """Prediction and label; one of named segments is laid on the grid of the other."""
    predicted, true = files
    if segment_names(predicted) is not None:
        if segment_names(true) is not None:
            raise UserError(
                f"case '{case}': {predicted.name} and {true.name} hold segments, whose grid only "
                "the scan knows; predict label maps as NIfTI"
            )
        truth = _read(case, true)
        return read_label(case, predicted, ("the label", truth), _single(labels)), truth
    prediction = _read(case, predicted)
    if segment_names(true) is None:
        return prediction, _read(case, true)
    named = _single(truth_labels) | ({} if ignore is None else {IGNORE: ignore})
    return prediction, read_label(case, true, ("the prediction", prediction), named)


def _read(case: str, path: Path) -> Volume:
    try:
        return formats.read(path, kind="label")
    except UserError as error:
        raise UserError(f"case '{case}': {error}") from error


def _on_grid(case: str, prediction: Volume, truth: Volume) -> Volume:
    try:
        return on_grid(f"case '{case}'", "prediction", prediction, "label", truth)
    except UserError as error:
        raise UserError(
            f"{error}; predict on the scan that was labelled, or resample one of the two"
        ) from error


def _check_values(
    case: str, what: str, array: Array, labels: Meaning, ignore: int | None = None
) -> None:
    known = {0, *(value for each in labels.values() for value in values_of(each))} | (
        set() if ignore is None else {ignore}
    )
    if sum(np.count_nonzero(array == value) for value in known) == array.size:
        return  # much faster than to sort the voxels
    values, counts = np.unique(array, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value not in known:
            raise UserError(
                f"case '{case}': {what} holds value {value} in {count} voxels, expected one of "
                f"{dict(labels)}; correct the file or name the value under 'labels' in dataset.json"
            )


def _flat(row: Score) -> tuple[Any, ...]:
    return (*row[:-1], *row.more)


def csv_cell(value: object) -> object:
    """As it stands in a CSV file: nothing in the place of NaN."""
    return "" if isinstance(value, float) and math.isnan(value) else value


def _write(path: Path, text: str) -> None:
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {disk_reason(error)}") from error
    write_text(path, text)
