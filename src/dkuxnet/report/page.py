"""A run folder -> one html file that anyone can open: figures, failures first, curves, settings.
Needs no network.
"""

import json
import math
from pathlib import Path
from typing import Any

from dkuxnet.core.config import flatten, validate
from dkuxnet.core.errors import UserError
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.evaluate import FOREGROUND_MEAN, METRICS
from dkuxnet.machine.files import atomically
from dkuxnet.report.cases import show_cases
from dkuxnet.report.pictures import PREDICTION, TRUTH
from dkuxnet.report.plots import curves_of, draw_curves, draw_dice
from dkuxnet.report.results import SHOWN, CaseResult, Results, read_results
from dkuxnet.report.template import NIIVUE, render
from dkuxnet.report.words import places, tell, tell_data, uses_unlabelled, wall_times
from dkuxnet.runs.folder import RunFolder

# Heading, digits, and which way is better.
HEADINGS = {
    "dice": ("Dice", 3, "higher is better"),
    "jaccard": ("Jaccard", 3, "higher is better"),
    "hd95_mm": ("95HD (mm)", 2, "lower is better"),
    "asd_mm": ("ASD (mm)", 2, "lower is better"),
}


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the page of the run in folder `run` to `output` (RUN/report.html where None); returns
    its path.

    Works at any time: a run that has not finished, has no test cases, or whose prepared data are
    gone gets a page that says so. Raises UserError where `run` is no run folder, one of its files
    is damaged, or `output` cannot be written.
    """
    folder = RunFolder.open(Path(run))
    path = folder.folder / "report.html" if output is None else Path(output)
    if not path.parent.is_dir():  # before the work, not after it
        raise UserError(f"{path}: cannot write: the folder {path.parent} does not exist; create it")
    described = describe(folder)
    page = render("page.html", described, scripts_for(described))
    atomically(path, lambda part: part.write_bytes(page))
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
    validate(settings)
    rows = folder.metrics()
    results = read_results(folder.folder / "evaluation")
    data, data_missing = open_prepared(manifest)
    split = {
        key: len(manifest.get("split", {}).get(key, ()))
        for key in ("labelled", "unlabelled", "validation", "test")
    }
    steps = manifest.get("steps_done") or (int(rows[-1]["step"]) + 1 if rows else 0)
    curves = curves_of(rows)
    finished = (folder.folder / "final.safetensors").is_file()
    cases = show_cases(results, data, manifest)
    return {
        "name": folder.folder.resolve().name,
        "method": manifest.get("method", "?"),
        "network": manifest.get("network", "?"),
        "split": split,
        "ignores_unlabelled": split["unlabelled"] > 0 and not uses_unlabelled(manifest, split),
        "version": manifest.get("machine", {}).get("dkuxnet", "unknown"),
        "finished": finished,
        "steps": steps,
        "steps_planned": settings.get("train", {}).get("steps", "?"),
        "times": wall_times(manifest, rows),
        "story": tell(settings, manifest, split, steps, finished),
        "results": None if results is None else show_results(results, data),
        **cases,
        "colours": {"truth": TRUTH, "prediction": PREDICTION},
        "curves": curves,
        "curves_picture": draw_curves(curves) if curves else None,
        "settings": [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in flatten(settings)
        ],
        "data_facts": tell_data(manifest, cases["oriented"]),
        "places": places(folder, manifest, data),
        "data_missing": data_missing,
    }


def open_prepared(manifest: dict[str, Any]) -> tuple[PreparedSet | None, str]:
    """(the prepared set that the run used, ""), or (None, why it cannot be opened): a report
    outlives its data.
    """
    if "prepared" not in manifest:
        return None, "manifest.json does not say where it is"
    try:
        return PreparedSet(manifest["prepared"]), ""
    except UserError as error:
        return None, str(error)


def show_results(results: Results, data: PreparedSet | None) -> dict[str, Any]:
    """Tables of figures, as text, and the plot of Dice."""
    classes = list(results.cases[0].classes)
    shown = [*classes, *([FOREGROUND_MEAN] if len(classes) > 1 else [])]
    dice = {name: [case.classes[name]["Dice"] for case in results.cases] for name in classes}
    statistics = results.statistics
    means = {
        name: (statistics[name]["Dice"]["mean"], statistics[name]["Dice"]["ci95"])
        for name in classes
    }
    return {
        "headline": show_statistic(statistics[FOREGROUND_MEAN]["Dice"], 3),
        "several_classes": len(classes) > 1,
        "headings": [HEADINGS[column] for column in SHOWN],
        "summary": [
            {
                "class": name,
                "cells": [
                    show_statistic(statistics[name][METRICS[column]], HEADINGS[column][1])
                    for column in SHOWN
                ],
            }
            for name in shown
        ],
        "cases": [show_case(case, data) for case in results.cases],
        "missed": any(case.missed for case in results.cases),
        "notes": results.notes,
        "plot": draw_dice(dice, means),
    }


def show_statistic(statistic: dict[str, Any], digits: int) -> dict[str, str]:
    """mean, std and 95 % interval as text; "–" where one case alone has none."""
    mean, std, interval = (statistic[key] for key in ("mean", "std", "ci95"))
    return {
        "mean": f"{mean:.{digits}f}",
        "std": "–" if std is None else f"{std:.{digits}f}",
        "interval": "–"
        if interval is None
        else " to ".join(f"{edge:.{digits}f}" for edge in interval),
    }


def show_case(case: CaseResult, data: PreparedSet | None) -> dict[str, Any]:
    """A case's rows, one a class; volumes in ml where the voxel's size is known."""
    try:
        ml = 0.0 if data is None else math.prod(data.info(case.name)["spacing_mm"]) / 1000
    except (UserError, KeyError):
        ml = 0.0
    rows = []
    for name, figures in case.classes.items():
        cells = [f"{figures[METRICS[column]]:.{HEADINGS[column][1]}f}" for column in SHOWN]
        volumes = [f"{figures[key] * ml:.1f}" if ml else "–" for key in ("n_ref", "n_pred")]
        rows.append(
            {
                "class": name,
                "cells": cells + volumes,
                "empty": figures["n_pred"] == 0 < figures["n_ref"],
            }
        )
    return {"name": case.name, "dice": f"{case.dice:.3f}", "rows": rows}
