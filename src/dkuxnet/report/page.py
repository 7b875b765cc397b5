"""A run folder -> one html file that anyone can open, without a network.

Figures, failures first, curves, settings.
"""

import json
import math
from pathlib import Path
from typing import Any

from dkuxnet.core.config import flatten
from dkuxnet.core.documents import StrPath
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest, Statistic
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.evaluate import FOREGROUND_MEAN
from dkuxnet.evaluation.metrics import DICE, SHOWN, Metric
from dkuxnet.machine.files import write_bytes
from dkuxnet.report.cases import show_cases
from dkuxnet.report.pictures import PREDICTION, TRUTH
from dkuxnet.report.plots import curves_of, draw_curves, draw_dice
from dkuxnet.report.results import CaseResult, Results, read_results
from dkuxnet.report.template import NIIVUE, render
from dkuxnet.report.words import places, tell, tell_data, uses_unlabelled, wall_times
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
    statistics = results.statistics
    means = {name: (statistics[name][key].mean, statistics[name][key].ci95) for name in classes}
    return {
        "headline": show_statistic(statistics[FOREGROUND_MEAN][key], DICE),
        "several_classes": len(classes) > 1,
        "metrics": SHOWN,
        "summary": [
            {
                "class": name,
                "cells": [
                    show_statistic(statistics[name][metric.summary], metric) for metric in SHOWN
                ],
            }
            for name in shown
        ],
        "cases": [show_case(case, data) for case in results.cases],
        "missed": any(case.missed for case in results.cases),
        "notes": results.notes,
        "plot": draw_dice(dice, means),
    }


def show_statistic(statistic: Statistic, metric: Metric) -> dict[str, str]:
    """Mean, deviation and 95 % interval as text; "–" where one case alone has none."""
    std, interval = statistic.std, statistic.ci95
    return {
        "mean": metric.show(statistic.mean),
        "std": "–" if std is None else metric.show(std),
        "interval": "–" if interval is None else " to ".join(map(metric.show, interval)),
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
        volumes = [f"{figures[key] * ml:.1f}" if ml else "–" for key in ("n_ref", "n_pred")]
        rows.append(
            {
                "class": name,
                "cells": cells + volumes,
                "empty": figures["n_pred"] == 0 < figures["n_ref"],
            }
        )
    return {"name": case.name, "dice": DICE.show(case.dice), "rows": rows}
