"""The command line: quick without torch, 1 and one line for a user's mistake, 2 for a wrong
command line.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dkuxnet.cli import commands as cli
from dkuxnet.cli import console
from dkuxnet.cli.commands import all_settings, catalogue
from dkuxnet.core.config import load_settings, presets
from dkuxnet.data.formats import FORMATS
from dkuxnet.data.layouts import LAYOUTS
from dkuxnet.models.methods import METHODS
from dkuxnet.models.networks import NETWORKS
from tiny import UXNET

COMMANDS = (
    *("prepare", "train", "predict", "serve", "export", "evaluate", "report", "benchmark"),
    *("info", "demo"),
)
HEAVY = ("torch", "numpy", "monai", "scipy", "SimpleITK", "nibabel", "matplotlib", "pydantic")
WATCHED = f"""
import sys
from dkuxnet.cli.commands import main
try:
    main()
except SystemExit as stop:
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print(str(loaded).replace("'", '"'), file=sys.stderr)
    sys.exit(stop.code)
"""


@pytest.fixture
def dkuxnet(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dkuxnet", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def process(code: str, *args) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120
    )


# --- what needs no torch ---


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("-h",),
        ("--version",),
        ("info",),
        ("info", "--json"),
        ("train", "-h"),
        ("train",),
    ],
    ids=str,
)
def test_help_and_lists_import_nothing_heavy(args):
    done = process(WATCHED, *args)
    assert done.returncode == (2 if args == ("train",) else 0), done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not loaded - {"numpy", "pydantic"}  # for the tables' names, and typer's for arguments
    if args[0].startswith("-"):
        assert not loaded


def test_a_wrong_setting_is_told_without_torch(tmp_path):
    done = process(
        WATCHED.replace("SystemExit as stop", "BaseException as stop"),
        "train",
        tmp_path,
        tmp_path / "run",
        "--preset",
        "demmo",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: unknown preset 'demmo'; did you mean 'demo'? known: " + ", ".join(presets()),
        '["pydantic"]',
    ]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(dkuxnet, option):
    code, out, _ = dkuxnet(option)
    assert code == 0
    for command in COMMANDS:
        assert f" {command} " in out
        assert "Usage" in dkuxnet(command, option)[1]


def test_the_version_is_that_of_the_package(dkuxnet):
    assert dkuxnet("--version") == (0, f"dkuxnet {metadata.version('dkuxnet')}\n", "")


def test_a_shell_can_complete_commands(monkeypatch, capsys):
    monkeypatch.setenv("_DKUXNET_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dkuxnet pre")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        cli.app(prog_name="dkuxnet")
    assert capsys.readouterr().out.split() == ["prepare", "predict"]


def test_a_missing_extra_is_one_line(dkuxnet, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dkuxnet.core.extras.find_spec", lambda name: None if name == "uvicorn" else name
    )
    told = "error: this needs uvicorn: pip install '.[serve]' in a clone of the repository of "
    assert dkuxnet("serve", tmp_path) == (1, "", f"{told}dkuxnet\n")


@pytest.mark.parametrize("args", [("info",), ("info", "--json")], ids=str)
def test_info_names_every_entry_of_every_table(dkuxnet, args):
    code, out, err = dkuxnet(*args)
    assert (code, err) == (0, "")
    tables = {
        "networks": NETWORKS,
        "methods": METHODS,
        "formats": FORMATS,
        "layouts": LAYOUTS,
        "presets": presets(),
    }
    if "--json" in args:
        assert (
            json.loads(out)
            == catalogue()
            == {"version": metadata.version("dkuxnet")}
            | {what: list(names) for what, names in tables.items()}
        )
    else:
        assert out.splitlines()[1:] == [
            f"{what:9} {', '.join(names)}" for what, names in tables.items()
        ]


# --- a user's mistake: exit code 1 and one line ---


@pytest.fixture
def places(scans: Path, prepared: Path, tmp_path: Path) -> dict[str, Path]:
    """What the mistakes below refer to by name."""
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    (tmp_path / "broken.toml").write_text("[train\n")
    (tmp_path / "wrong.toml").write_text("[train]\nstepz = 3\n")
    (tmp_path / "grid.toml").write_text("labelled = [1]\nseeds = [0]\n[methods.supervised]\n")
    (tmp_path / "split.json").write_text('{"train": ["phantom_000", "nobody"]}')
    return {"SCANS": scans, "PREPARED": prepared, "NEW": tmp_path / "new"} | {
        name.upper().split(".")[0]: tmp_path / name
        for name in ("file", "full", "broken.toml", "wrong.toml", "grid.toml", "split.json")
    }


TRAIN = (
    "train PREPARED NEW --device cpu --network uxnet-tiny --method supervised "
    "--set train.patch=[16,16,16] --steps 1"
)
UNSURE = "the model is unsure of"  # after a step or two it is
MISTAKES = {
    "prepare NEW/none NEW": ["none: expected a folder of scans"],
    "prepare FILE NEW": ["this is a file"],
    "prepare FULL NEW": ["expected scans in one of the layouts", "notes.txt"],
    "prepare SCANS FULL": ["exists already"],
    "prepare SCANS FILE/deep": ["cannot write there"],
    "prepare SCANS NEW --layout nnunett": ["unknown layout 'nnunett'; did you mean 'nnunet'"],
    "prepare SCANS NEW --spacing-mm 0": [
        "--spacing-mm must be a number above 0, or three with commas between them, got 0.0"
    ],
    "train NEW/none NEW": ["is not a prepared data set; run dkuxnet prepare"],
    f"{TRAIN} --method supervized": ["unknown method 'supervized'; did you mean 'supervised'?"],
    f"{TRAIN} --network uxnet-tini": ["unknown network 'uxnet-tini'; did you mean 'uxnet-tiny'?"],
    f"{TRAIN} --set train.stepz=3": ["unknown setting 'train.stepz'; did you mean 'train.steps'?"],
    f"{TRAIN} --set method.rampp=3": ["unknown setting in method.supervised: 'rampp'"],
    f"{TRAIN} --set train.steps": ["--set expects key=value", "train.steps"],
    f"{TRAIN} --set train.lr=fast": ["setting train.lr", "'fast'"],
    f"{TRAIN} --set train.patch=[16,16,17]": [
        "train.patch",
        "must be multiples of [4, 4, 4], got [16, 16, 17]; [16, 16, 20]",
    ],
    f"{TRAIN} --config BROKEN": ["broken.toml: not a TOML file"],
    f"{TRAIN} --config WRONG": ["unknown setting 'train.stepz'"],
    f"{TRAIN} --config NEW/none.toml": ["none.toml: cannot read the settings"],
    f"{TRAIN} --labelled 4": ["--labelled 4: the training pool has 3 labelled cases of 5"],
    f"{TRAIN} --split SPLIT": ["'nobody' is not in the prepared data set"],
    f"{TRAIN} --split NEW/none.json": ["none.json: cannot read the split"],
    f"{TRAIN} --device cuda:99": ["cuda:99", "not available here"],
    f"{TRAIN} --device gpu": ["gpu", "not available here"],
    TRAIN.replace("--steps 1", "--minutes 0"): ["--minutes must be a number above 0, got 0"],
    TRAIN.replace("--steps 1", "--minutes -3"): ["--minutes must be a number above 0, got -3"],
    TRAIN.replace("--steps 1", "--minutes nan"): ["--minutes must be a number above 0, got nan"],
    TRAIN.replace("--steps 1", "--minutes inf"): ["--minutes must be a number above 0, got inf"],
    TRAIN.replace("--steps 1", "--minutes 1e-6"): [
        "0 steps of ",
        " s fit into 1e-06 minutes, and a training has at least 10: give --minutes ",
    ],
    TRAIN.replace("NEW", "FULL").replace("--steps 1", "--minutes 1"): ["full exists already"],
    TRAIN.replace("NEW", "FULL"): ["full exists already; choose another run folder"],
    TRAIN.replace("NEW", "FILE/run"): ["cannot write"],
    "train PREPARED FULL --resume": ["is not a run folder"],
    "predict NEW/run NEW/scan.nii.gz --output NEW": [
        "scan.nii.gz does not exist; give a scan or a folder of scans"
    ],
    "predict FULL SCANS --output NEW": [
        "is not a run folder (no settings.json); dkuxnet train makes one"
    ],
    "predict FULL SCANS --output NEW --margin-mm 20": [
        "name that with --localise, or leave the margin out"
    ],
    "predict FULL SCANS --output NEW --segmentation-type binary": [
        "--segmentation-type is",
        "add --format dicom-seg",
    ],
    "predict FULL SCANS --output NEW --tta miror": ["infer.tta", "'scale', got 'miror'"],
    "predict FULL SCANS --output NEW --overlap 1": ["infer.overlap", "less than 1, got 1"],
    "predict FULL SCANS --output NEW --min-ml organ=-1": ["infer.min_ml", "ml from 0 on"],
    "predict FULL SCANS --output NEW --set train.lr=1": ["infer.* alone can be set"],
    f"{TRAIN} --folds 4": ["--folds 4: expected 2 to 3, the number of labelled cases"],
    f"{TRAIN} --patience 2": ["train.patience=2 needs validation cases"],
    f"{TRAIN} --set loss.class_weights.liver=2": ["unknown class in loss.class_weights 'liver'"],
    f"{TRAIN} --metrics nsd": ["'organ' has none; give --tolerance-mm"],
    "evaluate NEW/none SCANS/labelsTr": ["none"],
    "evaluate FULL SCANS/labelsTr": ["expected a folder of label maps", "predict first"],
    "evaluate SCANS/labelsTr SCANS/labelsHidden": ["with the same names"],
    "evaluate SCANS/labelsTr SCANS/labelsTr --output FILE/x.json": ["x.json: cannot be written"],
    "report FULL": ["is not a run folder"],
    "report NEW/none": ["is not a run folder"],
    "benchmark NEW/none.toml": ["none.toml: cannot read the settings"],
    "benchmark BROKEN": ["broken.toml: not a TOML file"],
    "benchmark WRONG": ["wrong.toml: unknown key 'train'"],
    "benchmark GRID --output NEW": ["names no folder as prepared", "--prepared"],
    "benchmark GRID --prepared FULL --output NEW": [
        "is not a prepared data set; run dkuxnet prepare"
    ],
    "benchmark GRID --prepared PREPARED --output NEW": ["the test list is empty"],
    "demo FULL": ["exists already", "dkuxnet demo DIR"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_makes_nothing(dkuxnet, places, line):
    def fill(word: str) -> str:
        name, slash, rest = word.partition("/")
        return f"{places[name]}{slash}{rest}" if name in places else word

    before = sorted(places["FILE"].parent.rglob("*"))
    code, out, err = dkuxnet(*map(fill, line.split()))
    assert code == 1, out + err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    for part in MISTAKES[line]:
        assert part in err
    assert sorted(places["FILE"].parent.rglob("*")) == before


@pytest.mark.parametrize("rank, who", [(None, ""), ("1", "process 1 of 2: ")])
def test_one_of_several_processes_says_which_it_is(dkuxnet, tmp_path, monkeypatch, rank, who):
    """A job's script may set WORLD_SIZE for programs of its own: without a rank that says nothing
    of this one.
    """
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    code, _, err = dkuxnet("report", tmp_path)
    assert code == 1 and err.startswith(f"error: {who}{tmp_path} is not a run folder")


def test_the_installed_command_reports_a_mistake_likewise(tmp_path):
    command = Path(sys.executable).with_name("dkuxnet")
    done = subprocess.run(
        [command, "prepare", tmp_path / "none", tmp_path / "new"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# --- a wrong command line: exit code 2 ---


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ("trian", "trian"),
        ("train", "Missing argument"),
        ("train a b --stepz 3", "--stepz"),
        ("train a b --steps many", "'--steps'"),
        ("train a b --resume --seed 3", "--resume takes the settings of the run"),
        ("train a b --minutes 3 --steps 9", "--minutes does not go with the number of steps"),
        ("train a b --minutes 3 --set train.steps=9", "--minutes does not go with the number of"),
        ("train a b --minutes 3 --resume", "--minutes does not go with --resume"),
        ("train a b --minutes long", "'--minutes'"),
        ("train a b --resume --preset demo", "--resume takes the settings of the run"),
        ("prepare a", "Missing argument"),
        ("prepare a b --processes 0", "--processes"),
        ("prepare a b --spacing-mm wide", "'--spacing-mm'"),
        ("prepare a b --spacing-mm 1,wide,3", "expected a number, or three: 1.5,1.5,10"),
        ("predict a b", "--output"),
        ("predict a --output c", "Missing argument"),
        ("predict a b --output c --margin-mm wide", "'--margin-mm'"),
        ("predict a --dicomweb http://c", "--dicomweb needs the study"),
        ("predict a b --dicomweb http://c --study 1.2", "leave out the others"),
        ("predict a b --output c --study 1.2", "are for an archive"),
        ("watch a", "--dicomweb"),
        ("evaluate a", "Missing argument"),
        ("report", "Missing argument"),
        ("benchmark", "Missing argument"),
        ("benchmark a --processes 0", "--processes"),
        ("info --jsn", "--jsn"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(dkuxnet, args, part):
    code, _, err = dkuxnet(*args.split())
    assert code == 2
    assert part in err and "Traceback" not in err


# --- the chain ---


def test_the_commands_work_one_after_the_other(dkuxnet, scans, tmp_path):
    prepared, run, predictions = (tmp_path / name for name in ("prepared", "run", "predictions"))
    folds = tmp_path / "folds"
    steps = [
        ("prepare", scans, prepared, "--processes", 1),
        ("train", prepared, run, *TRAIN.split()[3:], "--set", "infer.overlap=0"),
        ("train", prepared, folds, *TRAIN.split()[3:], "--folds", 2, "--metrics", "volume"),
        (
            "predict",
            run,
            scans / "imagesTr",
            "--output",
            predictions,
            "--device",
            "cpu",
            "--save-uncertainty",
            *("--volumes", tmp_path / "v.csv", "--min-ml", "organ=0.01,tumour=0", "--overlap", 0.2),
        ),
        (
            "evaluate",
            predictions,
            tmp_path / "labels",
            "--output",
            tmp_path / "s.json",
            "--csv",
            tmp_path / "s.csv",
        ),
        ("report", run),
    ]
    (tmp_path / "labels").mkdir()
    for path in (*scans.glob("labelsTr/*"), *scans.glob("labelsHidden/*")):
        (tmp_path / "labels" / path.name).symlink_to(path)
    said = []
    for step in steps:
        code, out, err = dkuxnet(*step)
        told = [line for line in err.splitlines() if UNSURE not in line]
        assert (code, told) == (0, []), err
        said.append(out)
    assert "5 cases prepared" in said[0] and "3 with a label" in said[0]
    assert "supervised with uxnet-tiny: 1 steps" in said[1]
    assert "3 cases" in said[2] and "volume error (ml)" in said[2]
    predict = shlex.split(said[2].splitlines()[-1].removeprefix("next: dkuxnet "))
    assert predict[:2] == ["predict", str(folds)]
    assert f"5 label maps in {predictions}" in said[3].replace("\n", "")
    volumes = (tmp_path / "v.csv").read_text().splitlines()
    assert volumes[0] == "case,organ,tumour" and len(volumes) == 6
    assert "organ" in said[4] and "95HD (mm)" in said[4]
    assert (
        len(list(predictions.glob("*.nii.gz")))
        == 5
        == len(list(predictions.glob("uncertainty/*.nii.gz")))
    )
    assert json.loads((tmp_path / "s.json").read_text())["n_cases"] == 5
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 5 * 2
    assert (run / "report.html").is_file()


def printed(said: str, begin: str) -> list[list[str]]:
    """The commands on the lines that begin so, as words."""
    lines = [line.removeprefix(begin) for line in said.splitlines() if line.startswith(begin)]
    return [shlex.split(line.removeprefix("dkuxnet ")) for line in lines]


TEST_OF_THREE = {"train": [f"phantom_00{i}" for i in (0, 1, 3, 4)], "test": ["phantom_002"]}


@pytest.mark.parametrize(
    "labels, options",
    [
        (3, []),
        (3, ["--test-cases", "1"]),
        (3, ["--split", "the split.json"]),
        (5, []),
        (5, ["--test-cases", "2"]),
    ],
)
def test_every_next_step_that_is_printed_runs(
    dkuxnet, scans, tmp_path, monkeypatch, labels, options
):
    """Prepare, train, stop, go on, report and predict, each as the one before says."""
    from dkuxnet.cli import launch
    from dkuxnet.training import loop
    from dkuxnet.training.job import new_job

    monkeypatch.chdir(tmp_path)
    source = shutil.copytree(scans, tmp_path / "my scans")
    for path in [*(source / "labelsHidden").iterdir()][: labels - 3]:
        shutil.copy(path, source / "labelsTr")
    (tmp_path / "the split.json").write_text(json.dumps(TEST_OF_THREE))
    _, out, _ = dkuxnet("prepare", source, "a set", *options)
    [order] = printed(out, "next: ")
    run = order[2]
    made = [f"{key}={json.dumps(value)}" for key, value in (UXNET | {"train.steps": 2}).items()]
    tiny = [word for each in made for word in ("--set", each)]
    with monkeypatch.context() as patched:
        trainings = []
        patched.setattr(
            launch,
            "run_training",
            lambda prepared, run, settings, *rest: trainings.append(new_job(prepared, settings)),
        )
        patched.setattr(launch, "show_trained", lambda *shown: None)
        assert dkuxnet(*order)[0] == 0
    [job] = trainings
    assert job.split.unlabelled and len(job.split.test) == (
        0 if not options else int(options[1]) if options[1].isdigit() else 1
    )
    with monkeypatch.context() as patched:
        patched.setattr(loop, "any_rank", lambda asked, device: True)  # as by Ctrl-C
        code, _, err = dkuxnet(*order, *tiny)
    assert code == 130, err
    [again] = printed(err, "Go on with: ")
    code, out, err = dkuxnet(*again)
    assert (code, err) == (0, "")
    report, predict = printed(out, "next: ")
    place = predict.index("SCANS")
    predict[place : place + 1] = [str(source / "imagesTr" / "phantom_000_0000.nii.gz")]
    for step in (report, predict):
        code, _, err = dkuxnet(*step)
        told = [line for line in err.splitlines() if UNSURE not in line]
        assert (code, told) == (0, []), step
    assert (tmp_path / run / "report.html").is_file()


def test_the_demonstration_ends_with_commands_that_there_are(dkuxnet, prepared, tmp_path, capsys):
    counts = {"test_cases": 1, "labelled": 1, "unlabelled": 1, "train_seconds": 1.0}
    console.show_demo(counts | {"folder": tmp_path, "summary": {}, "found": {}, "files": {}})
    orders = printed(capsys.readouterr().out, "  dkuxnet ")
    assert [order[0] for order in orders] == ["prepare", "train", "predict", "report"]
    for order in orders:
        code, _, err = dkuxnet(*order)
        assert code == 1 and re.fullmatch("error: .*(scans|SCANS|prepared|runs/first).*\n", err)


def test_a_log_of_plain_ascii_takes_any_name(scans, tmp_path):
    prepared = tmp_path / "Prüfung"
    told = subprocess.run(
        [sys.executable, "-m", "dkuxnet", "prepare", str(scans), str(prepared)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert told.returncode == 0 and rb"Pr\xfcfung" in told.stdout and prepared.is_dir()


def test_a_stopped_training_ends_with_130_and_says_how_to_go_on(
    dkuxnet, prepared, tmp_path, monkeypatch
):
    from dkuxnet.cli import launch
    from dkuxnet.training.loop import Interrupted

    def stop(*_):
        raise Interrupted("stopped at step 1 of 5")

    monkeypatch.setattr(launch, "run_training", stop)
    code, _, err = dkuxnet("train", prepared, tmp_path / "run")
    assert code == 130
    assert err.splitlines() == [
        "stopped at step 1 of 5",
        f"Go on with: dkuxnet train {prepared} {tmp_path / 'run'} --resume",
    ]
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "8")  # by torchrun or SLURM
    told = "dkuxnet train set run --resume, in 8 processes as before"
    assert launch.again(Path("set"), Path("run")) == told


def test_info_lists_settings_as_set_takes_them():
    values = all_settings("la-mini")
    assert values["train.steps"] == 800 and values["augment.strong.noise"] == 0.2
    chosen = load_settings(overrides={key: v for key, v in values.items() if v is not None})
    assert chosen.model_dump() == load_settings("la-mini").model_dump()
