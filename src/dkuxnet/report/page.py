"""A run folder -> one html file that anyone can open, without a network.

Figures, failures first, curves, settings.
"""

import json
import math
from pathlib import Path
from typing import Any

from dkuxnet.core.confidence import UNSURE_BELOW
from dkuxnet.core.config import flatten
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest, Statistic
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.found import FOUND_HEADINGS, notes_on, show_found, together
from dkuxnet.evaluation.metrics import DICE, NOTHING, SHOWN, Metric
from dkuxnet.evaluation.more_metrics import asked_in
from dkuxnet.evaluation.statistics import FOREGROUND_MEAN, show_interval
from dkuxnet.machine.files import write_bytes
from dkuxnet.report.cases import show_cases
from dkuxnet.report.pictures import PREDICTION, TRUTH
from dkuxnet.report.plots import curves_of, draw_curves, draw_dice
from dkuxnet.report.results import CaseResult, Results, read_results
from dkuxnet.report.template import NIIVUE, render
from dkuxnet.report.words import count, join, places, tell, tell_data, uses_unlabelled, wall_times
from dkuxnet.runs.folder import RunFolder


def write_report(run: StrPath, output: StrPath | None = None) -> Path:
    """Write the page of the run in folder `run`; returns its path.

    output: RUN/report.html where None. Works at any time: a run that has not finished, has no test
    cases, or whose prepared data are gone gets a page that says so. Raises UserError where `run` is
    no run folder, one of its files is damaged, or `output` cannot be written.
    """
    folder = RunFolder.open(Path(run))
    path = folder.folder / "report.html" if output is None else Path(output)
    if not path.parent.is_dir():  # before the work, not after it
        raise UserError(f"{path}: cannot write: the folder {path.parent} does not exist; create it")
    described = describe(folder)
    page = render("page.html", described, scripts_for(described))
    write_bytes(path, page)
    return path


def scripts_for(described: dict[str, Any]) -> list[str]:
    """The scripts that a page needs, and no more: NiiVue is most of the bytes of a small one."""
    return [
        *(["report/table.js"] if described["results"] else []),
        *(["report/curves.js"] if described["curves"] else []),
        *([NIIVUE, "report/viewer.js", "report/surfaces.js"] if described["viewer"] else []),
    ]


def describe(folder: RunFolder) -> dict[str, Any]:
    """All that the template shows, as text, tables and data URIs."""
    settings, manifest = folder.settings, folder.manifest
    of_file = settings.model_dump(mode="json", exclude_unset=True)
    rows = folder.metrics()
    results = read_results(folder.folder / "evaluation")
    data, data_missing = open_prepared(manifest)
    steps = manifest.steps_done or (int(rows[-1]["step"]) + 1 if rows else 0)
    curves = curves_of(rows)
    finished = (folder.folder / "final.safetensors").is_file()
    cases = show_cases(results, data, manifest)
    return {
        "name": folder.folder.resolve().name,
        "method": manifest.method,
        "network": manifest.network,
        "split": {name: len(names) for name, names in manifest.split.lists().items()},
        "ignores_unlabelled": bool(manifest.split.unlabelled) and not uses_unlabelled(manifest),
        "version": manifest.machine.dkuxnet,
        "finished": finished,
        "steps": steps,
        "steps_planned": settings.train.steps,
        "times": wall_times(manifest, rows),
        "story": tell(settings, manifest, steps, finished),
        "results": None if results is None else show_results(results, data),
        "calibration": manifest.calibration,
        "asked": show_asked(manifest.test or {}),
        **cases,
        "colours": {"truth": TRUTH, "prediction": PREDICTION},
        "curves": curves,
        "curves_picture": draw_curves(curves) if curves else None,
        "settings": [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in flatten(of_file)
        ],
        "data_facts": tell_data(manifest, cases["oriented"]),
        "places": places(folder, manifest, data),
        "data_missing": data_missing,
    }


def open_prepared(manifest: Manifest) -> tuple[PreparedSet | None, str]:
    """(the prepared set that the run used, ""), or (None, why it cannot be opened).

    A report outlives its data.
    """
    try:
        return PreparedSet(Path(manifest.prepared)), ""
    except UserError as error:
        return None, str(error)


def show_results(results: Results, data: PreparedSet | None) -> dict[str, Any]:
    """Tables of figures, as text, and the plot of Dice."""
    classes, key = list(results.cases[0].classes), DICE.summary
    shown = [*classes, *([FOREGROUND_MEAN] if len(classes) > 1 else [])]
    dice = {name: [case.classes[name][key] for case in results.cases] for name in classes}
    statistics, found = results.statistics, results.found
    means = {name: (statistics[name]["dice"].mean, statistics[name]["dice"].ci95) for name in dice}
    headline = statistics[FOREGROUND_MEAN][DICE.key]
    every = together(list(found.values()))
    counts = {name: show_found(found.get(name, every)) for name in shown}
    return {
        "headline": show_statistic(headline, DICE),
        "headline_sure": headline.ci95 is not None,
        "headline_cases": f"{headline.cases} of {count(len(results.cases), 'scan')}"
        if headline.cases != len(results.cases)
        else "",
        "several_classes": len(classes) > 1,
        "metrics": SHOWN,
        "found_headings": FOUND_HEADINGS,
        "summary": [
            {
                "class": name,
                "cells": [show_statistic(statistics[name][metric.key], metric) for metric in SHOWN],
                "found": counts[name],
            }
            for name in shown
        ],
        "cases": [show_case(case, data) for case in results.cases],
        "missed": any(case.missed for case in results.cases),
        "notes": list(dict.fromkeys([*results.notes, *notes_on(found), *doubts(results)])),
        "unsure_below": UNSURE_BELOW,
        "plot": draw_dice(dice, means),
    }


def doubts(results: Results) -> list[str]:
    """In how many cases each class is unsure, in one sentence; none where all are sure."""
    cases = {
        name: sum(case.classes[name]["confidence"] < UNSURE_BELOW for case in results.cases)
        for name in results.found
    }
    told = [f"'{name}' in {count(number, 'scan')}" for name, number in cases.items() if number]
    return [f"the model is unsure of {join(told)} (confidence below {UNSURE_BELOW})"] * bool(told)


def show_asked(test: dict[str, dict[str, Statistic]]) -> dict[str, Any] | None:
    """The table of the scores that were asked for; None without any."""
    if not (metrics := asked_in(test)):
        return None
    rows = {name: [show_statistic(each[m.key], m) for m in metrics] for name, each in test.items()}
    if len(rows) == 2:  # the mean over one class is that class
        rows.pop(FOREGROUND_MEAN, None)
    return {"metrics": metrics, "rows": rows}


def show_statistic(statistic: Statistic, metric: Metric) -> dict[str, str]:
    """Mean, deviation and 95 % interval as text."""
    return {
        "mean": metric.show(statistic.mean),
        "std": metric.show(statistic.std),
        "interval": show_interval(statistic, metric),
    }


def show_case(case: CaseResult, data: PreparedSet | None) -> dict[str, Any]:
    """A case's rows, one a class; volumes in ml where the voxel's size is known."""
    try:
        ml = 0.0 if data is None else math.prod(data.info(case.name).spacing_mm) / 1000
    except UserError:
        ml = 0.0
    rows = []
    for name, figures in case.classes.items():
        cells = [metric.show(figures[metric.summary]) for metric in SHOWN]
        sure, (n_pred, n_ref) = figures["confidence"], (figures["n_pred"], figures["n_ref"])
        known = bool(ml) and not math.isnan(n_ref)
        volumes = [f"{count * ml:.1f}" if known else NOTHING for count in (n_ref, n_pred)]
        flags = {
            "not labelled": math.isnan(n_ref),
            "not found": n_pred == 0 < n_ref,
            "false alarm": n_ref == 0 < n_pred,
            "unsure": sure < UNSURE_BELOW,
        }
        rows.append(
            {
                "class": name,
                "cells": [*cells, *volumes, NOTHING if math.isnan(sure) else f"{sure:.2f}"],
                "flag": ", ".join(flag for flag, holds in flags.items() if holds),
            }
        )
    return {"name": case.name, "dice": DICE.show(case.dice), "rows": rows}
