"""The report: figures as in summary.json, failures first, nothing loaded from elsewhere, and a
page for every broken run.
"""

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
from html import unescape
from pathlib import Path

import nibabel
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Statistic
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.statistics import FOREGROUND_MEAN
from dkuxnet.machine.files import write_json
from dkuxnet.report import pictures, slices, volumes
from dkuxnet.report.case import ShownCase, box_around, load_case, maps_of
from dkuxnet.report.page import show_asked, write_report
from dkuxnet.report.plots import curves_of, draw_curves, draw_dice
from dkuxnet.report.results import read_results
from dkuxnet.report.surfaces import draw_surfaces, surface_of, surfaces_of, view
from dkuxnet.report.volumes import capped, layers_of, layers_of_cases
from dkuxnet.report.words import by, duration
from dkuxnet.runs.folder import RunFolder
from made_run import make_run


def read_page(run: Path) -> str:
    return write_report(run).read_text("utf-8")


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def visible_text(page: str) -> str:
    body = without_scripts(page[page.index("<body>") :])
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def figures_of(page: str) -> list[str]:
    """Those of the slices, not those of maps and surfaces."""
    return re.findall(r"<figure>.*?</figure>", section(page, "Failures first"), flags=re.DOTALL)


def section(page: str, title: str) -> str:
    """The part of the page under that heading, "" where it is not there."""
    found = re.search(rf"<section[^>]*>\s*<h2>{title}.*?</section>", page, flags=re.DOTALL)
    return found[0] if found else ""


def data_of(page: str, name: str):
    """What the page gives its script of that name."""
    return json.loads(
        re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)[1]
    )


def decode(text: str) -> list[str]:
    return [
        base64.b64decode(data).decode("utf-8")
        for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished"), logged=40)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory) -> Path:
    """A run whose evaluation kept its maps."""
    return make_run(tmp_path_factory.mktemp("mapped"), {"good": 0, "bad": 6}, logged=3, maps=True)


@pytest.fixture(scope="module")
def page(finished) -> str:
    return read_page(finished)


def test_figures_are_those_of_the_summary(finished, page):
    text = visible_text(page)
    summary = json.loads((finished / "evaluation" / "summary.json").read_text("utf-8"))
    for key, digits in (("Dice", 3), ("IoU", 3), ("HD95_mm", 2), ("ASD_mm", 2)):
        statistic = summary["statistics"]["organ 1"][key]
        mean = f"{statistic['mean']:.{digits}f} ± {statistic['std']:.{digits}f}"
        assert f"{mean} < 5 cases" in text
    assert "mean Dice 1 labelled" in text
    for case in summary["metric_per_case"]:
        name, figures = (
            Path(case["prediction_file"]).name.removesuffix(".nii.gz"),
            case["metrics"]["10"],
        )
        volume = f"{figures['n_ref'] * 4.5 / 1000:.1f}"  # voxels of 1 x 1.5 x 3 mm
        assert (
            f"{name} {figures['Dice']:.3f} {figures['IoU']:.3f} {figures['HD95_mm']:.2f} "
            f"{figures['ASD_mm']:.2f} "
            f"{volume} {volume}" in text
        )


def test_the_page_says_what_was_done(page):
    text = visible_text(page)
    for part in (
        "run",
        "method dual-mutual",
        "network dk-uxnet-tiny",
        "1 labelled",
        "2 unlabelled",
        "0 validation",
        "4 test cases",
        "1 h 2 min training, then 12 s testing",
        "dkuxnet 9.8.7",
        "1 scan with their labels and 2 scans whose",
        "train.lr = 0.25",
        'method.name = "dual-mutual"',
        "4 scans took no part in training",
        "7 scans, 5 of them with a label",
        "16 × 16 × 16 voxels",
    ):
        assert part in text
    assert "not finished" not in text and "not used" not in text


def test_the_worst_case_comes_first(page):
    captions = [visible_text("<body>" + figure) for figure in figures_of(page)]
    assert [caption.split(" ·")[0].strip() for caption in captions] == [
        "Worst case bad",
        "Median case poor",
        "Best case good",
    ]
    assert "Dice 1.000" in captions[2]
    assert re.findall(r'class="name"[^>]*>(\w+)<', section(page, "Every test case")) == [
        "bad",
        "poor",
        "middling",
        "good",
    ]


def test_one_picture_a_chosen_case(page):
    images = [decode(figure) for figure in figures_of(page)]
    assert [len(image) for image in images] == [1, 1, 1]
    outlines = [
        (svg.count(f"stroke: {pictures.TRUTH}"), svg.count(f"stroke: {pictures.PREDICTION}"))
        for [svg] in images
    ]
    assert outlines == [
        (3, 2),
        (3, 3),
        (3, 3),
    ]  # of three slices; the worst prediction lies beside one of them
    assert len(decode(page)) == 5  # and Dice over cases, training curves


def test_nothing_is_loaded_from_elsewhere(page):
    markup = without_scripts(page)
    loads = re.findall(r"""(?:src|href|action|data|srcset|poster)\s*=\s*["']([^"']*)""", markup)
    assert loads and all(
        load.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for load in loads
    )
    assert (
        "default-src 'none'" in markup
        and "script-src 'sha256-" in markup
        and "unsafe-eval" not in markup
    )
    for word in ("<link", "@import", "url(", "http:", "https:"):
        assert word not in markup
    for svg in decode(page):
        assert all(
            target.startswith(("#", "data:")) for target in re.findall(r'href="([^"]*)', svg)
        )


def test_names_from_outside_are_no_markup(tmp_path):
    name = "<script>alert('x')&$a$"
    run = make_run(tmp_path, {name: 1, "<img src=q onerror=r>": 2}, run="<b>run&amp;")
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    write_json(run / "manifest.json", manifest | {"method": "<i>m"})
    page = read_page(run)
    assert not re.search(r"<(script>alert|b>run|i>m|img src=q)", page)
    assert [case["name"] for case in data_of(page, "cases-data")] == ["<img src=q onerror=r>", name]
    text = visible_text(page)
    assert name in text and "<b>run&amp;" in text and "<i>m" in text


def test_several_classes_have_a_row_each_and_all_outlines(tmp_path):
    page = read_page(make_run(tmp_path, {"one": 1, "two": 2, "three": 9}, classes=2))
    text = visible_text(page)
    for name in ("organ 1", "organ 2", "foreground mean"):
        assert re.search(rf"{name} \d\.\d{{3}} ± ", text)
    rows = re.findall(
        r'<td class="name">(\w+)</td>\s*<td>([\d.]+)</td>', section(page, "Every test case")
    )
    assert [name for name, _ in rows] == ["three", "three", "two", "two", "one", "one"] and rows[
        0
    ] == rows[1]
    # Axial and sagittal show both organs; the coronal slice shows one of them, though the centre of
    # mass lies between.
    assert decode(figures_of(page)[2])[0].count(f"stroke: {pictures.TRUTH}") == 5


def test_a_missed_organ_is_said(tmp_path):
    run = make_run(tmp_path, {"kept": 1, "gone": 16})  # shifted out of the scan
    text = visible_text(read_page(run))
    assert (
        "gone 0.000 not found" in text
        and "kept 0.875 not found" not in text
        and "Dice is 0 and there is no distance" in text
    )


def load_good(run: Path, name: str = "good") -> ShownCase:
    return load_case(
        PreparedSet(run.parent / "prepared"),
        name,
        run / "evaluation" / "predictions" / f"{name}.nii.gz",
        RunFolder(run).manifest,
    )


@pytest.fixture(scope="module")
def planes(finished) -> list:
    """(image, truth, prediction, spacing_mm, window) of the three slices of case "good", through
    the marked corner.
    """
    case = load_good(finished)
    drawn, original = [], slices._draw_plane
    truth = np.zeros_like(case.truth)
    truth[np.unravel_index(case.image.argmax(), truth.shape)] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "_draw_plane", lambda axes, *a: (drawn.append(a), original(axes, *a)))
        slices.draw_slices(dataclasses.replace(case, truth=truth, prediction=truth))
    return drawn


def test_pictures_follow_the_radiological_convention(planes):
    """Rows run upwards. The marked voxel is right, front and top in the world."""
    (axial, *_), (coronal, *_), (sagittal, *_) = planes
    assert (
        axial[-1, 0] == coronal[-1, 0] == sagittal[-1, 0] == 99.0
    )  # R left and A up; R left and S up; A left and S up


@pytest.mark.parametrize("view, edges", [(0, "RLAP"), (1, "RLSI"), (2, "APSI")])
def test_letters_stand_at_the_edges_that_they_name(view, edges):
    """Left, right, top and bottom of the pictures of the test above."""
    axes = Figure().add_subplot()
    slices._name_edges(axes, view, oriented=True)
    at = {text.get_text(): text.get_position() for text in axes.texts}
    assert (
        min(at, key=lambda letter: at[letter][0]) == edges[0]
        and max(at, key=lambda letter: at[letter][0]) == edges[1]
    )
    assert (
        max(at, key=lambda letter: at[letter][1]) == edges[2]
        and min(at, key=lambda letter: at[letter][1]) == edges[3]
    )


def test_pictures_keep_physical_proportions(planes):
    assert [plane[3] for plane in planes] == [(1.0, 1.5), (1.0, 3.0), (1.5, 3.0)]


def test_a_scan_without_orientation_gets_no_letters(finished):
    folder = finished.parent / "prepared"
    info = json.loads((folder / "cases" / "poor.json").read_text("utf-8"))
    write_json(folder / "cases" / "poor.json", info | {"oriented": False, "images": ["gone.h5"]})
    try:
        text = visible_text(read_page(finished))
    finally:
        write_json(folder / "cases" / "poor.json", info)
    assert "does not store how the patient lies" in text and "cannot be read any more" in text
    assert "all three x-y x-z y-z" in text
    assert not any(word in text for word in ("axial", "coronal", "sagittal", "left-right"))


def test_a_scan_that_is_gone_is_shown_as_the_network_saw_it(tmp_path):
    run = make_run(tmp_path, {"one": 1})
    (tmp_path / "prepared" / "one.nii.gz").unlink()
    page = read_page(run)
    assert "as the network saw it" in page and "The only test case" in page
    assert decode(figures_of(page)[0])[0].count(f"stroke: {pictures.PREDICTION}") >= 3


def test_a_prepared_set_that_was_moved_is_said_in_place_of_pictures(tmp_path):
    run = make_run(tmp_path, {"one": 1, "two": 2})
    (tmp_path / "prepared").rename(tmp_path / "elsewhere")
    page = read_page(run)
    assert page.count("No picture: the prepared data set of this run is not where it was") == 2
    assert "cannot be opened any more" in page and "0.875" in page


def test_a_prediction_that_is_gone_costs_its_picture_only(tmp_path):
    run = make_run(tmp_path, {"one": 1, "two": 2})
    (run / "evaluation" / "predictions" / "two.nii.gz").unlink()
    assert [len(decode(figure)) for figure in figures_of(read_page(run))] == [0, 1]


def test_a_run_without_test_cases_has_curves_and_settings(tmp_path):
    run = make_run(tmp_path, {"one": 1}, logged=40)
    (run / "evaluation" / "summary.json").unlink()
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    manifest["split"]["test"] = []
    write_json(run / "manifest.json", manifest)
    page = read_page(run)
    assert "This run has no test cases" in page and "train.lr = 0.25" in page
    assert len(decode(page)) == 1 and not figures_of(page)


def test_an_unfinished_run_says_so(tmp_path):
    run = make_run(tmp_path, {"one": 1}, logged=40)
    (run / "final.safetensors").unlink()
    (run / "evaluation" / "summary.json").unlink()
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    write_json(
        run / "manifest.json",
        {k: v for k, v in manifest.items() if k not in ("steps_done", "train_seconds")},
    )
    with (run / "metrics.jsonl").open("r+", encoding="utf-8") as file:
        file.truncate(
            len("".join(file.readlines()[:20])) + 15
        )  # killed in the middle of the 21st line
    text = visible_text(read_page(run))
    assert "The 1 test case has not been evaluated" in text
    assert "This run has not finished" in text and "the last step on record is 20 of 40" in text
    (run / "metrics.jsonl").unlink()
    assert "Nothing has been logged yet" in read_page(run)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("metrics.jsonl", lambda text: "{broken\n" + text, "line 1 is damaged"),
        ("evaluation/summary.json", lambda text: text[: len(text) // 2], "not JSON"),
        ("evaluation/summary.json", lambda text: "[]", "damaged, or not what"),
        (
            "evaluation/summary.json",
            lambda text: text.replace('"HD95_mm"', '"HD"'),
            "damaged, or not what",
        ),
        (
            "evaluation/summary.json",
            lambda text: text.replace("foreground mean", "other"),
            "damaged, or not what",
        ),
        (
            "manifest.json",
            lambda text: "[]",
            "manifest.json: all of it: Input should be a valid dictionary",
        ),
    ],
)
def test_a_damaged_file_is_one_clear_line(finished, file, damage, message):
    path = finished / file
    text = path.read_text("utf-8")
    try:
        path.write_text(damage(text), "utf-8")
        with pytest.raises(UserError, match=message):
            write_report(finished)
    finally:
        path.write_text(text, "utf-8")


def test_no_run_and_no_room_are_refused(finished, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        write_report(finished, tmp_path / "missing" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_curves_show_validation_where_there_is_one():
    rows = [{"step": 0, "seg": 0.0, "loss": 0.0, "lr": 0.1}, {"step": 0, "validation_dice": 0.5}]
    svg, without = (
        base64.b64decode(draw_curves(curves_of(r)).partition(",")[2]).decode()
        for r in (rows, rows[:1])
    )
    assert "axes_3" in svg and "axes_3" not in without


def test_the_report_needs_no_torch_and_is_the_same_every_time(finished, page, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dkuxnet.report.page import write_report; "
        "write_report(Path(sys.argv[1]), Path(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(finished), str(tmp_path / "page.html")], check=True
    )
    assert (tmp_path / "page.html").read_text("utf-8") == page and len(page) < 5e6


def test_a_dollar_in_a_name_is_no_formula():
    assert draw_dice({r"$\frac$": [0.5, 0.6]}, {r"$\frac$": (0.55, None)}).startswith(
        "data:image/svg+xml"
    )


def test_words():
    assert [duration(s) for s in (41.6, 125, 12_000)] == ["42 s", "2 min 5 s", "3 h 20 min"]
    assert by([0.625, 2.0, 1.2504], 3) == "0.625 × 2 × 1.25" and by([120, 89.06]) == "120 × 89"


# --- what scripts bring to life ---


def voxels(layer: dict) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(layer["data"])))


def test_scripts_are_named_by_their_hashes_and_niivue_brings_its_licence(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    named = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert len(named) == 5 and all(f"'sha256-{each}'" in policy for each in named)
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    assert "Redistribution and use in source and binary forms" in page


def test_all_layers_lie_on_one_grid_in_the_place_of_the_scan(mapped):
    case = load_good(mapped)
    shown = layers_of(case, ["background", "organ 1"], edge=192)
    images = {layer["key"]: voxels(layer) for layer in shown["layers"]}
    assert list(images) == [
        "Scan",
        "Truth",
        "Prediction",
        "Uncertainty",
        "Queries of background",
        "Queries of organ 1",
    ]
    scan = images["Scan"]
    assert all(
        image.shape == scan.shape and np.allclose(image.affine, scan.affine)
        for image in images.values()
    )
    assert all(image.get_data_dtype() == np.uint8 for image in images.values())
    truth = np.asarray(images["Truth"].dataobj)
    corner = scan.affine @ [*np.argwhere(truth > 0)[0], 1]
    whole = case.affine @ [*np.argwhere(case.truth > 0)[0], 1]
    np.testing.assert_allclose(corner, whole, atol=1e-4)
    assert truth.sum() == (case.truth > 0).sum()
    # The map is on the network's grid: over the same box, its low half in x is the scan's.
    half = np.asarray(images["Uncertainty"].dataobj)[:, 0, 0]
    assert half[0] == 255 and half[-1] == 0  # stretched to its top
    rising = np.asarray(images["Queries of organ 1"].dataobj)[0, 0]
    assert (np.diff(rising.astype(int)) >= 0).all() and rising[-1] > 200


def test_a_capped_grid_covers_the_same_box(mapped):
    case = load_good(mapped)
    assert capped((240, 200, 80), (0.5, 0.5, 1.5), 96) == (
        96,
        80,
        80,
    )  # 120 x 100 x 120 mm; thick slices stay
    fine, coarse = (
        voxels(layers_of(case, ["background", "organ 1"], edge)["layers"][1]) for edge in (192, 10)
    )
    assert max(coarse.shape) <= 10 < max(fine.shape)
    for low_or_high in (0, 1):
        edges = [
            image.affine @ [*(low_or_high * np.array(image.shape) - 0.5), 1]
            for image in (fine, coarse)
        ]
        np.testing.assert_allclose(*edges, atol=1e-4)
    centres = [
        image.affine @ [*np.argwhere(np.asarray(image.dataobj) > 0).mean(axis=0), 1]
        for image in (fine, coarse)
    ]
    np.testing.assert_allclose(*centres, atol=2.5)


def test_the_box_is_around_what_is_outlined(finished):
    case = load_good(finished)
    wide = dataclasses.replace(
        case,
        image=np.zeros((200, 20, 12)),
        truth=np.zeros((200, 20, 12), int),
        prediction=np.zeros((200, 20, 12), int),
    )
    wide.truth[100:110], wide.prediction[105:120] = 1, 1
    assert box_around(wide) == (
        slice(75, 145),
        slice(0, 20),
        slice(0, 12),
    )  # 25 mm around, of 1 mm voxels
    nothing = dataclasses.replace(
        wide, truth=np.zeros((200, 20, 12)), prediction=np.zeros((200, 20, 12))
    )
    assert box_around(nothing)[0] == slice(0, 200) and surfaces_of(nothing, 1) is None


def test_maps_are_told_with_their_scale_and_an_older_run_has_none(mapped, finished, page):
    titles = [each.title for each in maps_of(load_good(mapped))]
    assert titles == [
        "Uncertainty, 0 to 0.40",
        "Queries of background, 0 to 1",
        "Queries of organ 1, 0 to 1",
    ]
    assert maps_of(load_good(finished)) == [] and "How sure" not in visible_text(page)
    shown = read_page(mapped)
    assert len(
        decode(section(shown, "How sure"))
    ) == 2 and "assigns every voxel to its queries" in visible_text(shown)
    queries = section(shown, "Which queries it asked")
    assert len(decode(queries)) == 2 and shown.index("How sure") < shown.index("For developers")
    assert shown.index("For developers") < shown.index("Which queries")
    assert page.index("not a medical device") < page.index("<h1>")
    assert [layer["key"] for layer in data_of(page, "cases-data")[0]["layers"]] == [
        "Scan",
        "Truth",
        "Prediction",
    ]


def test_scores_that_were_asked_for_have_a_table():
    def figures(value):
        return {"dice": Statistic(mean=0.5, std=None, ci95=None)} | (
            {} if value is None else {"nsd": Statistic(mean=value, std=0.1, ci95=(0.2, 0.9))}
        )

    several = {name: figures(0.7) for name in ("a", "b", FOREGROUND_MEAN)}
    shown = show_asked(several)
    assert [metric.key for metric in shown["metrics"]] == ["nsd"] and [*shown["rows"]] == [*several]
    assert shown["rows"]["a"][0] == {"mean": "0.700", "std": "0.100", "interval": "0.200 to 0.900"}
    assert [*show_asked({name: figures(0.7) for name in ("a", FOREGROUND_MEAN)})["rows"]] == ["a"]
    assert show_asked({"a": figures(None)}) is None and show_asked({}) is None


def test_a_surface_is_where_the_voxels_are(finished):
    """A ball of 9 mm radius in anisotropic voxels: its surface lies 9 mm from its middle, its
    normals point outwards.
    """
    case = load_good(finished)
    x, y, z = np.meshgrid(
        *(np.arange(n) * s for n, s in zip((40, 30, 16), (1, 1.5, 3), strict=True)), indexing="ij"
    )
    ball = (x - 20) ** 2 + (y - 21) ** 2 + (z - 24) ** 2 <= 9**2
    case = dataclasses.replace(
        case, image=ball, truth=ball, prediction=ball, affine=np.diag([1, 1.5, 3, 1.0])
    )
    surface = surface_of(ball, case, np.array([20.0, 21.0, 24.0]))
    distance = np.linalg.norm(surface.points, axis=1)
    assert (
        abs(distance.mean() - 9) < 0.4
        and distance.std() < 0.6
        and surface.faces.max() == len(surface.points) - 1
    )
    assert ((surface.points * surface.normals).sum(axis=1) > 0).mean() > 0.99
    first, second, third = (surface.points[surface.faces[:, k]] for k in range(3))
    inside = (first * np.cross(second, third)).sum() / 6  # mm³, above zero: counter-clockwise
    assert inside == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.1)
    away = surface_of(ball, case, np.array([10.0, 21.0, 24.0])).points.mean(axis=0)
    # The ball lies to the patient's right (+x in RAS), which from the front is the viewer's left.
    np.testing.assert_allclose(view(180, 0) @ away, [-10, 0, 0], atol=0.3)
    assert surface_of(np.zeros_like(ball), case, np.zeros(3)) is None
    assert 0 < len(surface_of(ball, case, np.zeros(3), edge=10).points) < len(surface.points) / 3


def test_layers_are_coarsened_until_a_page_may_hold_them(mapped, monkeypatch):
    cases, names = [load_good(mapped)], ["background", "organ 1"]
    full = sum(len(layer["data"]) for layer in layers_of_cases(cases, names)[0]["layers"])
    monkeypatch.setattr(volumes, "EDGES", (192, 12, 6))
    monkeypatch.setattr(volumes, "MOST_CHARACTERS", full - 1)
    [coarse] = layers_of_cases(cases, names)
    assert (
        sum(len(layer["data"]) for layer in coarse["layers"]) < full
        and max(voxels(coarse["layers"][0]).shape) == 12
    )


def test_the_page_s_surfaces_are_the_cases(mapped):
    [worst, *_] = data_of(read_page(mapped), "surfaces-data")
    mesh = gzip.decompress(base64.b64decode(worst["meshes"][0][0]))
    magic, holds, n_faces, n_points, skipped = struct.unpack_from("<HHIII", mesh)
    assert (magic, holds, skipped) == (0x5A4D, 3, 0)  # mz3 with faces and points
    faces = np.frombuffer(mesh, "<i4", 3 * n_faces, 16)
    points = np.frombuffer(mesh, "<f4", offset=16 + faces.nbytes).reshape(-1, 3)
    np.testing.assert_allclose(
        np.ptp(points, axis=0), [8, 7.5, 15], atol=2
    )  # 8 x 5 x 5 voxels of 1 x 1.5 x 3 mm
    assert faces.max() == len(points) - 1 == n_points - 1


def shift_of(case: ShownCase) -> float:
    """How much further right the prediction lies in its half of the picture than the truth."""
    uri = draw_surfaces(surfaces_of(case, 1))
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L")
    halves = np.split(np.asarray(picture) < 250, [picture.width // 2], axis=1)
    return np.subtract(*(np.nonzero(half)[1].mean() for half in halves[::-1]))


def test_the_picture_shows_surfaces_as_they_lie(mapped):
    """Seen from the front, what lies too far to the patient's left is too far to the right."""
    good, bad = load_good(mapped), load_good(mapped, "bad")
    assert shift_of(bad) - shift_of(good) > 10
    elsewhere = dataclasses.replace(bad, oriented=False)  # from the file's first y: x to the right
    assert shift_of(elsewhere) - shift_of(good) < -10


def test_many_logged_steps_are_thinned_and_keep_their_ends():
    rows = [{"step": step, "seg": 1.0, "loss": 1.0, "lr": 0.1} for step in range(5000)]
    [loss, _] = curves_of(rows)
    points = loss["lines"][0]["points"]
    assert len(points) == 1500 and points[0] == [1, 1.0] and points[-1] == [5000, 1.0]


def test_every_class_has_its_own_colour():
    assert len(set(pictures.class_colours(255))) == 255


# --- classes that are not in every scan ---


def change_summary(run: Path, change) -> None:
    """change: gets a case's number and a class's value, gives new figures."""
    path = run / "evaluation" / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    for number, case in enumerate(summary["metric_per_case"]):
        for value, figures in case["metrics"].items():
            figures.update(change(number, value) or {})
    write_json(path, summary)


@pytest.mark.parametrize("stored", [None, 1.0], ids=["new", "old"])
def test_a_class_that_is_nowhere_is_no_success_also_in_older_runs(tmp_path, stored):
    run = make_run(tmp_path, {"a": 0, "b": 2}, classes=2, names=("organ", "tumour"))
    keys = ("Dice", "IoU", "HD95_mm", "ASD_mm")
    nowhere = dict.fromkeys(keys, stored) | {"n_pred": 0, "n_ref": 0}
    change_summary(run, lambda case, value: nowhere if value == "20" else None)
    results = read_results(run / "evaluation")
    assert results.statistics["tumour"]["dice"].mean is None
    assert results.statistics["foreground mean"]["dice"].mean == pytest.approx(
        results.statistics["organ"]["dice"].mean
    )
    text = visible_text(read_page(run))
    assert "tumour – – – – 0 of 2 – 0 of 2" in text
    assert "in no label, so that nothing is known of it: 'tumour'" in text


def test_five_cases_have_intervals(tmp_path):
    run = make_run(tmp_path, {"a": 0, "b": 2, "c": 1, "d": 3, "e": 1})
    text = visible_text(read_page(run))
    found = json.loads((run / "evaluation" / "summary.json").read_text("utf-8"))["statistics"]
    for name, key, digits in (("organ 1", "Dice", 3), ("organ 1", "HD95_mm", 2)):
        low, high = found[name][key]["ci95"]
        assert f"{low:.{digits}f} to {high:.{digits}f}" in text
    low, high = found["foreground mean"]["Dice"]["ci95"]
    assert f"mean Dice, 95 % interval {low:.3f} to {high:.3f}" in text


def test_four_empty_label_maps_are_no_mean_of_1(tmp_path):
    run = make_run(tmp_path, {"a": 0, "b": 2}, classes=2, names=("organ", "tumour"))
    change_summary(run, lambda *_: {"Dice": 1.0, "n_pred": 0, "n_ref": 0})
    text = visible_text(read_page(run))
    assert "– mean Dice, over the 0 of 2 scans that have any class" in text
    assert "1.000" not in text and "no label has any foreground" in text
    assert "was trained to outline" in text and "learned to outline" not in text


def test_missed_false_alarms_and_doubt_are_told(tmp_path):
    run = make_run(tmp_path, {"a": 0, "b": 2, "c": 1}, classes=2, names=("organ", "tumour"))
    missed = {"Dice": 0.0, "IoU": 0.0, "HD95_mm": 113.6, "ASD_mm": 113.6, "n_pred": 0}
    alarm = missed | {"n_pred": 9, "n_ref": 0, "pred_ml": 0.4}

    def change(case, value):
        if value == "10":
            return {"confidence": 0.55 if case else 0.9}
        return missed if case else alarm

    change_summary(run, change)
    text = visible_text(read_page(run))
    assert "2 of 3 2 of 2 1 of 1 (0.4 ml)" in text, "tumour: in 2 scans, missed in both"
    assert "tumour 0.000 ± 0.000 < 5 cases 0.000 ± 0.000 < 5 cases – –" in text
    assert "missed where it is: 'tumour' in 2 of 2 scans" in text
    assert "false alarm with Dice 0: 'tumour' in 1 of 1 (0.4 ml) scans" in text
    assert "the model is unsure of 'organ' in 2 scans (confidence below 0.7)" in text
    assert "tumour false alarm 0.000" in text and "organ unsure" in text
