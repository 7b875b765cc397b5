"""The tables of the documentation are what was measured, joined from several measurements."""

import json
import runpy
from pathlib import Path

import pytest

from made_run import make_run

ROOT = Path(__file__).parents[1]
TABLES = runpy.run_path(str(ROOT / "measurements" / "tables.py"))
LINES_OF = runpy.run_path(str(ROOT / "measurements" / "gather.py"))["lines_of"]
HEADER = "arm,network,labelled,seed,case,dice,jaccard,hd95_mm,asd_mm,hd95_voxels,asd_voxels\n"


def write(folder: Path, name: str, *rows: str) -> Path:
    """rows: arm labelled seed case dice; the other figures are the same for all."""
    path = folder / name
    lines = [
        ",".join([arm, "net", labelled, seed, case, dice, "0.5", "2", "1", "4", "2"])
        for arm, labelled, seed, case, dice in (row.split() for row in rows)
    ]
    path.write_text(HEADER + "\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.parametrize(
    "file, labelled, reference",
    [
        ("la_mini_4", "4", "dual-mutual"),
        ("la_mini_16", "16", "dual-mutual"),
        ("la_ablation_4", "4", "both"),
    ],
)
def test_the_page_of_la_mini_holds_what_was_measured(file, labelled, reference):
    page = (ROOT / "docs" / "results-la-mini.md").read_text("utf-8").splitlines()
    lines = TABLES["table"](
        TABLES["read"]([ROOT / "docs" / "measured" / f"{file}.csv"]), labelled, reference
    )
    assert len(lines) > 5 and [line for line in lines if line not in page] == []


def page_and_measured(*files: str) -> tuple[list[str], list[str]]:
    """The lines of docs/results.md, and what is printed of these files for it."""
    read = [TABLES["read"]([ROOT / "docs" / "measured" / f"{file}.csv"]) for file in files]
    page = (ROOT / "docs" / "results.md").read_text("utf-8").splitlines()
    return page, [line for found in read for line in TABLES["overview"](found)]


def test_the_page_of_results_holds_what_was_measured():
    page, measured = page_and_measured("la_mid", "hippocampus", "acdc")
    assert len(measured) > 9 and [line for line in measured if line not in page] == []


def test_the_page_of_results_has_no_figures_of_its_own():
    """Of la-mini it has a choice of the arms. Its minutes were not kept by run, and nothing by scan
    with 8 labels, which stand on the page behind it.
    """
    page, measured = page_and_measured("la_mid", "hippocampus", "acdc", "la_mini_4", "la_mini_16")
    known = {line.rpartition(" | ")[0] for line in measured}
    behind = (ROOT / "docs" / "results-la-mini.md").read_text("utf-8").replace("**", "")
    rows = [line for line in page if line.startswith("| ") and line.count("|") >= 8]
    assert len(rows) > 15
    for row in rows:
        arm, labelled, dice, by_seed, *_ = row.removeprefix("| ").split(" | ")
        with_8 = labelled == "8" and f"| {arm} | {dice} | {by_seed} |" in behind
        assert row.rpartition(" | ")[0] in known or with_8, row


def test_seeds_of_two_files_are_one_table(tmp_path):
    first = write(
        tmp_path,
        "a.csv",
        "supervised 4 0 x 0.5",
        "supervised 4 0 y 0.7",
        "mine 4 0 x 0.6",
        "mine 4 0 y 0.8",
        "supervised all 0 x 0.9",
        "supervised all 0 y 0.9",
    )
    second = write(
        tmp_path,
        "b.csv",
        "supervised 4 1 y 0.9",
        "supervised 4 1 x 0.7",
        "mine 4 1 x 0.72",
        "mine 4 1 y 0.92",
    )
    head, _, *lines = TABLES["table"](TABLES["read"]([first, second]), "4", "supervised")
    assert head.startswith("| arm | Dice | by seed |")
    assert lines == [
        "| supervised | 0.7000 ± 0.1414 | .6000, .8000 | 0.5000 ± 0.0000 | 2.00 ± 0.00 | 1.00 ± "
        "0.00 | – | – |",
        # both cases gain 0.1 with the first seed and 0.02 with the second; two have no interval
        "| mine | 0.7600 ± 0.0849 | .7000, .8200 | 0.5000 ± 0.0000 | 2.00 ± 0.00 | 1.00 ± 0.00 | "
        "+0.0600 | 0.500 |",
        "| supervised, all labels | 0.9000 | .9000 | 0.5000 | 2.00 | 1.00 | – | – |",
    ]


def test_what_was_missed_is_counted_and_has_no_distance(tmp_path):
    """A file of an earlier version has the scan's diagonal there."""
    header = HEADER.strip() + ",n_pred,n_ref"
    rows = [
        "supervised,net,4,0,x,0,0,113.6,113.6,9,9,0,9",
        "supervised,net,4,0,y,0.8,0.7,2,1,4,2,9,9",
    ]
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]), "utf-8")
    head, _, line = TABLES["table"](TABLES["read"]([tmp_path / "a.csv"]), "4", "supervised")
    assert "| ASD (mm) | missed | gain" in head
    assert line == "| supervised | 0.4000 | .4000 | 0.3500 | 2.00 | 1.00 | 1 of 2 | – | – |"


def test_all_numbers_of_labels_are_one_table_with_minutes(tmp_path):
    file = write(
        tmp_path,
        "a.csv",
        *(f"supervised {count} 0 {case} 0.9" for count in ("all", "16", "4") for case in "xy"),
        *(f"mine 4 {seed} {case} 0.{6 + seed}" for seed in (0, 1) for case in "xy"),
    )
    head, *lines = file.read_text("utf-8").splitlines()
    minutes = ["minutes", *["9.5"] * (len(lines) - 4), *["2", "2", "3", "3"]]
    file.write_text("\n".join(map(",".join, zip([head, *lines], minutes, strict=True))), "utf-8")
    assert TABLES["overview"](TABLES["read"]([file])) == [
        "| arm | labelled | Dice | by seed | 95HD (voxels) | gain in Dice | minutes |",
        "|---|---|---|---|---|---|---|",
        "| supervised | 4 | 0.9000 | .9000 | 4.00 | – | 9.5 |",
        "| mine | 4 | 0.6500 ± 0.0707 | .6000, .7000 | 4.00 ± 0.00 | – | 2.5 |",
        "| supervised | 16 | 0.9000 | .9000 | 4.00 | – | 9.5 |",
        "| supervised | all | 0.9000 | .9000 | 4.00 | – | 9.5 |",
    ]


def test_a_run_is_gathered_with_the_minutes_of_both_stages(tmp_path):
    run = make_run(tmp_path, {"x": 0, "y": 2})  # of 62 minutes, with 1 label of 3
    lines = [*LINES_OF(f"mine={run}")]
    assert [line[:6] for line in lines] == [
        ["mine", "dk-uxnet-tiny", 1, 0, case, "organ 1"] for case in ("x", "y")
    ]
    assert lines[0][6] == 1 and {line[-1] for line in lines} == {62.0}

    told = json.loads((run / "manifest.json").read_text("utf-8"))
    (run / "coarse").mkdir()
    (run / "coarse" / "manifest.json").write_text(json.dumps(told), "utf-8")
    told["network_shape"]["in_channels"] = 2
    told["split"]["unlabelled"] = []
    (run / "manifest.json").write_text(json.dumps(told | {"coarse": True}), "utf-8")
    (name, _, labelled, *_, minutes), *_ = LINES_OF(str(run))
    assert (name, labelled, minutes) == ("two stages", "all", 124.1)


def test_an_arm_of_other_seeds_has_neither_gain_nor_p(tmp_path):
    file = write(
        tmp_path,
        "a.csv",
        *(f"supervised 4 0 {case} 0.5" for case in "xy"),
        *(f"mine 4 {seed} {case} 0.6" for seed in (0, 1) for case in "xy"),
    )
    *_, line = TABLES["table"](TABLES["read"]([file]), "4", "supervised")
    assert line.startswith("| mine | 0.6000 ± 0.0000 | .6000, .6000 |") and line.endswith(
        "| – | – |"
    )


def test_files_of_several_networks_are_refused(tmp_path):
    file = write(tmp_path, "a.csv", "supervised 4 0 x 0.5")
    file.write_text(file.read_text() + "supervised,other,4,1,x,0.5,0.5,2,1,4,2\n")
    with pytest.raises(ValueError, match="several networks, net and other"):
        TABLES["read"]([file])


def test_a_run_that_stands_twice_or_lacks_a_case_is_refused(tmp_path):
    file = write(tmp_path, "a.csv", "supervised 4 0 x 0.5", "supervised 4 0 y 0.7")
    with pytest.raises(
        ValueError, match=r"a\.csv: supervised with 4 labelled, seed 0, stands twice"
    ):
        TABLES["read"]([file, file])
    short = write(tmp_path, "b.csv", "mine 4 0 x 0.5")
    with pytest.raises(ValueError, match="mine with 4 labelled, seed 0, has 1 of 2 cases"):
        TABLES["read"]([file, short])
    with pytest.raises(ValueError, match="no run of mine with 4 labelled; there are: supervised"):
        TABLES["table"](TABLES["read"]([file]), "4", "mine")
