"""What a step gets is the same however fast it comes: draws, batches, optimisers, and what a start
does not load.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from dkuxnet import load_settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import ZScore
from dkuxnet.core.seeds import VIEWS, step_seed
from dkuxnet.core.shares import Share, taking
from dkuxnet.data import network_grid, plan, prepared_set
from dkuxnet.data.arrays import read_box
from dkuxnet.data.fingerprint import count_values
from dkuxnet.data.prepared_set import PreparedSet, write_array
from dkuxnet.data.values import every_nth
from dkuxnet.training.experiment import batches, patch_streams, pinned
from dkuxnet.training.job import new_job
from dkuxnet.training.optimiser import SGD, AdamW
from dkuxnet.training.patches import LABELLED, PatchStream
from dkuxnet.training.views import apply_view, draw_view, make_views
from test_patches import SHAPES, write_set


def fresh_python(program: str, *arguments: object) -> str:
    """What a program says that a new process runs."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


# --- preparing ---


@pytest.mark.parametrize("lay", [np.ascontiguousarray, np.asfortranarray])
def test_figures_of_a_scan_are_those_of_the_plain_formulas_to_the_last_bit(lay):
    rng = np.random.default_rng(0)
    scan = lay(rng.normal(300, 50, (19, 23, 17)).astype(np.float32))
    [scaled] = network_grid.normalise(scan[None], [ZScore(kind="z-score")])
    expected = (scan - scan.mean(dtype=np.float64)) / scan.std(dtype=np.float64)
    np.testing.assert_array_equal(scaled, expected.astype(np.float32))
    for step in (0, 1, 7, 10**6):
        np.testing.assert_array_equal(every_nth(scan, step), scan.ravel()[:: max(1, step)])
    for dtype in (np.uint8, np.int16):
        label = lay(rng.choice([0, 3, 7, 100], scan.shape).astype(dtype))
        values, counts = np.unique(label, return_counts=True)
        assert count_values(label) == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_torch_is_asked_for_a_gpu_wherever_there_can_be_one(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("os.path.exists", lambda path: False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert plan.has_gpu_driver()
    monkeypatch.setattr("ctypes.CDLL", missing)
    assert not plan.has_gpu_driver() and plan.gpu_bytes() == 0
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/kfd")
    assert plan.has_gpu_driver()
    monkeypatch.setattr("os.path.exists", lambda path: False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert plan.has_gpu_driver()


@pytest.mark.skipif(plan.has_gpu_driver(), reason="there torch is asked how large the GPU is")
def test_preparing_without_a_gpu_does_not_load_torch(scans, tmp_path):
    told = fresh_python(
        """
        import sys
        from dkuxnet.data.prepare import prepare_scans
        prepare_scans(sys.argv[1], sys.argv[2], processes=1)
        print("torch" in sys.modules)
    """,
        scans,
        tmp_path / "prepared",
    )
    assert told == "False"


def test_an_array_lies_in_small_blocks_and_one_of_an_earlier_version_is_read_as_before(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 70, 20, 9)).astype(np.float32)
    write_array(tmp_path / "now.b2nd", array)
    stored = blosc2.blosc2_ext.open(str(tmp_path / "now.b2nd"), "r", 0)
    assert stored.chunks == (2, 64, 20, 9) and stored.blocks == (2, 16, 16, 9)
    earlier = {"codec": blosc2.Codec.ZSTD, "clevel": 3, "nthreads": 1}
    (tmp_path / "then.b2nd").write_bytes(
        blosc2.asarray(array, chunks=(2, 64, 20, 9), cparams=earlier).to_cframe()
    )
    box = (slice(3, 67), slice(0, 20), slice(4, 9))
    for name in ("now", "then"):
        np.testing.assert_array_equal(
            read_box(tmp_path / f"{name}.b2nd", array.shape, np.float32, box), array[(..., *box)]
        )


# --- patches ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("prepared"))


def test_the_foreground_is_found_once_and_by_no_one_who_may_not_open_the_label(tmp_path):
    data = PreparedSet(write_set(tmp_path / "p"))
    label = data.array("a", "label")
    places = np.stack(np.unravel_index(data.foreground("a"), label.shape), axis=1)
    np.testing.assert_array_equal(places, np.argwhere(label))
    assert data.classes("a").tolist() == [1, 2]
    of_classes = [data.class_voxels("a", k) for k in (1, 2)]
    for k, found in enumerate(of_classes, 1):
        np.testing.assert_array_equal(found, np.flatnonzero(label == k))
    (data.folder / "cases" / "a.label.b2nd").unlink()
    assert len(data.foreground("a")) == len(places)
    assert data.classes("a").tolist() == [1, 2]
    assert all(data.class_voxels("a", k) is found for k, found in enumerate(of_classes, 1))
    closed = data.only(image=["a"])
    for find in (closed.foreground, closed.classes, lambda name: closed.class_voxels(name, 1)):
        with pytest.raises(UserError, match="closed here"):
            find("a")


def test_of_a_large_class_a_part_is_kept_and_of_a_small_one_all(tmp_path, monkeypatch):
    """All of 33 classes would fit for three scans, and be looked for in every patch of the next."""
    monkeypatch.setattr(prepared_set, "MOST_PLACES", 50)
    folder = write_set(tmp_path / "p")
    label = np.zeros(SHAPES["a"], np.uint8)
    label[2:, 2:], label[0, 0, :3] = 1, 2
    write_array(folder / "cases" / "a.label.b2nd", label)
    drawn, again = (PreparedSet(folder).class_voxels("a", 1) for _ in range(2))
    assert len(drawn) == len(set(drawn)) == 50 and (label.ravel()[drawn] == 1).all()
    np.testing.assert_array_equal(drawn, again)
    assert drawn.min() < label.size / 3 and drawn.max() > 2 * label.size / 3
    assert PreparedSet(folder).class_voxels("a", 2).tolist() == [0, 1, 2]


@pytest.mark.parametrize("class_first", [False, True])
@pytest.mark.parametrize("cache_gib", [0, 1])
def test_a_patch_is_where_the_published_draws_say(folder, cache_gib, class_first):
    """Not class first are the draws of earlier versions' runs: a resumed one goes on with these."""
    data, size, batch = PreparedSet(folder, cache_gib), (3, 5, 4), 2
    stream = PatchStream(data, list(SHAPES), size, batch, 7, True, 0.5, class_first)
    for step in (0, 1, 6, 2, 11):
        images, labels = stream.at(step)
        for i in range(batch):
            epoch, place = divmod(step * batch + i, len(SHAPES))
            name = list(SHAPES)[
                np.random.default_rng((7, LABELLED, 0, epoch)).permutation(len(SHAPES))[place]
            ]
            assert stream.names_at(step)[i] == name
            rng, shape, label = (
                np.random.default_rng((7, LABELLED, 1, step, i)),
                SHAPES[name],
                data.array(name, "label"),
            )
            start = [int(rng.integers(n - s + 1)) for n, s in zip(shape, size, strict=True)]
            if rng.random() < 0.5:
                of_class = 1 + rng.integers(2) if class_first else None  # both are in every case
                foreground = np.argwhere(label == of_class if of_class else label)
                centre = foreground[rng.integers(len(foreground))]
                start = [
                    int(np.clip(c - s // 2, 0, n - s))
                    for c, s, n in zip(centre, size, shape, strict=True)
                ]
            box = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
            np.testing.assert_array_equal(images[i], data.array(name, "image")[(..., *box)])
            np.testing.assert_array_equal(labels[i], label[box])


# --- batches ---


def job_of(prepared: Path, workers: int):
    return new_job(
        prepared,
        load_settings(
            overrides={
                "train.patch": [16, 16, 16],
                "train.steps": 5,
                "train.device": "cpu",
                "data.workers": workers,
                "data.labelled": 1,
            }
        ),
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_views_of_their_step_wherever_they_are_made(prepared, workers):
    job = job_of(prepared, workers)
    made = list(batches(job, 2))
    assert len(made) == 3
    for step, batch in enumerate(made, 2):
        generator = torch.Generator().manual_seed(step_seed(0, VIEWS, step))
        for stream, got in zip(patch_streams(job), (batch.labelled, batch.unlabelled), strict=True):
            image, label = (
                None if part is None else torch.from_numpy(part) for part in stream.at(step)
            )
            expected = make_views(
                image, label, job.settings.augment, generator, job.data.meta.plan.spacing_mm
            )
            assert torch.equal(got.weak, expected.weak) and torch.equal(got.strong, expected.strong)
            assert (got.label is None) == (label is None)
            assert label is None or torch.equal(got.label, expected.label)


def test_the_batch_of_a_share_is_its_rows_of_the_whole_batch(prepared):
    job = job_of(prepared, 0)
    whole = next(batches(job, 2))
    for index in range(2):
        with taking(Share(index, 2)):
            part = next(batches(job, 2))
        for name in ("labelled", "unlabelled"):
            for view in ("weak", "strong"):
                own = getattr(getattr(whole, name), view)[index::2]
                torch.testing.assert_close(getattr(getattr(part, name), view), own)
        assert torch.equal(part.label, whole.label[index::2])


def test_a_batch_can_change_intensities_as_its_strong_views_are_changed(prepared):
    """Of any number of patches, drawn from torch's own generator, which a step seeds."""
    job = job_of(prepared, 0)
    batch = next(batches(job, 0))
    image = torch.cat([batch.labelled.weak, batch.unlabelled.weak, batch.labelled.weak])
    torch.manual_seed(5)
    changed = batch.strengthen(image)
    torch.manual_seed(5)
    expected = apply_view(
        image,
        draw_view(image, job.settings.augment.strong, torch.default_generator),
        batch.labelled.edges,
    )
    assert torch.equal(changed, expected) and not torch.equal(changed, image)
    assert not torch.equal(batch.strengthen(image), changed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_a_gpu_fetches_lies_in_pinned_memory(prepared):
    streams = patch_streams(job_of(prepared, 1))
    (image, label), (_, none) = (pinned(stream.at(0)) for stream in streams)
    assert image.is_pinned() and label.is_pinned() and none is None


# --- start ---


@pytest.mark.parametrize(
    "ours, theirs, options",
    [
        (AdamW, torch.optim.AdamW, {"lr": 0.01, "fused": True}),
        (SGD, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    ],
)
def test_an_optimiser_is_torch_s_to_the_last_bit_and_takes_its_state(ours, theirs, options):
    torch.manual_seed(0)
    weights = [torch.randn(5, 4), torch.randn(4)]
    results = []
    for first, then in ((theirs, theirs), (ours, ours), (theirs, ours)):
        parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
        groups = [
            {"params": parameters[:1], "weight_decay": 0.1},
            {"params": parameters[1:], "weight_decay": 0.0},
        ]
        optimiser = first(groups, **options)
        for step in range(6):
            if step == 3:
                state = optimiser.state_dict()
                optimiser = then(groups, **options)
                optimiser.load_state_dict(state)
            optimiser.zero_grad(set_to_none=True)
            assert parameters[0].grad is None
            sum((parameter**2 * (step + 1)).sum() for parameter in parameters).backward()
            optimiser.step()
        results.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert not torch.equal(results[0], torch.cat([weight.flatten() for weight in weights]))


def test_a_training_does_not_load_torch_s_compiler():
    told = fresh_python("""
        import sys
        import torch
        from dkuxnet.core.config import TrainSettings
        from dkuxnet.machine.devices import deterministic
        from dkuxnet.training.loop import make_optimiser
        for name in ("adamw", "sgd"):
            line = torch.nn.Linear(3, 2)
            with deterministic(False):
                optimiser = make_optimiser(line, TrainSettings(optimiser=name))
                optimiser.zero_grad()
                line(torch.ones(1, 3)).sum().backward()
                optimiser.step()
                optimiser.load_state_dict(optimiser.state_dict())
        print("torch._dynamo" in sys.modules)
    """)
    assert told == "False"
