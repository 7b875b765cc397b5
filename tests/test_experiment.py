"""The whole job on tiny synthetic scans: exact resume, labels that stay shut, a run that can be
used without its data.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import described
from dkuxnet.cli.launch import check_begun_here
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError, data_warnings
from dkuxnet.core.schemas import Postprocessing
from dkuxnet.core.types import HALVINGS, NetworkShape
from dkuxnet.data import formats
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet, write_array
from dkuxnet.evaluation.evaluate import evaluate_folders
from dkuxnet.machine.devices import choose_device
from dkuxnet.machine.lock import locked
from dkuxnet.machine.memory import forget_peak_memory
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.dual_mutual import DualMutual
from dkuxnet.models.methods.losses import PLAIN, LossForm
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.prediction.predictor import load_predictor
from dkuxnet.prediction.windows import GridPrediction
from dkuxnet.report.words import tell
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training import coarse, experiment, postprocessing, scoring
from dkuxnet.training.experiment import run_training
from dkuxnet.training.job import new_job, resumed_job
from dkuxnet.training.loop import NotFinite
from dkuxnet.training.optimiser import learning_rate
from dkuxnet.training.shape import flat_for, patch_for, strides_for
from tiny import DK_UXNET, dotted, prepared_phantoms

TINY = DK_UXNET | {
    "train.labelled_batch": 1,
    "train.unlabelled_batch": 1,
    "train.steps": 8,
    "train.log_every": 2,
    "train.reference_cases": 0,
    "train.warm_up_steps": 2,
    "method.name": "dual-mutual",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepared_phantoms(tmp_path_factory.mktemp("phantoms"), cases=6, labelled=5)


@pytest.fixture(scope="module")
def scans(prepared):
    return prepared.parent / "scans"


def settings(**overrides):
    return load_settings(overrides=TINY | dotted(overrides))


def weights(run, name="final"):
    return load_file(run / f"{name}.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


HALVES = """
import json, os, signal, sys, pathlib, torch
from dkuxnet.core.config import load_settings
from dkuxnet.training.experiment import run_training
from dkuxnet.training.loop import Interrupted
prepared, resume = pathlib.Path(sys.argv[1]), sys.argv[2] == "resume"
torch.set_num_threads(int(sys.argv[4]))
for run, overrides in json.loads(sys.argv[3]):
    def stop(what, done, total, figures):
        if 2 * done == total and not resume: os.kill(os.getpid(), signal.SIGINT)  # as by Ctrl-C
    try: run_training(prepared, pathlib.Path(run), load_settings(overrides=overrides), resume, stop)
    except Interrupted: pass
"""


def resumed_overrides(method):
    """With moving average and stochastic depth; test_loop.py has dropout and running statistics."""
    chosen = TINY | {
        "method.name": method,
        "train.average": 0.9,
        "train.steps": 4,
        "data.labelled": 2,
        "network.drop_rate": 0.2,
    }
    if method == "bcp":
        chosen |= {
            "method.pretrain_steps": 1
        }  # so that its teacher labels before and after the break
    if method == "ad-mt":
        chosen |= {"method.period": 1}  # so that its teachers take turns before and after it
    return chosen


@pytest.fixture(scope="module")
def halves(prepared, tmp_path_factory):
    """A run of each method, its first half by one process and its second by another."""
    folder = tmp_path_factory.mktemp("halves")
    runs = [(str(folder / method), resumed_overrides(method)) for method in METHODS]
    told, threads = json.dumps(runs), str(torch.get_num_threads())
    for mode in ("first", "resume"):
        subprocess.run([sys.executable, "-c", HALVES, prepared, mode, told, threads], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_all_steps_are_half_of_them_saved_and_the_rest_in_a_new_process(
    prepared, halves, tmp_path, method
):
    run_training(prepared, tmp_path / "whole", load_settings(overrides=resumed_overrides(method)))
    resumed = halves / method
    assert same(weights(tmp_path / "whole"), weights(resumed))

    def logged(run):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert logged(tmp_path / "whole") == logged(resumed)


def test_labels_beyond_the_first_n_are_never_opened(prepared, tmp_path):
    """Replaced by garbage: the same run, bit for bit."""
    spoilt = shutil.copytree(prepared, tmp_path / "spoilt")
    names = PreparedSet(prepared).names
    for name in names[2:5]:
        for kind in ("label", "truth"):
            path = spoilt / "cases" / f"{name}.{kind}.b2nd"
            path.unlink()
            path.write_bytes(b"garbage")
    for folder in (prepared, spoilt):
        run_training(folder, tmp_path / f"run_{folder.name}", settings(data__labelled=2))
    assert same(weights(tmp_path / "run_prepared"), weights(tmp_path / "run_spoilt"))


def test_the_test_list_has_no_say_in_training_and_the_checkpoint(prepared, tmp_path):
    """Test cases replaced by noise: the same final and the same best weights."""
    spoilt = shutil.copytree(prepared, tmp_path / "spoilt")
    split = tmp_path / "split.json"
    names = PreparedSet(prepared).names
    split.write_text(
        json.dumps({"train": [*names[:3], names[5]], "validation": [names[3]], "test": [names[4]]})
    )
    cases, meta = spoilt / "cases", json.loads((spoilt / "dataset.json").read_text())
    sha256 = meta["cases"][names.index(names[4])]["sha256"]
    rng = np.random.default_rng(0)
    image = PreparedSet(prepared).array(names[4], "image")
    for kind, array in (
        ("image", rng.normal(size=image.shape).astype(np.float32)),
        ("label", rng.integers(0, 3, image.shape[1:]).astype(np.uint8)),
    ):
        (cases / f"{names[4]}.{kind}.b2nd").unlink()
        sha256[f"{kind}.b2nd"] = write_array(cases / f"{names[4]}.{kind}.b2nd", array)
    (spoilt / "dataset.json").write_text(json.dumps(meta))
    for folder in (prepared, spoilt):
        run_training(
            folder,
            tmp_path / f"run_{folder.name}",
            settings(data__split=str(split), train__validate_every=4),
        )
    for name in ("final", "best"):
        assert same(
            weights(tmp_path / "run_prepared", name), weights(tmp_path / "run_spoilt", name)
        )


def test_the_number_of_workers_changes_nothing(prepared, tmp_path):
    for workers in (0, 2):
        run_training(
            prepared, tmp_path / str(workers), settings(data__workers=workers, data__labelled=2)
        )
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_the_seed_decides(prepared, tmp_path):
    for seed in (0, 1):
        run_training(prepared, tmp_path / str(seed), settings(train__seed=seed, train__steps=2))
    assert not same(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_a_run_predicts_as_it_was_evaluated(scans, prepared, tmp_path):
    """`predict` on the raw scan gives the label map that the run's own evaluation wrote, and the
    same scores.
    """
    run = tmp_path / "run"
    manifest = run_training(
        prepared,
        run,
        settings(
            data__labelled=3,
            data__split=str(split_with_test(prepared, tmp_path)),
            train__steps=40,
            train__lr=0.01,
        ),
    )
    name = manifest.split.test[0]
    written = predict_scans(run, [scans / "imagesTr" / f"{name}_0000.nii.gz"], tmp_path / "out")
    ours = formats.read(written[0], "label")
    theirs = formats.read(run / "evaluation" / "predictions" / f"{name}.nii.gz", "label")
    assert ours.array.any() and np.array_equal(ours.array, theirs.array)
    np.testing.assert_allclose(
        ours.affine, formats.read(scans / "imagesTr" / f"{name}_0000.nii.gz").affine, atol=1e-5
    )
    scores = evaluate_folders(tmp_path / "out", scans / "labelsTr").summary()
    assert scores["organ"]["dice"].mean == pytest.approx(manifest.test["organ"]["dice"].mean)
    maps = run / "evaluation" / "maps"
    uncertainty, groups = (
        formats.read(maps / kind / f"{name}.nii.gz") for kind in ("uncertainty", "groups")
    )
    info = PreparedSet(prepared).info(name)
    assert uncertainty.shape == PreparedSet(prepared).shape(name) and groups.array.shape == (
        3,
        *uncertainty.shape,
    )
    np.testing.assert_allclose(uncertainty.affine, info.prepared_affine, atol=1e-4)
    assert uncertainty.array.dtype == groups.array.dtype == np.uint8 and uncertainty.array.max() > 0
    assert abs(groups.array.astype(int).sum(axis=0) - 255).max() <= 2  # a distribution, rounded


def split_with_validation(prepared, tmp_path):
    names = PreparedSet(prepared).names
    path = tmp_path / "with_validation.json"
    lists = {"train": names[:3], "validation": [names[3]], "test": [names[4]]}
    path.write_text(json.dumps(lists))
    return path


def test_what_validation_chose_is_what_evaluation_prediction_and_exports_take(
    scans, prepared, tmp_path, monkeypatch
):
    run, scores = tmp_path / "run", iter([0.1, 0.9, 0.2])
    monkeypatch.setattr(experiment, "validation_dice", lambda *job: next(scores))
    monkeypatch.setattr(
        postprocessing,
        "chosen",
        lambda *tables: Postprocessing(
            largest_component=(), min_ml={"organ": 0.1}, dice_before={}, dice_after={"organ": 0.5}
        ),
    )
    split = str(split_with_validation(prepared, tmp_path))
    steps = {"train__steps": 30, "train__validate_every": 10, "train__lr": 0.01}
    one = {"method__name": "supervised"}
    manifest = run_training(prepared, run, settings(data__split=split, **steps, **one))
    assert not same(weights(run, "best"), weights(run)) and manifest.weights == "best"
    [name] = manifest.split.test
    scan = scans / "imagesTr" / f"{name}_0000.nii.gz"
    chosen = manifest.postprocessing
    assert chosen == Postprocessing(
        largest_component=(), min_ml={"organ": 0.1}, dice_before={}, dice_after={"organ": 0.5}
    )
    of = {None: [], "best": [], "final": []}
    for chosen in of:
        [written] = predict_scans(run, [scan], tmp_path / f"out {chosen}", weights=chosen)
        of[chosen] = formats.read(written, "label").array
    theirs = formats.read(run / "evaluation" / "predictions" / f"{name}.nii.gz", "label").array
    as_set = {"postprocessing": "set"}  # without what was chosen there are smaller pieces
    [written] = predict_scans(run, [scan], tmp_path / "as set", infer=as_set)
    assert not np.array_equal(of[None], formats.read(written, "label").array)
    assert np.array_equal(of[None], of["best"]) and np.array_equal(of[None], theirs)
    assert not np.array_equal(of[None], of["final"])
    assert "chose the weights" in " ".join(tell(settings(), manifest, 30, True))
    folder = RunFolder(run)
    assert folder.choose_weights() == "best" and folder.choose_weights("final") == "final"
    (run / "final.safetensors").unlink()  # as before the training has ended
    with pytest.raises(UserError, match="`final` comes at the end of a training"):
        load_predictor(run)


def test_a_run_without_validation_is_its_final_weights(prepared, tmp_path):
    run = tmp_path / "run"
    assert run_training(prepared, run, settings(train__steps=1)).weights == "final"
    shutil.copy(run / "final.safetensors", run / "best.safetensors")  # a stray file says nothing
    assert RunFolder(run).choose_weights() == "final"


@pytest.mark.parametrize("largest, expected", [(False, 0.8), (True, 1.0)])
def test_validation_scores_what_would_be_predicted(prepared, monkeypatch, largest, expected):
    job = new_job(prepared, settings(data__validation_cases=1, infer__largest_component=largest))
    truth = np.zeros((8, 8, 8), np.int64)
    truth[2:4, 2:4, 2:4], truth[5:7, 5:7, 5:7] = 1, 2
    found = truth.copy()
    found[0, 0, 0:4] = found[7, 0, 0:4] = 1, 1, 2, 2  # stray voxels
    prob = np.eye(3)[found].transpose(3, 0, 1, 2)
    monkeypatch.setattr(coarse, "sliding_window", lambda *window: GridPrediction(prob))
    monkeypatch.setattr(job.validation, "array", lambda name, kind: truth)
    assert scoring.validation_dice(torch.nn.Identity(), job) == pytest.approx(expected)


@pytest.mark.parametrize(
    "more, told",
    [
        ({"train__patience": 2}, "train.patience=2 needs validation cases"),
        ({"loss__class_weights": {"liver": 2}}, r"unknown class in loss\.class_weights 'liver'"),
        ({"infer__min_ml": {"liver": 2}}, r"unknown class in infer\.min_ml 'liver'"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(prepared, more, told):
    with pytest.raises(UserError, match=told):
        new_job(prepared, settings(**more))


def test_the_loss_on_labels_has_the_form_that_is_set(prepared):
    plain = experiment.make_method(new_job(prepared, settings()))
    job = new_job(prepared, settings(loss__class_weights={"tumour": 5}, loss__tversky=0.7))
    formed = experiment.make_method(job)
    assert plain.form == PLAIN and formed.form == LossForm((1.0, 1.0, 5.0), 0.0, 0.7)
    batch = next(experiment.batches(job, 0))
    assert formed.losses(batch, 0)["seg"] > plain.losses(batch, 0)["seg"]


def split_with_test(prepared, tmp_path):
    names = PreparedSet(prepared).names
    path = tmp_path / "with_test.json"
    path.write_text(json.dumps({"train": names[:4], "test": [names[4]]}))
    return path


def test_a_resumed_run_of_another_network_is_refused(prepared, tmp_path):
    run = tmp_path / "run"
    run_training(prepared, run, settings(train__steps=2))
    stored = json.loads((run / "settings.json").read_text())
    stored["network"]["widths"] = [8, 8, 8, 16]
    (run / "settings.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="another network"):
        run_training(prepared, run, settings(), resume=True)
    with pytest.raises(UserError, match="another network"):
        load_predictor(run)


def test_a_resumed_run_goes_on_with_its_own_split_and_refuses_other_data(scans, prepared, tmp_path):
    run, split = tmp_path / "run", split_with_test(prepared, tmp_path)
    before = run_training(prepared, run, settings(train__steps=2, data__split=str(split)))
    split.unlink()  # what it said stands in the manifest
    assert run_training(prepared, run, settings(), resume=True).split == before.split
    prepare_scans(scans, tmp_path / "other", spacing_mm=4.0, processes=1)
    with pytest.raises(UserError, match="another data set"):
        run_training(tmp_path / "other", run, settings(), resume=True)


def test_a_resumed_run_refuses_other_arrays_of_the_same_names_but_for_labels_that_it_never_opens(
    prepared, tmp_path
):
    run, other = tmp_path / "run", shutil.copytree(prepared, tmp_path / "other")
    split = str(split_with_test(prepared, tmp_path))
    run_training(prepared, run, settings(train__steps=2, data__labelled=2, data__split=split))
    content = json.loads((other / "dataset.json").read_text("utf-8"))

    def mend(case: dict, kind: str) -> None:
        label = PreparedSet(prepared).array(case["name"], kind)
        case["sha256"][f"{kind}.b2nd"] = write_array(
            other / "cases" / f"{case['name']}.{kind}.b2nd", label[::-1]
        )
        (other / "dataset.json").write_text(json.dumps(content), "utf-8")

    mend(content["cases"][2], "label")  # unlabelled in this run
    run_training(other, run, settings(), resume=True)
    for index, kind in ((4, "truth"), (0, "label")):
        before = dict(content["cases"][index]["sha256"])
        mend(content["cases"][index], kind)
        with pytest.raises(
            UserError, match="trained on other scans or labels than those of the same names"
        ):
            run_training(other, run, settings(), resume=True)
        content["cases"][index]["sha256"] = before


def test_a_run_from_before_there_were_checksums_in_manifests_goes_on(prepared, tmp_path):
    run = tmp_path / "run"
    run_training(prepared, run, settings(train__steps=2))
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    del manifest["arrays_sha256"]
    (run / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    run_training(prepared, run, settings(), resume=True)


def test_a_run_that_fails_before_it_saves_leaves_no_folder(prepared, tmp_path):
    spoilt = shutil.copytree(prepared, tmp_path / "spoilt")
    (spoilt / "cases" / f"{PreparedSet(prepared).names[0]}.image.b2nd").write_bytes(b"garbage")
    with pytest.raises(UserError, match="is damaged"):
        run_training(spoilt, tmp_path / "run", settings())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option, value", [("query_channels", 30), ("heads", 0), ("heads", 3)])
def test_sizes_that_no_network_can_have_are_one_clear_line(prepared, tmp_path, option, value):
    with pytest.raises(UserError, match=r"network.*dk-uxnet-tiny"):
        run_training(prepared, tmp_path / "run", settings(**{f"network__{option}": value}))


def test_a_run_goes_on_to_more_steps_with_their_learning_rate(prepared, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    run_training(prepared, run, settings(data__labelled=2, train__steps=4))
    with pytest.raises(UserError, match="has done 4 steps: --steps 3 leaves none"):
        run_training(prepared, run, settings(), resume=True, steps=3)
    bits, shown = (run / "final.safetensors").read_bytes(), (run / "settings.json").read_bytes()
    with data_warnings() as told:  # the same number changes nothing
        run_training(prepared, run, settings(), resume=True, steps=4)
    assert not told and (run / "final.safetensors").read_bytes() == bits
    assert (run / "settings.json").read_bytes() == shown
    with data_warnings() as told:
        manifest = run_training(prepared, run, settings(), resume=True, steps=8)
    assert manifest.steps_done == 8 and manifest.planned_steps == (4, 8)
    expected = learning_rate(4, settings(train__steps=8).train)
    assert told == [
        "the learning rate falls over 8 steps instead of 4 now: from step 4 on it is "
        f"{expected:.3g} instead of 0"
    ]
    run_training(prepared, whole, settings(data__labelled=2, train__steps=8))
    rates = [[row["lr"] for row in RunFolder(each).metrics()[-2:]] for each in (run, whole)]
    assert rates[0] == rates[1] and not same(weights(run), weights(whole))
    assert RunFolder(run).settings.train.steps == 8
    edited = json.loads((run / "settings.json").read_text("utf-8"))
    edited["train"]["steps"] = 9
    (run / "settings.json").write_text(json.dumps(edited), "utf-8")
    with pytest.raises(
        UserError, match=r"has 9 steps, but the run is one of 8; .*--resume --steps"
    ):
        run_training(prepared, run, settings(), resume=True)
    manifest = run_training(prepared, run, settings(), resume=True, steps=9)
    assert manifest.planned_steps == (4, 8, 9)


@pytest.mark.parametrize(
    "chosen, said",
    [
        ({}, "dual-mutual learns from unlabelled scans, and there is none: .*--labelled N"),
        (
            {"data__labelled": 2, "train__unlabelled_batch": 0},
            "and train.unlabelled_batch is 0: .*leave that setting out",
        ),
        (
            {"data__labelled": 2, "method__pretrain_steps": 1},
            "and all 1 steps are pre-training: .*lower method.pretrain_steps",
        ),
        ({"data__labelled": 2}, None),
        ({"method__name": "supervised"}, None),
    ],
)
def test_a_method_that_gets_no_unlabelled_scan_says_so(prepared, tmp_path, chosen, said):
    split = str(split_with_validation(prepared, tmp_path))  # all its cases have labels
    with data_warnings() as told:
        run_training(
            prepared, tmp_path / "run", settings(data__split=split, train__steps=1, **chosen)
        )
    assert [bool(re.search(said or "", line)) for line in told] == [True] * bool(said), told


def test_torchrun_goes_on_with_the_run_that_it_began_alone(prepared, tmp_path):
    """Its first start had refused the folder of another run; the second would change that."""
    run, mine = tmp_path / "run", settings(train__steps=2)
    run_training(prepared, run, mine)
    with pytest.raises(UserError, match="exists already and is a finished run; choose another"):
        check_begun_here(run, mine)
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    del manifest["steps_done"]
    (run / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    check_begun_here(run, mine)
    with pytest.raises(UserError, match="exists already and is a run of other settings"):
        check_begun_here(run, settings(train__steps=3))
    check_begun_here(run, settings(train__steps=3), any_steps=True)
    with pytest.raises(UserError, match="exists already and is a run of other settings"):
        check_begun_here(run, settings(train__steps=3, train__seed=1), any_steps=True)


@pytest.mark.parametrize("name", ["mps", "cuda:77", "xpu", "cpux", "meta", "hpu", ""])
def test_a_device_that_is_not_here_is_a_short_line(name):
    if name == "mps" and torch.backends.mps.is_available():
        return
    with pytest.raises(UserError, match="not available here; try auto or cpu") as told:
        choose_device(name)
    assert len(str(told.value)) < 200


def test_a_damaged_manifest_and_unknown_weights_are_one_clear_line(prepared, tmp_path):
    run = tmp_path / "run"
    run_training(prepared, run, settings(train__steps=1))
    with pytest.raises(UserError, match="'finall'; did you mean 'final'"):
        load_predictor(run, "finall")
    with pytest.raises(UserError, match="from a training with validation cases"):
        load_predictor(run, "best")
    (run / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json: .*: Field required.*damaged"):
        load_predictor(run)


def test_the_demonstration_runs_from_end_to_end(monkeypatch, tmp_path):
    from dkuxnet.cli import demo

    monkeypatch.setattr(
        demo,
        "load_settings",
        lambda name: load_settings(
            name,
            overrides={"train.steps": 2, "train.device": "cpu", "network.widths": [8, 8, 8, 8]},
        ),
    )
    monkeypatch.setattr(demo, "SIZE", 20)
    made = demo.run_demo(tmp_path / "demo")
    assert all((tmp_path / "demo" / name).exists() for name in made["files"])
    assert (
        made["labelled"] + made["unlabelled"] == demo.CASES - load_settings("demo").data.test_cases
    )
    assert (
        set(made["summary"]) == {"organ", "tumour", "foreground mean"}
        and made["test_cases"] == demo.UNSEEN
    )


def test_an_unknown_device_is_one_clear_line(prepared, tmp_path):
    with pytest.raises(UserError, match="try auto or cpu"):
        run_training(prepared, tmp_path / "run", settings(train__device="cuda:99"))
    assert not (tmp_path / "run").exists()


def test_the_peak_of_a_gpu_is_that_of_this_training_alone(prepared, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: told.append(device.type)
    )
    forget_peak_memory(torch.device("cpu"))
    forget_peak_memory(torch.device("cuda"))
    assert told == ["cuda"]

    def first_of_all(device):
        raise UserError(f"the peak of {device} begins anew")

    monkeypatch.setattr(experiment, "forget_peak_memory", first_of_all)
    with pytest.raises(UserError, match="the peak of cpu begins anew"):
        run_training(prepared, tmp_path / "run", settings())


def test_a_run_writes_out_every_option_of_its_method(prepared, tmp_path):
    """A default that changes in a later version must not change what a run of this one was."""
    manifest = run_training(
        prepared, tmp_path / "run", settings(train__steps=1, method__w_segc=0.5)
    )
    method = json.loads((tmp_path / "run" / "settings.json").read_text())["method"]
    assert (
        method == {"name": "dual-mutual"} | asdict(DualMutual.Options(w_segc=0.5, ramp_up_steps=0))
        and len(method) > 5
    )  # a quarter of one step is none
    assert manifest.peak_memory_gib > 0.1  # torch alone takes more


def test_an_option_that_is_newer_than_a_run_is_off_when_that_run_is_resumed(prepared, tmp_path):
    run, first = tmp_path / "run", settings(train__steps=1)
    run_training(prepared, run, first)
    assert resumed_job(prepared, run).settings.method.outline == DualMutual.Options().outline > 0
    stored = json.loads((run / "settings.json").read_text())
    del stored["method"]["outline"]  # as written before there was one
    (run / "settings.json").write_text(json.dumps(stored))
    assert resumed_job(prepared, run).settings.method.outline == 0


def test_a_loss_that_is_not_finite_names_the_cases_of_its_step(prepared, tmp_path, monkeypatch):
    """The scan of one labelled case is spoilt: the message names that case, and those beside it in
    the step alone.
    """
    spoilt = PreparedSet(prepared).names[1]
    whole = PreparedSet.crop

    def crop(self, name, kind, start, shape):
        array = whole(self, name, kind, start, shape)
        return np.full_like(array, np.nan) if (name, kind) == (spoilt, "image") else array

    monkeypatch.setattr(PreparedSet, "crop", crop)
    chosen = settings(
        data__labelled=3, method__name="supervised", train__log_every=100, data__workers=0
    )
    with pytest.raises(NotFinite, match=rf"not finite at step \d: .*its cases: {spoilt}$") as error:
        run_training(prepared, tmp_path / "run", chosen)
    assert error.value.step < 3 and not (tmp_path / "run").exists()


def test_a_second_training_on_a_run_folder_is_refused_and_changes_nothing(prepared, tmp_path):
    run_training(prepared, tmp_path / "run", settings(method__name="supervised", data__labelled=2))

    def content() -> dict:
        return {
            path: path.read_bytes()
            for path in (tmp_path / "run").rglob("*")
            if path.is_file() and path.name != ".lock"
        }

    before = content()
    with (
        locked(tmp_path / "run", "training"),
        pytest.raises(UserError, match="another training is at work"),
    ):
        run_training(prepared, tmp_path / "run", settings(), resume=True)
    assert content() == before


# --- thick slices ---

SLICES = ((2, 2, 1), (2, 2, 1), (2, 2, 2), (1, 1, 1))
THICK = described.plan(spacing_mm=[1, 1, 6], patch=[24, 16, 6], strides=SLICES)


def test_networks_follow_the_plan_s_strides_or_get_a_patch_that_they_can_halve():
    shape = NetworkShape(1, 2, (), strides_for(settings(), THICK))
    assert shape.strides == SLICES and shape.divisor == (8, 8, 2)
    assert patch_for(shape, load_settings(), THICK) == (24, 16, 6)
    others = load_settings(overrides={"network.name": "unet"})
    halving = NetworkShape(1, 2, (), strides_for(others, THICK))
    assert halving.strides == HALVINGS
    assert patch_for(halving, load_settings(), THICK) == (32, 16, 16)
    chosen = settings(network__strides=[[2, 2, 2], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    assert strides_for(chosen, THICK)[1:] == ((1, 1, 1),) * 3
    with pytest.raises(UserError, match=r"network\.strides: 'unet' halves along every axis"):
        strides_for(
            load_settings(overrides={"network.name": "unet", "network.strides": SLICES}), THICK
        )
    with pytest.raises(UserError, match=r"network\.flat: 'unet' looks along every axis"):
        flat_for(
            load_settings(
                overrides={"network.name": "unet", "network.flat": [[False, False, True]] * 5}
            ),
            THICK,
        )
    with pytest.raises(
        UserError, match=r"multiples of \[8, 8, 2\], got \[24, 16, 5\]; \[24, 16, 6\]"
    ):
        patch_for(shape, settings(train__patch=[24, 16, 5]), THICK)


def test_a_run_on_thick_slices_goes_on_and_predicts(scans, tmp_path):
    meta = prepare_scans(scans, tmp_path / "prepared", spacing_mm=(1.2, 1.2, 5), processes=1)
    assert meta.plan.strides[0] == (2, 2, 1)
    overrides = {"train.steps": 2, "train.patch": None, "data.test_cases": 1}
    chosen = load_settings(overrides=TINY | overrides)
    manifest = run_training(tmp_path / "prepared", tmp_path / "run", chosen)
    assert meta.plan.flat[0] == (False, False, True) and manifest.shape.flat == meta.plan.flat
    assert manifest.shape.strides == meta.plan.strides and manifest.patch == meta.plan.patch
    run_training(tmp_path / "prepared", tmp_path / "run", chosen, resume=True, steps=3)
    scan = scans / "imagesTr" / "phantom_000_0000.nii.gz"
    [written] = predict_scans(tmp_path / "run", [scan], tmp_path / "out", device="cpu")
    assert formats.read(written, kind="label").shape == formats.read(scan).shape
