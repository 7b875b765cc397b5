"""The blocks of the documentation run, and keep the promises of their tables."""

import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from typer.testing import CliRunner

from dkuxnet.cli.commands import app
from dkuxnet.core.config import Settings, flatten, load_settings, parse_override
from dkuxnet.core.types import Batch, NetworkShape, Output, Views, Volume
from dkuxnet.data import formats, phantom
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.models.methods import METHODS
from dkuxnet.models.networks import NETWORKS
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training.experiment import run_training
from tiny import DK_UXNET, UXNET

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATE = ROOT / "docs" / "generate"


def generated(name: str) -> dict[str, Any]:
    """The names of a script of docs/generate."""
    return runpy.run_path(str(GENERATE / f"{name}.py"))


def blocks(file: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.S)


@pytest.fixture
def modules(monkeypatch) -> list[types.ModuleType]:
    """The files of docs/extend.md, importable as doc_0, doc_1, doc_2."""
    made = []
    for i, code in enumerate(blocks("docs/extend.md")):
        module = types.ModuleType(f"doc_{i}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, f"docs/extend.md block {i}", "exec"), module.__dict__)
        made.append(module)
    return made


def test_the_method_and_the_network_of_the_page_train_together(modules, monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "entropy", "doc_0:Entropy")
    monkeypatch.setitem(NETWORKS, "pointwise", "doc_1:pointwise")
    prepare_scans(
        phantom.write_dataset(tmp_path / "scans", cases=4, labelled=2, size=20),
        tmp_path / "prepared",
        processes=1,
    )
    settings = load_settings(
        overrides={
            "method.name": "entropy",
            "method.weight": 0.5,
            "network.name": "pointwise",
            "network.width": 8,
            "train.steps": 3,
            "train.log_every": 1,
            "train.device": "cpu",
            "train.patch": [16, 16, 16],
        }
    )
    run_training(tmp_path / "prepared", tmp_path / "run", settings)
    logged = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(row["entropy"] > 0 for row in logged if "loss" in row)


def test_the_method_of_the_page_makes_a_network_decide(modules):
    """Half of its weight at the end of the ramp is the entropy of an undecided network, log 2 a
    voxel.
    """

    class Undecided(torch.nn.Module):
        def forward(self, image):
            return Output(logits=torch.zeros(len(image), 2, *image.shape[2:]))

    options, shape = modules[0].Entropy.Options(weight=0.5), NetworkShape(1, 2, ())
    method = modules[0].Entropy([Undecided()], options, shape)
    image = torch.zeros(1, 1, 4, 4, 4)
    batch = Batch(
        Views(image, image, torch.zeros(1, 4, 4, 4, dtype=torch.int64)), Views(image, image)
    )
    assert float(method.losses(batch, 400)["entropy"]) == pytest.approx(0.5 * math.log(2), abs=1e-4)


def test_the_format_of_the_page_round_trips(modules, monkeypatch, tmp_path):
    monkeypatch.setitem(formats.FORMATS, ".npz", "doc_2:NPZ")
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    formats.write(
        Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine), tmp_path / "a.npz"
    )
    header = formats.peek(tmp_path / "a.npz")
    assert header.shape == (2, 3, 4) and header.dtype == np.int16
    volume = formats.read(tmp_path / "a.npz")
    assert (
        volume.array.dtype == np.int16
        and volume.array[1, 2, 3] == 23
        and np.array_equal(volume.affine, affine)
    )


def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    """The lines of the README, on synthetic scans of the names that it uses, with a few steps."""
    monkeypatch.chdir(tmp_path)
    phantom.write_dataset(tmp_path / "scans", cases=4, labelled=3, size=20)
    phantom.write_dataset(tmp_path / "new_scans", cases=1, labelled=0, size=20, seed=9)
    code = blocks("README.md")[0]
    few = json.dumps(DK_UXNET | {"train.steps": 2}).removesuffix("}")
    code, count = re.subn(r"overrides=\{", f"overrides={few}, ", code)
    assert count == 1
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert list((tmp_path / "predictions").glob("*.nii.gz"))


def test_the_two_rounds_of_the_page_on_the_loop_run(tmp_path, monkeypatch):
    """What the page says, in its order, with small scans and one step for three minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(phantom, "make_case", partial(phantom.make_case, size=16))
    text = (ROOT / "docs" / "loop.md").read_text()
    section = text.split("## Try it on synthetic scans")[1].split("\n## ")[0]
    make, stand_in = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    few = [word for key, value in UXNET.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    names: dict[str, object] = {}
    exec(compile(make, "loop.md", "exec"), names)
    for words in commands_of(section):
        at = words.index("--minutes")
        words[at : at + 2] = ["--steps", "1", *few]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        exec(compile(stand_in, "loop.md", "exec"), names)
    runs = [RunFolder(tmp_path / "scans-loop" / f"round-{number}").manifest for number in (1, 2)]
    assert [len(run.split.labelled) for run in runs] == [4, 6]


def test_links_between_the_pages_lead_somewhere():
    written = {"reference/settings.md", "reference/cli.md", "reference/api.md"}  # by the build
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and target not in written:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation():
    index = (ROOT / "docs" / "index.md").read_text()
    listed = "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", index, flags=re.S)).splitlines()
    pages = {page.stem for page in PAGES if page.name not in ("README.md", "index.md")}
    assert pages == {name for name in listed if re.fullmatch(r"[a-z-]+", name)}


def test_the_page_on_the_paper_names_what_there_is():
    rows = re.findall(r"\| `([\w/]+\.py)` \| (.+?) \|", (ROOT / "docs" / "paper.md").read_text())
    assert len(rows) > 15
    for file, names in rows:
        source = (ROOT / "src" / "dkuxnet" / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            last = name.split(".")[-1]
            assert re.search(rf"(def|class) {last}\b|self\.{last} =", source), (file, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_repository_that_a_page_names_exist(page):
    for name in re.findall(
        r"`((?:src|tests|measurements|docs|examples)/[\w./-]+)", page.read_text()
    ):
        gone = name == "measurements/la_mini.py"  # of the revision that the page names
        assert gone or (ROOT / name.rstrip("./")).exists(), name
    wings = "core|machine|data|models|runs|training|prediction|evaluation|report|benchmark"
    for name in re.findall(rf"`((?:{wings}|export|serve|cli)/[\w/]+\.py)`", page.read_text()):
        new = name in (
            "models/methods/entropy.py",
            "models/networks/pointwise.py",
            "data/formats/npz.py",
        )
        assert new or (ROOT / "src" / "dkuxnet" / name).exists(), name
    tests = "\n".join(p.name + p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+?(?:\.py)?)(?:_?\.\.)?`", page.read_text()):
        assert name in tests, name


# --- commands and settings ---


def commands_of(text: str) -> list[list[str]]:
    """Every `dkuxnet ...` line of the blocks of a page, as words without `dkuxnet`."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\$ )?(?:[^`\n]*-m )?dkuxnet (.+)$", joined, flags=re.M)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def check_command(words: list[str]) -> None:
    """Parses a command as the program does, without running it; raises where it would refuse it."""
    group = typer.main.get_command(app)
    name, *rest = words
    if name.startswith("-"):  # of the program itself, as --version
        return
    group.commands[name].make_context(name, list(rest))
    for key in [after for before, after in pairwise(rest) if before == "--set"]:
        load_settings(overrides=dict([parse_override(key)]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_those_of_the_program(page):
    for words in commands_of(page.read_text()):
        try:
            check_command(words)
        except Exception as error:
            raise AssertionError(f"dkuxnet {shlex.join(words)}: {error!r}") from error


@pytest.mark.parametrize(
    "line", ["dkuxnet trian p r", "    dkuxnet train p r --stepps 3", "dkuxnet predict run"]
)
def test_a_command_that_is_none_would_be_noticed(line):
    (words,) = commands_of(line)
    with pytest.raises(Exception, match=r"trian|stepps|inputs"):
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_options_and_settings_within_sentences_exist(page):
    text, group = page.read_text().replace("\\\n", " "), typer.main.get_command(app)
    for words in map(str.split, re.findall(r"`dkuxnet ([a-z][^`]+)`", text)):
        known = {flag for option in group.commands[words[0]].params for flag in option.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}, words
    for section, name in re.findall(r"`(data|augment|train|infer)\.(\w+)(?:=[^`]*)?`", text):
        fields = Settings.model_fields[section].annotation.model_fields
        assert name in fields or f"{section}.{name}" == "train.list", f"{section}.{name}"
    for script, options in re.findall(r"python (measurements/\w+\.py)([^`\n]*)", text):
        source = (ROOT / script).read_text()
        for option in re.findall(r"(--[a-z][a-z-]*)", options):
            assert f'"{option}"' in source, f"{script} has no {option}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_slurm_job_starts_each_process_with_what_it_was_given(tmp_path):
    """By stand-ins for SLURM's programs; tests/test_slurm.py has the real ones."""
    stands_in = {
        "scontrol": 'printf "node%s\\n" 7 8',
        "srun": "while [ ${1#--} != $1 ]; do shift; done\n"
        'SLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NTASKS=8 "$@"',
        "dkuxnet": 'printf "%s\\n" "$@"\n'
        "echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS\n"
        "echo $TORCHELASTIC_RESTART_COUNT",
    }
    for name, body in stands_in.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "61234", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "3"}
    given = ["my scans", "runs/a b", "--set", "train.patch=[16, 16, 16]"]
    told = subprocess.run(
        ["bash", str(ROOT / "examples" / "slurm.sh"), *given],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"} | job,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ["train", *given, "5 1 8 node7 11234 3", "1"]
    assert told.stdout.splitlines() == expected


# --- what is made from the code ---


def test_the_figure_of_the_wings_is_the_table_s():
    figure = generated("figure")
    made = figure["draw"](figure["wings_of_the_tests"]())
    again = "draw it again: python docs/generate/figure.py"
    assert figure["FIGURE"].read_text("utf-8") == made, again


def test_a_wing_without_a_place_in_the_figure_is_noticed():
    figure = generated("figure")
    wings = figure["wings_of_the_tests"]()
    with pytest.raises(KeyError, match="attic"):
        figure["draw"](wings | {"attic": {"core", "models"}, "cli": wings["cli"] | {"attic"}})
    fewer = {name: uses - {"serve"} for name, uses in wings.items() if name != "serve"}
    with pytest.raises(ValueError, match="serve"):
        figure["draw"](fewer)


def test_the_figures_of_the_results_are_those_of_their_tables():
    curves = generated("curves")
    again = "draw them again: python docs/generate/curves.py"
    assert curves["figures"]()
    for picture, table in curves["figures"]().items():
        assert curves["drawn_from"](picture) == table, again
    rows = [row for name, table in curves["choices"]().items() for row in (name, *table)]
    assert len(rows) > 8 and curves["drawn_from"](curves["CHOSEN"]) == rows, again


def test_every_setting_and_option_has_a_default_and_a_meaning():
    pytest.importorskip("sphinx")
    page = generated("reference")["settings_page"]()
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.*?) \|$", page, flags=re.M)
    settings = {name for name, *_ in rows if "." in name}
    known = {key for key, _ in flatten(Settings().model_dump())}
    assert known <= settings | {key for key, _ in flatten({"network": {}, "method": {}})}
    assert len(rows) > 100
    assert [name for name, _, values, said in rows if not said.strip() or not values] == []


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "seen"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tags = r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"'](?:https?:)?//[^\"']*"
    loads = re.compile(tags + r"|url\([\"']?https?:[^)]*|@import[^;]*")
    for page in [*(tmp_path / "site").rglob("*.html"), *(tmp_path / "site").rglob("*.css")]:
        assert loads.findall(page.read_text("utf-8")) == [], page.name
