"""A coarse stage and a fine one: from the scans to the label map on the scan's own grid."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import described
from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Fingerprint
from dkuxnet.data import formats
from dkuxnet.data.geometry import resample
from dkuxnet.data.plan import plan_coarse
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.export.targets import export_run
from dkuxnet.models.build import build_method, take_weights
from dkuxnet.prediction.predict import predict_scans
from dkuxnet.prediction.refine import refine
from dkuxnet.prediction.segment import Segmenter
from dkuxnet.prediction.windows import Windows
from dkuxnet.runs.folder import RunFolder
from dkuxnet.training import experiment
from dkuxnet.training.experiment import make_batch, patch_streams, pinned, run_training
from dkuxnet.training.job import new_job, resumed_job
from dkuxnet.training.priors import simulated_priors
from tiny import DK_UXNET, dotted, prepared_phantoms

SETTINGS = DK_UXNET | {
    "data.labelled": 2,
    "data.test_cases": 1,
    "train.steps": 4,
    "train.log_every": 1,
    "train.labelled_batch": 1,
    "train.unlabelled_batch": 1,
    "train.warm_up_steps": 1,
    "method.name": "mean-teacher",
    "augment.margin": 2,
    "coarse.train.steps": 4,
    "coarse.train.lr": 0.01,
    "coarse.method.name": "dual-mutual",
}


def settings(**overrides):
    return load_settings(overrides=SETTINGS | dotted(overrides))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    return prepared_phantoms(folder, cases=5, labelled=4, coarse_mm=8)


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_training(prepared, folder, settings())
    return folder


def weights(run, name="final"):
    return load_file(run / f"{name}.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_both_sets_hold_the_same_cases_at_their_own_voxels(prepared):
    fine = PreparedSet(prepared)
    coarse = PreparedSet(fine.coarse)
    assert coarse.names == fine.names and coarse.coarse is None
    assert coarse.meta.plan.spacing_mm == (8, 8, 8)
    for name in fine.names:
        expected = resample(fine.array(name, "image"), coarse.shape(name))
        got = coarse.array(name, "image")
        assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.99
    np.testing.assert_array_equal(
        coarse.array(fine.names[0], "truth"), fine.array(fine.names[0], "truth")
    )


@pytest.mark.parametrize(
    ("extent", "spacing", "expected"),
    [
        ((119.0, 89.0, 55.0), (2.5, 2.5, 2.5), None),
        ((119.0, 89.0, 55.0), (1.25, 1.25, 1.25), (2.5, 2.5, 2.5)),
        ((119.0, 89.0, 55.0), (0.625, 0.625, 0.625), (2.5, 2.5, 2.5)),
        ((324.0, 384.0, 90.0), (1.5, 1.5, 10.0), (3.0, 3.0, 10.0)),
        ((35.0, 50.0, 36.0), (1.0, 1.0, 1.0), None),
    ],
)
def test_the_plan_has_a_coarse_stage_where_a_patch_is_small_beside_the_scans(
    extent, spacing, expected, monkeypatch
):
    monkeypatch.setattr("dkuxnet.data.plan.gpu_bytes", lambda: 0)
    fingerprint = Fingerprint.model_validate(described.FINGERPRINT | {"extent_mm_median": extent})
    assert plan_coarse(fingerprint, spacing) == expected


def test_a_run_holds_both_stages_and_each_is_a_run(run):
    manifest, coarse = RunFolder(run).manifest, RunFolder(run).coarse.manifest
    assert manifest.coarse and not coarse.coarse
    assert (manifest.method, coarse.method) == ("mean-teacher", "dual-mutual")
    assert manifest.split == coarse.split
    assert coarse.test is not None and manifest.test is not None
    assert (
        RunFolder(run).coarse.settings.train.lr == 0.01 and RunFolder(run).settings.train.lr != 0.01
    )
    assert manifest.network_shape.in_channels == 1 + 2


def test_what_the_coarse_stage_is_stands_in_the_settings_of_the_run(run):
    written, coarse = RunFolder(run).settings, RunFolder(run).coarse.settings
    assert written.coarse_stage() == coarse


def test_prediction_and_evaluation_give_the_same_label_map(prepared, run, tmp_path):
    name = RunFolder(run).manifest.split.test[0]
    scan = PreparedSet(prepared).info(name).images[0]
    (written,) = predict_scans(run, [scan], tmp_path / "out")
    evaluated = formats.read(run / "evaluation" / "predictions" / f"{name}.nii.gz")
    np.testing.assert_array_equal(formats.read(written).array, evaluated.array)


def test_the_share_of_the_coarse_stage_runs_from_the_one_to_the_other(prepared, run, tmp_path):
    """With all of the share the coarse run alone predicts, voxel for voxel where both agree."""
    name = RunFolder(run).manifest.split.test[0]
    scan = PreparedSet(prepared).info(name).images[0]
    maps = {}
    for share in (0.0, 0.5, 1.0):
        other = shutil.copytree(run, tmp_path / f"run_{share}")
        path = other / "settings.json"
        values = json.loads(path.read_text())
        values["coarse"]["share"] = share
        path.write_text(json.dumps(values))
        out = tmp_path / f"out_{share}"
        predict_scans(other, [scan], out, save_probabilities=True)
        (path,) = (out / "probabilities").iterdir()
        maps[share] = formats.read(path).array
    assert np.abs(maps[0.0] - maps[1.0]).max() > 0.01
    np.testing.assert_allclose(maps[0.5], (maps[0.0] + maps[1.0]) / 2, atol=1e-5)
    predict_scans(run / "coarse", [scan], tmp_path / "coarse", save_probabilities=True)
    (path,) = (tmp_path / "coarse" / "probabilities").iterdir()
    alone = formats.read(path).array
    # brought to the scan's grid through the fine one, and at once
    assert np.abs(alone - maps[1.0]).mean() < 0.02


@pytest.mark.parametrize("stage", ["coarse", "priors", "fine"])
def test_a_training_that_is_stopped_in_either_stage_goes_on_to_the_same_weights(
    prepared, run, tmp_path, monkeypatch, stage
):
    class Killed(Exception): ...

    def killed(*_, **__):
        raise Killed

    stopped = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        if stage == "priors":
            patched.setattr(experiment, "write_priors", killed)
            run_training(prepared, stopped, settings())
        elif stage == "coarse":
            patched.setattr("dkuxnet.training.loop.RunFolder.save_weights", killed)
            run_training(prepared, stopped, settings(coarse__train__save_every=2))
        else:
            patched.setattr(experiment, "evaluate_test", evaluating_coarse_alone(killed))
            run_training(prepared, stopped, settings())
    run_training(prepared, stopped, settings(), resume=True)
    assert same(weights(run), weights(stopped))
    assert same(weights(run / "coarse"), weights(stopped / "coarse"))


def evaluating_coarse_alone(killed):
    evaluate = experiment.evaluate_test

    def each(folder, predictor, job, progress, coarse=None):
        return killed() if job.coarse else evaluate(folder, predictor, job, progress, coarse)

    return each


def test_what_a_kill_left_before_the_coarse_stage_was_a_run_is_begun_anew(prepared, run, tmp_path):
    stopped = tmp_path / "run"
    RunFolder.make(stopped, RunFolder(run).settings, RunFolder(run).manifest)
    (stopped / "coarse").mkdir()
    (stopped / "coarse" / "manifest.json").write_text("{")
    run_training(prepared, stopped, settings(), resume=True)
    assert same(weights(run), weights(stopped))


def test_the_fine_stage_may_begin_anew_and_needs_no_unlabelled_scans(prepared, run, tmp_path):
    given = {"coarse__run": str(run / "coarse"), "method__name": "supervised"}
    for start in (True, False):
        run_training(prepared, tmp_path / str(start), settings(coarse__start=start, **given))
        assert not list((tmp_path / str(start) / "coarse" / "priors").iterdir())
    assert not same(weights(tmp_path / "True"), weights(tmp_path / "False"))


def test_a_coarse_run_that_is_there_is_copied_and_trains_no_more(prepared, run, tmp_path):
    other = tmp_path / "run"
    run_training(prepared, other, settings(coarse__run=str(run / "coarse")))
    assert same(weights(run), weights(other))
    assert not (other / "coarse" / "checkpoints").exists()


def test_a_coarse_run_that_has_seen_what_it_is_asked_about_is_refused(prepared, run, tmp_path):
    for other in ({"data__labelled": 1}, {"data__test_cases": 2}):
        asked = settings(coarse__run=str(run / "coarse"), **other)
        with pytest.raises(UserError, match="which it would be asked about"):
            run_training(prepared, tmp_path / "run", asked)
    assert not (tmp_path / "run").exists()


def test_a_switch_turns_the_coarse_stage_off(prepared, tmp_path):
    manifest = run_training(prepared, tmp_path / "run", settings(coarse__use=False))
    assert not manifest.coarse and not (tmp_path / "run" / "coarse").exists()


def test_what_cannot_be_is_one_line(prepared, run, tmp_path):
    plain = prepared / "coarse"
    with pytest.raises(UserError, match="has no coarser voxels for a coarse stage: prepare it"):
        run_training(plain, tmp_path / "run", settings(coarse__use=True))
    with pytest.raises(UserError, match=r"coarse stage 'train\.lx'; did you mean 'train\.lr'"):
        settings(coarse__train__lx=1)
    with pytest.raises(UserError, match="is not coarser than"):
        prepared_phantoms(tmp_path, cases=2, labelled=2, coarse_mm=1)
    with pytest.raises(UserError, match="has two stages, and a bundle holds one"):
        export_run(run, "monai-bundle", tmp_path / "bundle")
    shutil.rmtree(shutil.copytree(run, tmp_path / "copy") / "coarse")
    with pytest.raises(UserError, match="coarse is not a run folder"):
        predict_scans(tmp_path / "copy", [tmp_path], tmp_path / "out")


def test_a_coarse_stage_of_another_run_is_refused_before_it_is_loaded(run, tmp_path):
    for number, change in enumerate(({"labels": {"background": 0, "b": 1, "c": 2}}, "itself")):
        copy = shutil.copytree(run, tmp_path / str(number))
        if change == "itself":  # would be its own coarse stage for ever
            shutil.rmtree(copy / "coarse")
            (copy / "coarse").symlink_to(".")
        else:
            path = copy / "coarse" / "manifest.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(UserError, match="is not the coarse stage of this run"):
            Segmenter(copy)


def test_both_stages_are_exported_and_together_predict_what_the_run_predicts(run, tmp_path):
    """A scan of one window: coarse graph, upsampling, fine graph, mean."""
    said = export_run(run, "torchscript", tmp_path / "fine.pt")
    assert "fine stage, whose last channels" in said and "coarse gives: export that too" in said
    export_run(run / "coarse", "torchscript", tmp_path / "coarse.pt")
    fine, coarse = (torch.jit.load(tmp_path / f"{name}.pt") for name in ("fine", "coarse"))
    segmenter = Segmenter(run)
    shapes = segmenter.patch, segmenter.coarse.patch
    image, coarse_image = (torch.randn(1, 1, *shape) for shape in shapes)
    with torch.inference_mode():
        probabilities = coarse(coarse_image)[0].numpy()
        prior = resample(probabilities, shapes[0])
        stacked = torch.cat([image, torch.from_numpy(prior[None, 1:])], dim=1)
        expected = (fine(stacked)[0].numpy() + prior) / 2
    windows = Windows(shapes[0], 3, segmenter.settings.infer, segmenter.device)
    got = refine(segmenter.predictor, image[0].numpy(), probabilities, 0.5, windows).prob
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_a_damaged_prior_is_one_line(prepared, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    for path in (other / "coarse" / "priors").iterdir():
        path.write_bytes(b"garbage")
    shutil.rmtree(other / "checkpoints")
    (other / "final.safetensors").unlink()
    with pytest.raises(UserError, match=r"priors.*is missing or damaged"):
        run_training(prepared, other, settings(), resume=True)


def test_unlabelled_patches_carry_what_the_coarse_stage_says_there(prepared, run):
    job = resumed_job(prepared, run)
    coarse = experiment.coarse_stage(job, job.coarse, RunFolder(run), lambda *_: None)
    _, unlabelled = patch_streams(job, coarse)
    names = unlabelled.names_at(0)
    images, _ = unlabelled.at(0)
    assert images.shape[1] == 3
    priors = images[:, 1:]
    assert priors.min() >= 0 and priors.max() <= 1
    stored = coarse.priors.crop(
        names[0], job.data.shape(names[0]), (0, 0, 0), job.data.shape(names[0])
    )
    assert priors.max() <= stored.max() + 1e-6 and stored.max() > 0
    batch = make_batch(job, 0, [pinned(stream.at(0)) for stream in patch_streams(job, coarse)])
    for views in (batch.labelled, batch.unlabelled):
        assert views.weak.shape[1] == 3
        torch.testing.assert_close(views.weak[:, 1:], views.strong[:, 1:])
        assert views.strong[:, 1:].min() >= 0 and views.strong[:, 1:].max() <= 1
        mixed = batch.strengthen(views.weak)  # what a method has mixed keeps them too
        assert torch.equal(mixed[:, 1:], views.weak[:, 1:])
        assert not torch.equal(mixed[:, :1], views.weak[:, :1])


def test_simulated_priors_are_like_the_label_but_not_it():
    label = torch.zeros(40, 24, 24, 24, dtype=torch.int64)
    label[:, 6:18, 6:18, 6:18] = 1
    label[:, 10:14, 10:14, 10:14] = 2
    priors = simulated_priors(label, 3, torch.Generator().manual_seed(0), (1, 1, 1), (2, 2, 2))
    assert priors.shape == (40, 2, 24, 24, 24)
    found = priors.amax(dim=(1, 2, 3, 4)) > 0
    assert 0 < (~found).sum() < 12
    organ = priors.sum(dim=1)[found]
    sizes = organ.sum(dim=(1, 2, 3)) / 12**3
    assert sizes.min() < 0.85 and sizes.max() > 1.15 and 0.8 < sizes.mean() < 1.2
    agree = ((organ > 0.5) == (label[found] > 0)).float().mean(dim=(1, 2, 3))
    assert 0.85 < agree.mean() < 0.99
    assert organ.max() <= 1 + 1e-5 and organ.min() >= 0


def test_the_fine_stage_begins_with_what_the_coarse_one_learnt(prepared, run):
    job = new_job(prepared, settings())
    alone = replace(job.shape, in_channels=1)
    first = build_method(job.settings, alone, "dk-uxnet-tiny").networks[0].eval()
    second = build_method(job.settings, job.shape, "dk-uxnet-tiny").networks[0].eval()
    take_weights(second, first.state_dict())
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        expected = first(image).logits
        got = second(torch.cat([image, torch.rand(1, 2, 32, 32, 32)], dim=1)).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
