"""The report: figures as in summary.json, failures first, nothing loaded from elsewhere, and a page for every broken run."""

import base64
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from dkuxnet import formats
from dkuxnet.data.dataset import PreparedSet, write_array
from dkuxnet.data.geometry import resample_label, to_ras
from dkuxnet.errors import UserError
from dkuxnet.evaluate import Evaluation, evaluate_pair
from dkuxnet.report import pictures
from dkuxnet.report.page import write_report
from dkuxnet.report.words import by, duration
from dkuxnet.run import write_json
from dkuxnet.types import Volume

SHAPE = (24, 20, 12)
LPS = np.diag([-1.0, -1.5, 3.0, 1.0])  # x to the left, y to the back, anisotropic
SHIFTS = {"good": 0, "bad": 6, "middling": 1, "poor": 2}  # voxels along x between truth and prediction


def make_labels(classes: int, shift: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    for k in range(1, classes + 1):
        label[8 + shift : 16 + shift, 2 + 6 * (k - 1) : 7 + 6 * (k - 1), 4:9] = k
    return label


def make_prepared(folder: Path, names: list[str], labels: dict[str, int]) -> None:
    (folder / "cases").mkdir(parents=True)
    cases = [{"name": name, "labelled": True, "shape": [12, 15, 18]} for name in names]
    write_json(folder / "dataset.json", {"version": 1, "source": "somewhere", "layout": "nnunet", "channels": ["MRI"],
                                         "labels": labels, "cases": cases})
    truth = make_labels(len(labels) - 1, 0)
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) + 3 * (truth > 0)
    image[0, 0, 11] = 99.0  # the corner that is right, front and top
    for name in names:
        scan = folder / f"{name}.nii.gz"
        formats.write(Volume(image, LPS), scan)
        write_array(folder / "cases" / f"{name}.truth.b2nd", truth)
        ras = to_ras(Volume(truth, LPS))
        write_array(folder / "cases" / f"{name}.label.b2nd", resample_label(ras.array, (12, 15, 18), len(labels)))
        write_array(folder / "cases" / f"{name}.image.b2nd", np.zeros((1, 12, 15, 18), np.float32))
        write_json(folder / "cases" / f"{name}.json", {
            "name": name, "images": [str(scan)], "shape": SHAPE, "affine": LPS.tolist(), "spacing_mm": [1.0, 1.5, 3.0],
            "prepared_affine": np.diag([2.0, 2.0, 2.0, 1.0]).tolist()})


def make_run(root: Path, shifts: dict[str, int] = SHIFTS, classes: int = 1, run: str = "run",
             logged: int = 0) -> Path:
    """A finished run of `logged` steps with an evaluation of the cases in `shifts`, and its prepared set root/prepared."""
    labels = {"background": 0} | {f"organ {k}": 10 * k for k in range(1, classes + 1)}
    make_prepared(root / "prepared", list(shifts), labels)
    folder = root / run
    (folder / "evaluation" / "predictions").mkdir(parents=True)
    write_json(folder / "settings.json", {"train": {"steps": 40, "lr": 0.25}, "method": {"name": "dual-mutual"}})
    write_json(folder / "manifest.json", {
        "prepared": str(root / "prepared"), "labels": labels, "channels": ["MRI"], "network": "dk-uxnet-tiny",
        "method": "dual-mutual", "patch": [16, 16, 16], "parameters": 1_700_000, "machine": {"dkuxnet": "9.8.7", "gpu": None},
        "split": {"labelled": ["a"], "unlabelled": ["b", "c"], "validation": [], "test": list(shifts)},
        "plan": {"spacing_mm": [2.0, 2.0, 2.0], "normalisation": [{"kind": "z-score"}], "patch": [16, 16, 16]},
        "fingerprint": {"cases": 7, "labelled": 5}, "train_seconds": 3723.0, "evaluate_seconds": 12.0, "steps_done": 40})
    rows = [{"step": step, "seg": 1 / (step + 1), "qd": 0.1, "loss": 0.1 + 1 / (step + 1), "lr": 0.25, "seconds": step}
            for step in range(logged)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "final.safetensors").write_bytes(b"")
    values, scores, files = np.array(list(labels.values()), np.uint8), [], {}
    truth = Volume(values[make_labels(classes, 0)], LPS)
    for name, shift in shifts.items():
        prediction = Volume(values[make_labels(classes, shift)], LPS)
        path = folder / "evaluation" / "predictions" / f"{name}.nii.gz"
        formats.write(prediction, path)
        scores += evaluate_pair(name, prediction, truth, labels)
        files[name] = (path.relative_to(folder / "evaluation"), Path("truth.b2nd"))
    Evaluation(scores, files).write_json(folder / "evaluation" / "summary.json")
    return folder


def read_page(run: Path) -> str:
    return write_report(run).read_text("utf-8")


def visible_text(page: str) -> str:
    body = page[page.index("<body>"):]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def figures_of(page: str) -> list[str]:
    return re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)


def decode(text: str) -> list[str]:
    return [base64.b64decode(data).decode("utf-8") for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished"), logged=40)


@pytest.fixture(scope="module")
def page(finished) -> str:
    return read_page(finished)


def test_figures_are_those_of_the_summary(finished, page):
    text = visible_text(page)
    summary = json.loads((finished / "evaluation" / "summary.json").read_text("utf-8"))
    for key, digits in (("Dice", 3), ("IoU", 3), ("HD95_mm", 2), ("ASD_mm", 2)):
        statistic = summary["statistics"]["organ 1"][key]
        low, high = statistic["ci95"]
        assert (f"{statistic['mean']:.{digits}f} ± {statistic['std']:.{digits}f} "
                f"{low:.{digits}f} to {high:.{digits}f}") in text
    low, high = summary["statistics"]["foreground mean"]["Dice"]["ci95"]
    assert f"mean Dice, 95 % interval {low:.3f} to {high:.3f}" in text
    for case in summary["metric_per_case"]:
        name, figures = Path(case["prediction_file"]).name.removesuffix(".nii.gz"), case["metrics"]["10"]
        volume = f"{figures['n_ref'] * 4.5 / 1000:.1f}"  # voxels of 1 x 1.5 x 3 mm
        assert f"{name} {figures['Dice']:.3f} {figures['IoU']:.3f} {figures['HD95_mm']:.2f} {figures['ASD_mm']:.2f} " \
               f"{volume} {volume}" in text


def test_the_page_says_what_was_done(page):
    text = visible_text(page)
    for part in ("run", "method dual-mutual", "network dk-uxnet-tiny", "1 labelled", "2 unlabelled", "0 validation",
                 "4 test cases", "1 h 2 min training, then 12 s testing", "dkuxnet 9.8.7",
                 "1 scan with their labels and 2 scans whose", "train.lr = 0.25", 'method.name = "dual-mutual"',
                 "4 scans took no part in training", "7 scans, 5 of them with a label", "16 × 16 × 16 voxels"):
        assert part in text
    assert "not finished" not in text and "not used" not in text


def test_the_worst_case_comes_first(page):
    captions = [visible_text("<body>" + figure) for figure in figures_of(page)]
    assert [caption.split(" ·")[0].strip() for caption in captions] == \
        ["Worst case bad", "Median case poor", "Best case good"]
    assert "Dice 1.000" in captions[2]
    table = page[page.index("Every test case"):page.index("Training</h2>")]
    assert re.findall(r'class="name"[^>]*>(\w+)<', table) == ["bad", "poor", "middling", "good"]


def test_one_picture_a_chosen_case(page):
    images = [decode(figure) for figure in figures_of(page)]
    assert [len(image) for image in images] == [1, 1, 1]
    outlines = [(svg.count(f"stroke: {pictures.TRUTH}"), svg.count(f"stroke: {pictures.PREDICTION}")) for [svg] in images]
    assert outlines == [(3, 2), (3, 3), (3, 3)]  # of three slices; the worst prediction lies beside one of them
    assert len(decode(page)) == 5  # and Dice over cases, training curves


def test_nothing_is_loaded_from_elsewhere(page):
    loads = re.findall(r"""(?:src|href|action|data|srcset|poster)\s*=\s*["']([^"']*)""", page)
    assert loads and all(load.startswith("data:image/svg+xml;base64,") for load in loads)
    assert "default-src 'none'" in page
    for word in ("<script", "<link", "@import", "url(", "http:", "https:"):
        assert word not in page
    for svg in decode(page):
        assert all(target.startswith(("#", "data:")) for target in re.findall(r'href="([^"]*)', svg))


def test_names_from_outside_are_no_markup(tmp_path):
    name = "<script>alert('x')&$a$"
    run = make_run(tmp_path, {name: 1, "<img src=q onerror=r>": 2}, run="<b>run&amp;")
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    write_json(run / "manifest.json", manifest | {"method": "<i>m"})
    page = read_page(run)
    assert not re.search(r"<(script|b>run|i>m|img src=q)", page)
    text = visible_text(page)
    assert name in text and "<b>run&amp;" in text and "<i>m" in text


def test_several_classes_have_a_row_each_and_all_outlines(tmp_path):
    page = read_page(make_run(tmp_path, {"one": 1, "two": 2, "three": 9}, classes=2))
    text = visible_text(page)
    for name in ("organ 1", "organ 2", "foreground mean"):
        assert re.search(rf"{name} \d\.\d{{3}} ± ", text)
    assert page.count('rowspan="2"') == 6  # name and mean Dice of three cases
    # Axial and sagittal show both organs; the coronal slice shows one of them, though the centre of mass lies between.
    assert decode(figures_of(page)[2])[0].count(f"stroke: {pictures.TRUTH}") == 5


def test_a_missed_organ_is_said(tmp_path):
    run = make_run(tmp_path, {"kept": 1, "gone": 16})  # shifted out of the scan
    text = visible_text(read_page(run))
    assert "gone 0.000 not found" in text and "kept 0.875 not found" not in text and "diagonal of the scan" in text


@pytest.fixture(scope="module")
def planes(finished) -> list:
    """(image, truth, prediction, spacing_mm, window) of the three slices of case "good", through the marked corner."""
    case = pictures.load_case(PreparedSet(finished.parent / "prepared"), "good",
                              finished / "evaluation" / "predictions" / "good.nii.gz", {"background": 0, "organ 1": 10})
    drawn, original = [], pictures._draw_plane
    truth = np.zeros_like(case.truth)
    truth[np.unravel_index(case.image.argmax(), truth.shape)] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_draw_plane", lambda axes, *a: (drawn.append(a), original(axes, *a)))
        pictures.draw_slices(pictures.CasePicture(case.image, truth, truth, case.spacing_mm))
    return drawn


def test_pictures_follow_the_radiological_convention(planes):
    """Rows run upwards. The marked voxel is right, front and top in the world."""
    (axial, *_), (coronal, *_), (sagittal, *_) = planes
    assert axial[-1, 0] == coronal[-1, 0] == sagittal[-1, 0] == 99.0  # R left and A up; R left and S up; A left and S up


def test_pictures_keep_physical_proportions(planes):
    assert [plane[3] for plane in planes] == [(1.0, 1.5), (1.0, 3.0), (1.5, 3.0)]


def test_a_scan_without_orientation_gets_no_letters(finished):
    folder = finished.parent / "prepared"
    info = json.loads((folder / "cases" / "poor.json").read_text("utf-8"))
    write_json(folder / "cases" / "poor.json",
               info | {"affine": np.diag([0.625] * 3 + [1.0]).tolist(), "images": ["mri_norm2.h5"]})
    try:
        text = visible_text(read_page(finished))
    finally:
        write_json(folder / "cases" / "poor.json", info)
    assert "does not store how the patient lies" in text and "cannot be read any more" in text


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
    write_json(run / "manifest.json", {k: v for k, v in manifest.items() if k not in ("steps_done", "train_seconds")})
    with (run / "metrics.jsonl").open("r+", encoding="utf-8") as file:
        file.truncate(len("".join(file.readlines()[:20])) + 15)  # killed in the middle of the 21st line
    text = visible_text(read_page(run))
    assert "The 1 test case has not been evaluated" in text
    assert "This run has not finished" in text and "the last step on record is 20 of 40" in text
    (run / "metrics.jsonl").unlink()
    assert "Nothing has been logged yet" in read_page(run)


@pytest.mark.parametrize(("file", "damage", "message"), [
    ("metrics.jsonl", lambda text: "{broken\n" + text, "line 1 is damaged"),
    ("evaluation/summary.json", lambda text: text[: len(text) // 2], "not JSON"),
    ("evaluation/summary.json", lambda text: "[]", "damaged, or not what"),
    ("evaluation/summary.json", lambda text: text.replace('"HD95_mm"', '"HD"'), "damaged, or not what"),
    ("evaluation/summary.json", lambda text: text.replace("foreground mean", "other"), "damaged, or not what"),
    ("manifest.json", lambda text: "[]", "must hold objects"),
])
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
    svg, without = (base64.b64decode(pictures.draw_curves(r).partition(",")[2]).decode() for r in (rows, rows[:1]))
    assert "axes_3" in svg and "axes_3" not in without


def test_the_report_needs_no_torch_and_is_the_same_every_time(finished, page, tmp_path):
    code = ("import sys; from pathlib import Path; from dkuxnet.report.page import write_report; "
            "write_report(Path(sys.argv[1]), Path(sys.argv[2])); assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, str(finished), str(tmp_path / "page.html")], check=True)
    assert (tmp_path / "page.html").read_text("utf-8") == page and len(page) < 5e6


def test_a_dollar_in_a_name_is_no_formula():
    assert pictures.draw_dice({r"$\frac$": [0.5, 0.6]}, {r"$\frac$": (0.55, None)}).startswith("data:image/svg+xml")


def test_words():
    assert [duration(s) for s in (41.6, 125, 12_000)] == ["42 s", "2 min 5 s", "3 h 20 min"]
    assert by([0.625, 2.0, 1.2504], 3) == "0.625 × 2 × 1.25" and by([120, 89.06]) == "120 × 89"
