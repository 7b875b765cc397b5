"""Runs side by side: differences paired case by case, worked out by hand; what cannot be compared
is refused.
"""

import csv
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dkuxnet.benchmark.compare_runs import compare_runs
from dkuxnet.benchmark.compare_runs_page import write_runs_report
from dkuxnet.benchmark.words import runs_headlines
from dkuxnet.cli.commands import app
from dkuxnet.core.errors import UserError
from dkuxnet.machine.files import write_json
from dkuxnet.report.results import read_results
from made_run import PLAN, make_run

SHIFTS = {
    "first": {"a": 1, "b": 2, "c": 4},
    "second": {"a": 0, "b": 1, "c": 5},
    "third": {"c": 4, "b": 2, "a": 1},
}
DICE = {shift: 1 - shift / 8 for shift in range(9)}  # of two boxes of 8 voxels, apart by so many


def change(run: Path, file: str, **entries) -> None:
    write_json(run / file, json.loads((run / file).read_text("utf-8")) | entries)


@pytest.fixture
def runs(tmp_path) -> dict[str, Path]:
    """Three runs in folders of their own; `third` is `first` with another seed and its cases in
    another order.
    """
    made = {name: make_run(tmp_path / name, shifts, run=name) for name, shifts in SHIFTS.items()}
    for run in made.values():
        change(run, "manifest.json", cases=["a", "b", "c"])
    change(made["second"], "settings.json", method={"name": "cps", "w": 0.5})
    change(made["third"], "settings.json", train={"steps": 40, "lr": 0.25, "seed": 1})
    return made


def test_differences_are_paired_by_case(runs):
    found = compare_runs([runs["first"], runs["second"]])
    first, second = found.arms
    np.testing.assert_allclose([*first.row.cases.values()], [DICE[1], DICE[2], DICE[4]], atol=1e-6)
    assert found.cases == ("a", "b", "c") and first.row.gain is None and first.row.test is None
    assert second.row.metrics["dice"][0] == pytest.approx(
        np.mean([DICE[0], DICE[1], DICE[5]]), abs=1e-6
    )
    assert second.row.gain.value == pytest.approx((1 + 1 - 1) / 24, abs=1e-6) and second.better == 2
    assert second.row.gain.interval is None, "three cases cannot say"
    assert found.differences == {"method.name": ["dual-mutual", "cps"], "method.w": ["–", 0.5]}


def test_runs_that_differ_in_no_case_are_told_so_and_others_with_an_interval(tmp_path):
    shifts = {"a": 1, "b": 2, "c": 4, "d": 3, "e": 2}
    made = [
        make_run(tmp_path / name, of_run, run=name)
        for name, of_run in (
            ("first", shifts),
            ("same", shifts),
            ("better", {"a": 1, "b": 1, "c": 2, "d": 2, "e": 1}),
            ("nothing", dict.fromkeys(shifts, 8)),
        )
    ]
    for run in made:
        change(run, "manifest.json", cases=[*shifts])
        change(run, "settings.json", method={"name": run.name, "w": 0.5})
    _, same, better = runs_headlines(compare_runs(made[:3]))
    assert same == "same and first: no difference in any of 5 test cases."
    assert "better in 4 of 5 test cases (95 % interval of the difference +0.0" in better
    assert "cannot be told from chance with 5 test cases" in better
    again = make_run(tmp_path / "again", dict.fromkeys(shifts, 8), run="again")
    change(again, "manifest.json", cases=[*shifts])
    told, *_ = runs_headlines(compare_runs([made[3], again]))
    assert told.startswith("On 5 test cases, no difference: no run found anything that is right")


def test_seeds_of_one_setting_are_one_arm_whatever_the_order_of_their_cases(runs):
    found = compare_runs([runs["first"], runs["third"], runs["second"]])
    assert [arm.row.arm for arm in found.arms] == ["first (2 seeds)", "second"] and found.same_seeds
    np.testing.assert_allclose(
        [*found.arms[0].row.cases.values()], [DICE[1], DICE[2], DICE[4]], atol=1e-6
    )
    change(runs["second"], "settings.json", train={"steps": 40, "lr": 0.25, "seed": 7})
    apart = compare_runs([runs["first"], runs["second"]])
    assert not apart.same_seeds and apart.arms[1].row.gain.value == pytest.approx(1 / 24, abs=1e-6)


def test_of_scans_without_any_class_there_is_no_figure_to_head_a_page(runs):
    for name in ("first", "third"):
        evaluation = runs[name] / "evaluation"
        summary = json.loads((evaluation / "summary.json").read_text("utf-8"))
        for case in summary["metric_per_case"]:
            for figures in case["metrics"].values():
                figures.update(dict.fromkeys(figures) | {"n_pred": 0, "n_ref": 0})
        write_json(evaluation / "summary.json", summary)
        columns, *rows = csv.reader((evaluation / "cases.csv").read_text("utf-8").splitlines())
        counts = {columns.index("n_pred"), columns.index("n_ref")}
        rows = [["0" if i in counts else cell for i, cell in enumerate(row)] for row in rows]
        (evaluation / "cases.csv").write_text("\n".join(map(",".join, [columns, *rows])), "utf-8")
        results = read_results(evaluation)
        assert [title for title, _ in results.chosen()] == ["A test case, without any class"]
    (told,) = runs_headlines(compare_runs([runs["first"], runs["third"]]))
    assert told == "On 3 test cases, no label and no prediction has any class: nothing to compare."


def test_how_a_run_was_made_makes_no_arm_of_its_own(runs):
    """A mark of the settings themselves: another computer, other pauses between checkpoints."""
    train = {"steps": 40, "lr": 0.25, "seed": 1, "save_minutes": 3.0, "device": "cuda"}
    change(runs["third"], "settings.json", train=train, data={"workers": 3})
    [arm] = compare_runs([runs["first"], runs["third"]]).arms
    assert arm.row.arm == "first (2 seeds)"


def test_a_second_run_of_one_seed_stands_for_itself_and_names_tell_folders_apart(runs, tmp_path):
    (tmp_path / "again").mkdir()
    runs["third"].rename(tmp_path / "again" / "first")
    change(tmp_path / "again" / "first", "settings.json", train={"steps": 40, "lr": 0.25})
    found = compare_runs([runs["first"], tmp_path / "again" / "first"])
    assert [arm.row.arm for arm in found.arms] == [
        "first/first",
        "again/first",
    ] and found.differences == {}


def test_the_page_says_who_is_better_and_how_sure_it_is(runs, tmp_path):
    (tmp_path / "<i>x").mkdir()
    odd = runs["second"].rename(tmp_path / "<i>x" / "<script>second")
    page = write_runs_report([runs["first"], odd], tmp_path / "page.html").read_text("utf-8")
    text = re.sub(
        r"\s+",
        " ",
        unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<script>\n.*?</script>", "", page, flags=re.S))),
    )
    assert "<script>second has the highest mean Dice, 0.750. Then: first, 0.708." in text
    assert "better in 2 of 3 test cases; with 3 test cases nobody can say how sure that is." in text
    assert "+0.0417 2 of 3" in text and "method.w – 0.5" in text
    assert (
        "<script>second" not in page
        and "http" not in page.split("<main>")[1].split("<script>\n")[0]
    )
    assert re.findall(r"<tr><td>(\w)</td>", page)[:3] == ["c", "b", "a"]  # the hardest first


def damage_figures(run: Path) -> None:
    (run / "evaluation" / "cases.csv").unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda run: change(run, "manifest.json", plan=PLAN | {"spacing_mm": [1, 1, 1]}),
            "another prepared set than .*their plan differ",
        ),
        (
            lambda run: change(run, "manifest.json", labels={"background": 0, "other": 10}),
            "another prepared set",
        ),
        (lambda run: change(run, "manifest.json", test=None), None),
        (damage_figures, "cases.csv: damaged.*train or evaluate the run again"),
        (lambda run: (run / "settings.json").unlink(), "not a run folder"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, harm, message):
    harm(runs["second"])
    if message is None:
        manifest = json.loads((runs["second"] / "manifest.json").read_text("utf-8"))
        del manifest["test"]
        write_json(runs["second"] / "manifest.json", manifest)
        message = "has no evaluation of test cases"
    with pytest.raises(UserError, match=message):
        write_runs_report([runs["first"], runs["second"]], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_other_test_cases_and_a_run_twice_are_refused(runs, tmp_path):
    other = make_run(tmp_path / "other", {"a": 1, "d": 1}, run="other")
    change(other, "manifest.json", cases=["a", "b", "c"])
    with pytest.raises(
        UserError,
        match=r"tested on other cases than .*first \(3 of them in one list only, such as 'b'\)",
    ):
        compare_runs([runs["first"], other])
    with pytest.raises(UserError, match="given twice"):
        compare_runs([runs["first"], runs["second"], runs["first"] / ".." / "first"])


def test_the_command_writes_where_it_is_told(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = [str(runs["first"]), str(runs["second"])]
    assert (
        CliRunner().invoke(app, ["report", *pair]).exit_code == 0
        and (tmp_path / "comparison.html").is_file()
    )
    assert CliRunner().invoke(app, ["report", *pair, "--output", "other.html"]).exit_code == 0
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "comparison.html").read_bytes()
    assert CliRunner().invoke(app, ["report", pair[0], "--output", "one.html"]).exit_code == 0
    assert "Segmentation report" in (tmp_path / "one.html").read_text("utf-8")
    assert not (runs["first"] / "report.html").exists()
    missing = CliRunner().invoke(app, ["report", *pair, "--output", "no/where.html"])
    assert isinstance(missing.exception, UserError) and "does not exist" in str(missing.exception)
