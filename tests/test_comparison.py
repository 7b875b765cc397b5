"""What a benchmark says: figures worked out by hand, intervals that cover, and a page that says
how sure it is.
"""

import csv
import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from scipy.stats import t

from described import PLAN, manifest
from dkuxnet.benchmark.figures import cases_csv, compare, read_finished
from dkuxnet.benchmark.grid import read_grid, wanted_runs
from dkuxnet.benchmark.page import write_page
from dkuxnet.benchmark.picture import draw_comparison
from dkuxnet.benchmark.significance import against_reference, gain, holm, share_of_gap, signed_rank
from dkuxnet.benchmark.text import markdown, show_share, write_tables
from dkuxnet.benchmark.words import headlines
from dkuxnet.cli.console import show_benchmark
from dkuxnet.core.errors import UserError
from dkuxnet.evaluation.statistics import mean_interval, statistic
from dkuxnet.machine.files import write_json
from dkuxnet.report.pictures import to_svg


def table(*rows: list[float]) -> dict[int, np.ndarray]:
    """Dice: seed -> cases."""
    return {seed: np.array(row) for seed, row in enumerate(rows)}


# --- by hand ---


def test_share_of_the_gap_by_hand():
    low, high = table([0.7, 0.8], [0.8, 0.9]), table([0.8, 0.9], [1.0, 1.1])
    arm = table([0.75, 0.85], [0.9, 1.0])
    found = share_of_gap(arm, low, high)  # means: 0.8, 0.95 and 0.875
    assert found.share.value == pytest.approx(0.5) and found.gap.value == pytest.approx(0.15)
    assert not found.clear and found.seeds == [0, 1]  # two cases cannot say so
    assert found.gap.interval is None and found.share.interval is None


def test_share_takes_only_the_seeds_that_all_three_have():
    low, high = table([0.5, 0.6], [0.0, 0.0]), table([0.7, 0.8])
    arm = {0: np.array([0.6, 0.7]), 2: np.array([0.0, 0.0])}
    found = share_of_gap(arm, low, high)
    assert found.seeds == [0] and found.share.value == pytest.approx(0.5)
    assert share_of_gap({2: np.zeros(2)}, low, high) is None and gain({2: np.zeros(2)}, low) is None


def test_a_gap_of_nothing_has_no_share_and_an_unclear_one_is_marked():
    same = table([0.7, 0.8, 0.9])
    nothing = share_of_gap(table([0.8, 0.9, 0.9]), same, same)
    below = share_of_gap(
        table([0.8, 0.9, 0.9]), same, table([0.6, 0.8, 0.8])
    )  # fewer labels did better than all
    for found in (nothing, below):
        assert found.share is None and not found.clear and show_share(found) == ("–", "")
    base = np.linspace(0.6, 0.8, 8)
    wide = np.array([0.1, -0.1, 0.03, 0.05, -0.06, 0.09, -0.02, 0.04])
    unclear = share_of_gap(table(base + 0.1), table(base), table(base + wide))
    assert unclear.gap.low < 0 < unclear.gap.value and not unclear.clear
    assert show_share(unclear) == ("615 % †", "")  # no range: it would reach from -inf to inf
    clear = share_of_gap(table(base + 0.1 + wide / 9), table(base), table(base + 0.2 + wide / 9))
    text, interval = show_share(clear)
    assert text == "50 %" and clear.clear
    assert re.fullmatch(r"\(4\d % to 5\d %\)", interval), interval


def test_a_share_that_is_the_same_in_every_case_is_as_sure_as_its_gap():
    """What gain and gap have in common does not widen the interval of the share."""
    base, gap = np.linspace(0.6, 0.8, 8), np.linspace(0.05, 0.2, 8)
    found = share_of_gap(table(base + gap / 2), table(base), table(base + gap))
    assert found.share.interval == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.gap.high - found.gap.low > 0.05


def test_one_test_case_gives_values_without_intervals():
    found = share_of_gap(table([0.6], [0.7]), table([0.5], [0.5]), table([0.9], [0.9]))
    assert found.share.value == pytest.approx(0.375)
    assert (found.share.low, found.share.high, found.gap.low, found.clear) == (
        None,
        None,
        None,
        False,
    )


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx(
        [0.03, 0.06, 0.06]
    )  # 3 x 0.01, then 2 x 0.03, and 0.04 not below it
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


def test_signed_rank_by_hand():
    assert signed_rank(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(
        2 / 2**5
    )  # all five on one side, of 32 ways
    assert signed_rank(-np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])) == pytest.approx(2 / 2**6)
    assert signed_rank(np.zeros(5)) == 1.0


def test_tests_are_against_the_reference_over_its_seeds_and_corrected_together():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.9, 6)
    up = np.array([1, 2, 3, 4, 5, 6]) / 100
    arms = {
        "ref": {0: base, 1: base},
        "up": {0: base + up, 1: base + up},
        "same": {0: base, 1: base},
        "half": {1: base - up, 5: base + 1},
        "none": {7: base},
    }
    found = against_reference(arms, "ref")
    assert set(found) == {"up", "same", "half"}
    assert (found["up"].p, found["up"].p_holm) == (pytest.approx(2 / 64), pytest.approx(6 / 64))
    assert found["half"].p_holm == pytest.approx(6 / 64) and found["half"].seeds == [1]
    assert found["half"].difference == pytest.approx(-0.035)
    assert (found["same"].p, found["same"].p_holm) == (1.0, 1.0)


# --- intervals ---


def share_that_covers(draw, truth: float, repeats: int = 1500) -> float:
    """Per cent of the intervals of what `draw` gives that hold `truth`."""
    inside = 0
    for _ in range(repeats):
        low, high = mean_interval(draw())
        inside += low <= truth <= high
    return 100 * inside / repeats


@pytest.mark.parametrize("cases", [8, 16])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_intervals_cover(cases, kind):
    """The mean that the cases were drawn with lies in 93 to 97 % of the intervals, up to the two
    standard errors of 1,500 draws. Resampling covered 87 % with 8 cases and 92 % with 16.
    """
    rng = np.random.default_rng(1)
    if kind == "normal":
        covered = share_that_covers(lambda: rng.normal(0.02, 0.01, (1, cases)), 0.02)
    else:
        covered = share_that_covers(lambda: rng.beta(6, 1, (1, cases)), 6 / 7)
    assert 92 <= covered <= 98


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seeds", [1e-9, 0.01])
def test_intervals_cover_over_seeds_too(seeds, of_seeds):
    """Each seed has a shift of its own that all its cases share."""
    rng = np.random.default_rng(2)

    def draw():
        noise = rng.normal(0, 0.01, (seeds, 12)) + rng.normal(0, 0.02, 12)
        return 0.02 + noise + rng.normal(0, of_seeds, (seeds, 1))

    assert 92 <= share_that_covers(draw, 0.02) <= 98


def test_an_interval_by_hand():
    """Without skewness that of Student's t; what seeds differ by is added."""
    one = np.array([[-2.0, -1, 0, 1, 2]])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert mean_interval(one) == pytest.approx((-half, half))
    # variances of the means: 0.5 over cases (4 degrees of freedom), 1 / 3 over seeds (2)
    freedom = (0.5 + 1 / 3) ** 2 / (0.5**2 / 4 + (1 / 3) ** 2 / 2)
    half = t.ppf(0.975, freedom) * math.sqrt(0.5 + 1 / 3)
    assert mean_interval(one + np.array([[1], [0], [-1]])) == pytest.approx((-half, half))
    low, high = mean_interval(np.array([[0.2, 0.85, 0.9, 0.9, 0.95, 0.95, 0.9, 0.95]]))
    assert 0.825 - low > 1.5 * (high - 0.825) > 0, "a hard case hints at worse ones"


def test_there_is_no_interval_where_nothing_says_how_figures_spread():
    assert mean_interval(np.array([[0.7, 0.8, 0.9, 0.8]] * 3)) is None
    assert mean_interval(np.full((3, 8), 0.1)) is None
    assert statistic(np.array([0.7, 0.8, np.nan, 0.9, 0.8])).ci95 is None, "four that apply"


def test_intervals_of_several_comparisons_share_what_lies_outside():
    rng = np.random.default_rng(0)
    arm, bound = table(rng.normal(0.8, 0.05, 10)), table(rng.normal(0.7, 0.05, 10))
    alone, of_five = gain(arm, bound), gain(arm, bound, 5)
    wider = t.ppf(0.995, 9) / t.ppf(0.975, 9)
    assert of_five.high - of_five.low == pytest.approx(wider * (alone.high - alone.low), rel=0.05)
    assert of_five.low < alone.low < alone.value < alone.high < of_five.high


# --- from run folders to tables and page ---

GRID = """
prepared = "prepared"
output = "out"
networks = ["uxnet-tiny"]
labelled = {labelled}
seeds = [0, 1]
reference = "dual-mutual"
[settings]
train.steps = 5
[methods.dual-mutual]
[methods.paper]
method = "dual-mutual"
form = "mse"
"""
CASES = [f"case{i}" for i in range(6)]
DICE = {
    ("supervised", None): 0.9,
    ("supervised", 4): 0.7,
    ("supervised", 8): 0.8,
    ("dual-mutual", 4): 0.8,
    ("dual-mutual", 8): 0.85,
    ("paper", 4): 0.7,
    ("paper", 8): 0.78,
}
WOBBLE = {"supervised": 0.0, "dual-mutual": 0.001, "paper": -0.001}  # over cases, its mean is 0
GAINS = dict(
    zip(CASES, (0.03, 0.02, -0.002, 0.02, 0.03, 0.02), strict=True)
)  # one case against five


def make_runs(
    folder: Path, labelled: list[int], missing: tuple[str, ...] = (), cases: list[str] = CASES
):
    """Run folders with figures of two classes, 0.02 above and below the mean; seed 1 is 0.01 above
    seed 0.
    """
    (folder / "grid.toml").write_text(GRID.format(labelled=labelled))
    grid = read_grid(folder / "grid.toml")
    runs = wanted_runs(grid, "none")
    for run in runs:
        if run.name in missing:
            continue
        evaluation = folder / "out" / "runs" / run.name / "evaluation"
        evaluation.mkdir(parents=True)
        with (evaluation / "cases.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                [
                    "case",
                    "class",
                    "value",
                    "dice",
                    "jaccard",
                    "hd95_mm",
                    "asd_mm",
                    "hd95_voxels",
                    "asd_voxels",
                    "n_pred",
                    "n_ref",
                ]
            )
            for number, case in enumerate(cases):
                dice = DICE[run.arm, run.labelled] + 0.01 * run.seed + 0.004 * number - 0.01
                dice += (WOBBLE[run.arm] if run.labelled else 0.002) * (number % 3 - 1)
                for k, shift in ((1, 0.02), (2, -0.02)):
                    writer.writerow(
                        [case, f"organ {k}", k, dice + shift, 0.5, 10.0, 2.0, 20.0, 4.0, 9, 9]
                    )
        described = manifest(
            test={},
            split={"labelled": ["a"], "unlabelled": ["b", "c"], "validation": [], "test": cases},
            train_seconds=60.0 + 60 * run.seed,
            evaluate_seconds=3.0,
            parameters=2_000_000,
            labels={"background": 0, "organ 1": 1, "organ 2": 2},
            network_shape={"in_channels": 1, "classes": 3, "groups": []},
            plan=PLAN | {"spacing_mm": [1.0, 1.0, 2.0]},
            machine={"dkuxnet": "9.8.7", "torch": "2", "python": "3", "cpu_threads": 1},
        )
        write_json(evaluation.parent / "manifest.json", described.to_json())
    return grid, runs


def made(folder: Path, labelled: list[int], failed: dict[str, str] | None = None, **more):
    folder.mkdir(exist_ok=True)
    grid, runs = make_runs(folder, labelled, **more)
    return compared(grid, runs, failed)


def compared(grid, runs, failed: dict[str, str] | None = None):
    return compare(grid, runs, read_finished(grid.output / "runs", runs), failed or {})


def visible(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :])))


def test_the_figures_of_a_table_by_hand(tmp_path):
    comparison = made(tmp_path, [4, 8])
    first, second = comparison.tables
    assert (first.labelled, second.labelled, comparison.done, comparison.wanted) == (4, 8, 14, 14)
    rows = {row.arm: row for row in first.rows}
    assert list(rows) == ["supervised", "dual-mutual", "paper"]
    mean, std = rows["dual-mutual"].metrics["dice"]
    assert mean == pytest.approx(0.805) and std == pytest.approx(0.01 / 2**0.5)  # 0.80 and 0.81
    assert rows["dual-mutual"].dice_by_seed == {0: pytest.approx(0.8), 1: pytest.approx(0.81)}
    assert rows["dual-mutual"].cases["case5"] == pytest.approx(0.805 + 0.01 + 0.001)
    assert {key: value[0] for key, value in rows["paper"].metrics.items() if key != "dice"} == {
        "jaccard": 0.5,
        "hd95_mm": 10.0,
        "asd_mm": 2.0,
        "hd95_voxels": 20.0,
        "asd_voxels": 4.0,
    }
    assert rows["dual-mutual"].gain.value == pytest.approx(0.1)
    assert (
        rows["dual-mutual"].share.share.value == pytest.approx(0.5)
        and rows["dual-mutual"].share.clear
    )
    assert {row.arm: row.share.share.value for row in second.rows if row.share} == {
        "dual-mutual": pytest.approx(0.5),
        "paper": pytest.approx(-0.2),
    }
    assert rows["supervised"].gain is None and rows["supervised"].share is None
    assert rows["dual-mutual"].test is None and rows["paper"].test.p == pytest.approx(2 / 64)
    assert rows["paper"].test.p_holm == pytest.approx(4 / 64) == rows["supervised"].test.p_holm
    assert first.bound.metrics["dice"][0] == pytest.approx(0.905)


def test_markdown_and_json_hold_the_figures(tmp_path):
    comparison = made(tmp_path, [4])
    write_tables(comparison, tmp_path / "out")
    text = (tmp_path / "out" / "benchmark.md").read_text("utf-8")
    assert text == markdown(comparison)
    assert (
        "| dual-mutual | 2 of 2 | 0.8050 ± 0.0071 | 0.5000 ± 0.0000 | 10.00 ± 0.00 | 2.00 ± 0.00 | "
        "0 of 24 | +0.1000 (+0.0991 to +0.1009) | 50 % (50 % to 50 %) | – | 1.5 |"
    ) in text
    assert (
        "- dual-mutual: seed 0 0.8000, seed 1 0.8100" in text
        and "- supervised, all labels: seed 0 0.9000" in text
    )
    for part in (
        "3 cases in the training pool, 6 test cases",
        "5 steps",
        "dkuxnet 9.8.7",
        "2.00 million",
        "seeds 0 and 1",
        "Training took 0.20 hours",
        "against dual-mutual",
    ):
        assert part in text, part
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text("utf-8"))
    assert content["tables"][0]["rows"][1]["metrics"]["asd_voxels"] == [4.0, 0.0]
    assert not list((tmp_path / "out").glob(".*"))


def test_missing_and_failed_runs_are_said(tmp_path):
    gone = (
        "paper_uxnet-tiny_n4_seed0",
        "paper_uxnet-tiny_n4_seed1",
        "dual-mutual_uxnet-tiny_n4_seed1",
    )
    comparison = made(tmp_path, [4], {gone[0]: "a loss is not finite"}, missing=gone)
    text = markdown(comparison)
    assert (
        "| paper | 0 of 2 (1 failed) | failed | – |" in text
        and "| dual-mutual | 1 of 2 | 0.8000 |" in text
    )
    assert "- paper: seed 0 failed" in text and f"- {gone[0]}: a loss is not finite" in text
    assert headlines(comparison)[0].startswith("Preliminary: 3 runs of 8 are missing")
    page = visible(write_page(comparison, tmp_path / "out").read_text("utf-8"))
    assert f"1 run failed. The same command tries again. {gone[0]}: a loss is not finite" in page


def test_before_the_first_run_is_finished_there_is_a_page_too(tmp_path):
    grid, runs = make_runs(tmp_path, [4])
    comparison = compare(grid, runs, {}, {})
    assert comparison.done == 0 and draw_comparison(comparison) is None
    page = visible(write_page(comparison, tmp_path).read_text("utf-8"))
    assert (
        "0 / 8 runs finished" in page
        and "no finished run yet" in page
        and not (tmp_path / "figure.svg").exists()
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("dice", "dise", 1),
        lambda text: text.replace("case3", "case9"),
        lambda text: text.replace("10.0", "nan"),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "\n".join(text.splitlines()[:-1]),
    ],
)
def test_damaged_figures_are_one_clear_line(tmp_path, damage):
    grid, runs = make_runs(tmp_path, [4])
    path = grid.output / "runs" / runs[1].name / "evaluation" / "cases.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(
        UserError,
        match=r"damaged.*delete the run supervised_uxnet-tiny_n4_seed0, and it is made again",
    ):
        compared(grid, runs)


def test_the_page_says_who_is_best_and_how_sure(tmp_path):
    comparison = made(tmp_path, [4, 8])
    told = headlines(comparison)
    assert told[0] == (
        "With 4 labelled cases, dual-mutual has the highest Dice of 3 arms, 0.805 (next: "
        "supervised, 0.705). That is 0.100 "
        "above supervised with as many labels (95 % interval +0.099 to +0.101; corrected for the "
        "best of 2 arms +0.099 to "
        "+0.101), which may be chance: the corrected p is 0.062. It closes 50 % "
        "of the gap to supervised with all labels (95 % interval 50 % to 50 %)."
    )
    page = write_page(comparison, tmp_path / "out").read_text("utf-8")
    text = visible(page)
    assert all(line in text for line in told)
    assert "0.8050 ± 0.0071" in text and text.count("Dice by seed") == 2
    assert (
        re.findall(r"<td>(case\d)</td>", page) == CASES * 2
    )  # the hardest, which has the lowest Dice, first
    assert (
        "<td>paper<small>dual-mutual</small></td>" in page and page.count('<tr class="bound">') == 2
    )
    assert (
        page.count('<td class="best">') == 12
    )  # the best arm of each case, though the bound is above it


def test_a_lead_that_may_be_chance_is_called_so(tmp_path, monkeypatch):
    for key, value in {
        ("dual-mutual", 4): 0.701,
        ("paper", 4): 0.6,
        ("supervised", None): 0.7,
    }.items():
        monkeypatch.setitem(DICE, key, value)
    grid, runs = make_runs(tmp_path, [4])
    for name, shift in (
        ("dual-mutual_uxnet-tiny_n4_seed0", 0.05),
        ("dual-mutual_uxnet-tiny_n4_seed1", -0.05),
        ("supervised_uxnet-tiny_nall_seed0", 0.03),
        ("supervised_uxnet-tiny_nall_seed1", -0.02),
    ):
        path = (
            grid.output / "runs" / name / "evaluation" / "cases.csv"
        )  # better with one seed, worse with the other
        rows = list(csv.reader(path.open(newline="")))
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(
                [rows[0], *([*r[:3], float(r[3]) + shift, *r[4:]] for r in rows[1:])]
            )
    [line] = headlines(compared(grid, runs))
    assert "which may be chance: the interval includes 0" in line
    assert (
        "differs by +0.005, which may be chance: there is no gap whose share could be told" in line
    )


def test_the_best_of_many_is_clear_only_where_the_corrected_interval_is(tmp_path):
    """The same gain over the same cases: of one arm it is clear, of two it may be the luck of the
    best.
    """
    grid, runs = make_runs(tmp_path, [4])
    for seed in (0, 1):
        of_supervised, of_best = (
            grid.output / "runs" / f"{arm}_uxnet-tiny_n4_seed{seed}" / "evaluation" / "cases.csv"
            for arm in ("supervised", "dual-mutual")
        )
        head, *rows = csv.reader(of_supervised.open(newline=""))
        with of_best.open("w", newline="") as file:
            csv.writer(file).writerows(
                [head, *([*row[:3], float(row[3]) + GAINS[row[0]], *row[4:]] for row in rows)]
            )
    [line] = headlines(compared(grid, runs))
    assert "dual-mutual has the highest Dice of 3 arms" in line
    assert (
        "corrected for the best of 2 arms -0.00" in line
        and "chance: the corrected interval includes 0" in line
    )
    for run in runs:
        if run.arm == "paper":
            shutil.rmtree(grid.output / "runs" / run.name)
    [_, line] = headlines(compared(grid, runs))
    assert (
        "of 2 arms" in line
        and "corrected" not in line
        and "which may be chance: the p is 0.062" in line  # one case of six is against it
    )


def test_the_last_words_name_the_figure_only_where_there_is_one(tmp_path, capsys):
    grid, runs = make_runs(tmp_path, [4])
    show_benchmark(compared(grid, runs))
    assert "benchmark.json, cases.csv, figure.svg" in capsys.readouterr().out
    show_benchmark(compare(grid, runs, {}, {}))
    assert "figure.svg" not in capsys.readouterr().out


def test_nothing_is_loaded_from_elsewhere_and_names_are_no_markup(tmp_path):
    comparison = made(
        tmp_path,
        [4],
        {"x": "<script>alert(1)</script>"},
        cases=[*CASES[:5], "<img src=q onerror=r>"],
    )
    page = write_page(comparison, tmp_path / "out").read_text("utf-8")
    loads = re.findall(r"""(?:src|href|action|data|srcset|poster)\s*=\s*["']([^"']*)""", page)
    assert loads and all(load.startswith("data:image/svg+xml;base64,") for load in loads)
    assert "default-src 'none'" in page
    for word in ("<script", "<link", "@import", "url(", "http:", "https:", "<img src=q"):
        assert word not in page
    assert "<img src=q onerror=r>" in visible(page) and "<script>alert(1)</script>" in visible(page)


@pytest.mark.parametrize("labelled", [[8], [8, 4]])
def test_the_figure_shows_every_seed_every_mean_and_the_bound(tmp_path, labelled):
    comparison = made(tmp_path, labelled)
    figure = draw_comparison(comparison)
    assert to_svg(figure) == to_svg(draw_comparison(comparison))
    [axes] = figure.axes
    along = 0 if len(labelled) == 1 else 1  # the axis of Dice
    dots = {
        round(float(v), 6)
        for line in axes.lines
        if line.get_marker() == "."
        for v in line.get_data()[along]
    }
    assert dots == {
        round(dice + seed * 0.01, 6)
        for (_, n), dice in DICE.items()
        if n in labelled
        for seed in (0, 1)
    }
    means = [line for line in axes.lines if line.get_marker() not in (".", "None")]
    assert len({(line.get_color(), line.get_marker()) for line in means}) == len(means) == 3
    paper = sorted(round(float(v), 6) for v in means[2].get_data()[along])
    assert paper == sorted(round(DICE["paper", n] + 0.005, 6) for n in labelled)
    [bound] = [line for line in axes.lines if line.get_marker() == "None"]
    assert list(bound.get_data()[along]) == [pytest.approx(0.905)] * 2
    if len(labelled) == 2:
        assert [text.get_text() for text in axes.get_xticklabels()] == ["4", "8"]
        assert all(list(line.get_xdata()) == sorted(line.get_xdata()) for line in means)


def test_a_dozen_arms_differ_in_colour_and_marker_together():
    from dkuxnet.benchmark.picture import _look

    assert len({_look(n)["marker"] for n in range(12)}) == 12
    assert len({(_look(n)["color"], _look(n)["linestyle"]) for n in range(12)}) == 12


# --- absent classes, few cases, text that overprints ---


def rewrite(grid, name: str, change) -> None:
    """change: of each row of cases.csv of that run, a dict."""
    path = grid.output / "runs" / name / "evaluation" / "cases.csv"
    rows = list(csv.DictReader(path.open(newline="")))
    for row in rows:
        row.update(change(row) or {})
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


METRIC_KEYS = ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_voxels", "asd_voxels")


@pytest.mark.parametrize("stored", ["", "1.0"], ids=["new", "old"])
def test_a_class_that_is_nowhere_enters_no_mean_also_of_older_runs(tmp_path, stored):
    """Older runs hold Dice 1 and distances 0 there."""
    grid, runs = make_runs(tmp_path, [4])
    nowhere = dict.fromkeys(METRIC_KEYS, stored) | {"n_pred": 0, "n_ref": 0}
    for run in runs:
        rewrite(grid, run.name, lambda row: nowhere if row["class"] == "organ 2" else None)
    comparison = compared(grid, runs)
    row = comparison.tables[0].rows[1]
    assert row.metrics["dice"][0] == pytest.approx(0.805 + 0.02)  # of organ 1 alone
    assert np.isnan(row.classes["organ 2"].metrics["dice"][0])
    assert (row.classes["organ 2"].found.present, row.classes["organ 2"].found.scans) == (0, 12)
    write_tables(comparison, tmp_path / "out")
    text = (tmp_path / "out" / "benchmark.json").read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail)
    line = "| organ 2 | dual-mutual | – | – | – | – | 0 of 12 | – | 0 of 12 |"
    assert line in (tmp_path / "out" / "benchmark.md").read_text("utf-8")
    table = list(
        csv.DictReader(cases_csv(runs, read_finished(grid.output / "runs", runs)).splitlines())
    )
    assert [row["dice"] for row in table if row["class"] == "organ 2"] == [""] * 48
    assert len(table) == 96


def test_what_is_missed_and_false_alarms_are_told_by_class(tmp_path, capsys):
    grid, runs = make_runs(tmp_path, [4])
    missed = dict.fromkeys(METRIC_KEYS, 90) | {"dice": 0, "jaccard": 0, "n_pred": 0}
    alarm = missed | {"n_pred": 5, "n_ref": 0, "pred_ml": 0.25}
    for seed in (0, 1):
        rewrite(
            grid,
            f"paper_uxnet-tiny_n4_seed{seed}",
            lambda row: (
                {"pred_ml": 1, "ref_ml": 1}
                | (missed if row["class"] == "organ 2" else alarm if row["case"] == "case0" else {})
            ),
        )
    comparison = compared(grid, runs)
    text = markdown(comparison)
    assert "| organ 2 | paper | 0.0000 ± 0.0000 | 0.0000 ± 0.0000 | – | – | 12 of 12 |" in text
    [line] = [line for line in text.splitlines() if line.startswith("| organ 1 | paper")]
    assert line.endswith("| 10 of 12 | 0 of 10 | 2 of 2 (0.5 ml) |")
    show_benchmark(comparison)
    told = "paper: missed 12 of 22, false alarms 2 of 2 (0.5 ml), of scans and classes."
    assert told in capsys.readouterr().out
    page = visible(write_page(comparison, tmp_path / "out").read_text("utf-8"))
    assert told in page and "organ 2 paper 0.0000 ± 0.0000" in page


@pytest.mark.parametrize("cases", [2, 3, 5])
def test_fewer_than_six_cases_are_never_called_clear(tmp_path, cases):
    comparison = made(tmp_path, [4], cases=CASES[:cases])
    [told] = headlines(comparison)
    sure = "which cannot be told from chance" if cases == 5 else "nobody can say how sure that is"
    assert sure in told and f"with {cases} test cases" in told
    assert "clear" not in told and "closes" not in told


def test_eight_cases_that_all_say_so_are_clear(tmp_path):
    comparison = made(tmp_path, [4], cases=[f"case{i}" for i in range(8)])
    [told] = headlines(comparison)
    assert ": clear over these test cases and 2 seeds. It closes 50 % of the gap" in told


def test_where_no_arm_finds_anything_there_is_no_best(tmp_path):
    grid, runs = make_runs(tmp_path, [4])
    for run in runs:
        rewrite(grid, run.name, lambda row: {"dice": 0, "jaccard": 0, "n_pred": 0})
    assert headlines(compared(grid, runs)) == [
        "With 4 labelled cases, no difference: no arm found anything that is right, Dice is 0 for "
        "all."
    ]


def overprinted(figure) -> list[tuple[str, str]]:
    """Pairs of texts that are drawn, and whose boxes share more than a sliver."""
    drawn, draw = [], Text.draw

    def noting(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        return draw(text, renderer, *args, **kwargs)

    with mock.patch.object(Text, "draw", noting):
        FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in {*drawn}]
    return [
        (a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)
    ]


@pytest.mark.parametrize("labelled", [[4], [4, 8]])
@pytest.mark.parametrize("bound", [0.0, 0.5, 0.9])
def test_no_text_of_the_figure_lies_on_another(tmp_path, monkeypatch, labelled, bound):
    monkeypatch.setitem(DICE, ("supervised", None), bound)
    for (arm, count), dice in list(DICE.items()):
        if count:
            monkeypatch.setitem(DICE, (arm, count), bound + 0.3 * dice)
    comparison = made(tmp_path, labelled)
    first = comparison.tables[0]
    many = [replace(first.rows[1], arm=f"an arm of a long name {n}") for n in range(9)]
    tables = [
        replace(table, network=network, rows=[*table.rows, *many])
        for network in ("dk-uxnet-large", "uxnet")
        for table in comparison.tables
    ]
    for each in (comparison, replace(comparison, tables=tables)):
        assert overprinted(draw_comparison(each)) == []
