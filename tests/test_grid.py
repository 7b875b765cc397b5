"""The file of a benchmark: the runs it asks for, and one clear line for whatever is wrong."""

import re
from pathlib import Path

import pytest

from dkuxnet.benchmark.grid import read_grid, wanted_runs
from dkuxnet.core.config import how_settings
from dkuxnet.core.errors import UserError

GOOD = """
prepared = "data/prepared"
output = "out"
preset = "la-mini"
networks = ["dk-uxnet-tiny", "uxnet-tiny"]
labelled = [4, 8]
seeds = [3, 1]
reference = "paper"

[settings]
train.steps = 7
augment.strong.noise = 0.5
data.split = "split.json"

[methods.paper]
method = "dual-mutual"
form = "mse"
w_qdc = 0.0
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "grid.toml"
    file.write_text(text, "utf-8")
    return file


def test_the_runs_of_a_grid_seed_by_seed_with_the_bound_added(tmp_path):
    runs = wanted_runs(read_grid(write(tmp_path, GOOD)), "dk-uxnet")
    of_a_seed = [
        ("supervised", None),
        ("supervised", 4),
        ("paper", 4),
        ("supervised", 8),
        ("paper", 8),
    ]
    assert [(r.seed, r.network, r.arm, r.labelled) for r in runs] == [
        (seed, network, arm, count)
        for seed in (3, 1)
        for network in ("dk-uxnet-tiny", "uxnet-tiny")
        for arm, count in of_a_seed
    ]
    assert len({run.name for run in runs}) == len(runs) == 20
    assert [run.name for run in runs[:3]] == [
        "supervised_dk-uxnet-tiny_nall_seed3",
        "supervised_dk-uxnet-tiny_n4_seed3",
        "paper_dk-uxnet-tiny_n4_seed3",
    ]


def test_each_seed_can_draw_its_own_labelled_cases(tmp_path):
    text = GOOD.replace("seeds =", "draw_labelled = true\nseeds =")
    for run in wanted_runs(read_grid(write(tmp_path, text)), "dk-uxnet"):
        expected = None if run.labelled is None else run.seed
        assert run.settings.data.labelled_seed == expected
    with pytest.raises(UserError, match=r"data\.labelled_seed.*move it to draw_labelled"):
        read_grid(write(tmp_path, GOOD.replace("[settings]", "[settings]\ndata.labelled_seed = 1")))


def test_one_recipe_for_all_and_options_for_their_arm(tmp_path):
    runs = wanted_runs(read_grid(write(tmp_path, GOOD)), "dk-uxnet")
    for run in runs:
        assert (run.settings.train.steps, run.settings.train.seed, run.settings.data.labelled) == (
            7,
            run.seed,
            run.labelled,
        )
        assert run.settings.network.name == run.network
        assert run.settings.augment.strong.noise == 0.5
        assert run.settings.train.patch == (48, 32, 16)  # the preset's
    assert runs[2].settings.method.model_dump() == {
        "name": "dual-mutual",
        "form": "mse",
        "w_qdc": 0.0,
    }
    assert runs[1].settings.method.model_dump() == {"name": "supervised"}

    def recipe(run):
        varies = {"data": {"labelled"}, "train": {"seed"}, "network": {"name"}, "method": True}
        return run.settings.model_dump(exclude=varies)

    assert all(recipe(run) == recipe(runs[0]) for run in runs)


def test_settings_that_say_how_a_run_is_made_are_marked():
    assert sorted(how_settings()) == [
        "data.cache_gib",
        "data.workers",
        "evaluate.metrics",
        "evaluate.tolerance_mm",
        "train.device",
        "train.log_every",
        "train.mlflow",
        "train.reference_cases",
        "train.save_every",
        "train.save_minutes",
        "train.wandb",
    ]


def test_paths_are_relative_to_the_file_unless_they_are_given(tmp_path):
    grid = read_grid(write(tmp_path, GOOD))
    assert (grid.prepared, grid.output) == (tmp_path / "data" / "prepared", tmp_path / "out")
    assert wanted_runs(grid, "x")[0].settings.data.split == tmp_path / "split.json"
    grid = read_grid(write(tmp_path, GOOD), Path("p"), Path("o"))
    assert (grid.prepared, grid.output) == (Path("p"), Path("o"))


def test_without_networks_the_preset_or_the_plan_names_it(tmp_path):
    text = GOOD.replace('networks = ["dk-uxnet-tiny", "uxnet-tiny"]', "")
    run = wanted_runs(read_grid(write(tmp_path, text)), "advised")[0]
    assert run.network == run.settings.network.name == "dk-uxnet-tiny"
    run = wanted_runs(read_grid(write(tmp_path, text.replace("la-mini", "default"))), "advised")[0]
    assert run.network == "advised" and run.settings.network.name is None


MISTAKES = {
    "seedz": (("seeds = [3, 1]", "seedz = [3, 1]"), "unknown key 'seedz'; did you mean 'seeds'?"),
    "no seeds": (("seeds = [3, 1]", ""), "key seeds is missing"),
    "empty seeds": (("[3, 1]", "[]"), "seeds is empty: name at least one seed"),
    "empty labelled": (("[4, 8]", "[]"), "labelled is empty: name at least one labelled count"),
    "empty networks": (
        ('["dk-uxnet-tiny", "uxnet-tiny"]', "[]"),
        "networks is empty: name at least one network, or leave",
    ),
    "seed twice": (("[3, 1]", "[1, 3, 1]"), "seeds repeats 1: each seed must stand once"),
    "count twice": (
        ("[4, 8]", "[4, 4]"),
        "labelled repeats 4: each labelled count must stand once",
    ),
    "network twice": (
        ('"uxnet-tiny"]', '"dk-uxnet-tiny"]'),
        "networks repeats dk-uxnet-tiny: each network must stand once",
    ),
    "negative seed": (
        ("[3, 1]", "[-1]"),
        "key seeds.0: Input should be greater than or equal to 0, got -1",
    ),
    "no labels": (("[4, 8]", "[0]"), "key labelled.0: Input should be greater than 0, got 0"),
    "words": (("[4, 8]", '["few"]'), "key labelled.0: .*got 'few'"),
    "network": (
        ('"uxnet-tiny"', '"uxnet-tini"'),
        "unknown network 'uxnet-tini'; did you mean 'uxnet-tiny'?",
    ),
    "method": (
        ('"dual-mutual"', '"dual-mutul"'),
        r"unknown method in \[methods.paper\]: 'dual-mutul'; did you mean 'dual",
    ),
    "method by arm": (
        ('method = "dual-mutual"\n', ""),
        r"unknown method in \[methods.paper\]: 'paper'",
    ),
    "method a number": (('"dual-mutual"', "[1]"), r"unknown method in \[methods.paper\]: '\[1\]'"),
    "option": (
        ("form =", "frm ="),
        "unknown setting in methods.paper: 'frm'; did you mean 'form'?",
    ),
    "option named name": (("form =", "name ="), "unknown setting in methods.paper: 'name'"),
    "value of an option": (('"mse"', '"msee"'), "methods.paper.form: .*got 'msee'"),
    "recipe in an arm": (
        ("w_qdc = 0.0", "train.steps = 9"),
        "unknown setting in methods.paper: 'train'",
    ),
    "reference": (
        ('reference = "paper"', 'reference = "papre"'),
        "unknown reference 'papre'; did you mean 'paper'?",
    ),
    "setting": (
        ("train.steps", "train.stepz"),
        "unknown setting 'train.stepz'; did you mean 'train.steps'?",
    ),
    "value": (("steps = 7", "steps = 0"), "setting train.steps: .*got 0"),
    "preset": (('"la-mini"', '"la-mni"'), "unknown preset 'la-mni'; did you mean 'la-mini'?"),
    "seed in settings": (
        ("train.steps", "train.seed"),
        r"\[settings\] holds train.seed, .*move it to seeds",
    ),
    "count in settings": (
        ("train.steps", "data.labelled"),
        r"\[settings\] holds data.labelled, .*move it to labelled",
    ),
    "network in settings": (
        ("train.steps = 7", 'network.name = "uxnet"'),
        "holds network.name, .*move it to networks",
    ),
    "options in settings": (
        ("train.steps", "method.w_qd"),
        r"holds method.w_qd, .*move it to \[methods.ARM\]",
    ),
    "another bound": (
        ("[methods.paper]", "[methods.supervised]"),
        "its method must be supervised, not dual-mutual",
    ),
    "a folder's name": (
        ("[methods.paper]", '[methods."../paper"]'),
        r"\[methods.../paper\]: an arm's name becomes part of",
    ),
    "capitals": (
        ("[methods.paper]", "[methods.paper]\nmethod = 'cps'\n[methods.Paper]"),
        "the arms paper and Paper differ in",
    ),
    "no methods": ("methods", r"\[methods\] is empty"),
    "no prepared": (
        ('prepared = "data/prepared"', ""),
        'names no folder as prepared: add prepared = "..." to it, or give',
    ),
    "no output": (
        ('output = "out"', ""),
        'names no folder as output: add output = "..." to it, or give --output',
    ),
    "not TOML": (("[settings]", "[settings"), "not a TOML file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(tmp_path, name):
    change, message = MISTAKES[name]
    text = (
        GOOD.split("[methods")[0].replace('"paper"', '"supervised"') + "[methods]\n"
        if change == "methods"
        else GOOD.replace(*change, 1)
    )
    assert text != GOOD
    with pytest.raises(UserError, match=message) as error:
        read_grid(write(tmp_path, text))
    assert "\n" not in str(error.value) and str(tmp_path / "grid.toml") in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none.toml: cannot read the settings"):
        read_grid(tmp_path / "none.toml")


def test_the_files_that_come_along_are_good():
    for file in sorted((Path(__file__).parents[1] / "measurements").glob("*.toml")):
        grid = read_grid(file, Path("p"), Path("o"))
        assert "supervised" in grid.methods and wanted_runs(grid, "dk-uxnet-tiny")


def test_the_grids_of_the_documentation_are_good(tmp_path):
    """Fields that the page leaves out are those of a benchmark's file that says where its data are
    by option.
    """
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text("utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", page, flags=re.S)
    assert blocks
    for block in blocks:
        assert wanted_runs(read_grid(write(tmp_path, block), Path("p"), Path("o")), "dk-uxnet-tiny")
