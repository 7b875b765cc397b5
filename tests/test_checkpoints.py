"""Checkpoints: whole or known not to be, the last two kept, nothing in them executed."""

import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from dkuxnet.core.errors import UserError
from dkuxnet.runs import checkpoints
from dkuxnet.training.loop import TrainState

RELEASED = Path(__file__).parent / "data" / "checkpoints"


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20, 30):
        checkpoints.save(
            tmp_path / "checkpoints", {"step": step, "w": torch.full((50,), float(step))}
        )
    return tmp_path / "checkpoints"


def steps(folder) -> list[int]:
    return [int(path.name.split("-")[0]) for path in checkpoints.listed(folder)]


def test_the_last_two_are_kept_and_the_newest_comes_back(folder):
    assert steps(folder) == [30, 20] and len(list(folder.iterdir())) == 2
    state = checkpoints.load(folder)
    assert state["step"] == 30 and torch.equal(state["w"], torch.full((50,), 30.0))


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_broken_newest_falls_back_to_the_one_before_and_says_so(folder, damage):
    newest, before = checkpoints.listed(folder)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # in the tensor's own bytes: torch alone would load it
    newest.write_bytes(
        {
            "cut": bytes(content[:100]),
            "bit": bytes(content),
            "empty": b"",
            "other": before.read_bytes(),
        }[damage]
    )
    with pytest.warns(UserWarning, match=f"{newest.name}: damaged.*the checkpoint before it"):
        assert checkpoints.load(folder)["step"] == 20
    before.write_bytes(b"x")
    with pytest.raises(UserError, match=f"{before.name}: damaged"), pytest.warns(UserWarning):
        checkpoints.load(folder)


def test_what_a_kill_left_behind_is_not_taken_for_a_checkpoint(folder):
    newest = checkpoints.listed(folder)[0]
    left = folder / f".part-0123-{newest.name}"
    left.write_bytes(newest.read_bytes()[:1000])
    assert checkpoints.load(folder)["step"] == 30
    checkpoints.save(folder, {"step": 40})
    assert steps(folder) == [40, 30] and not left.exists()


def named(folder, content: bytes):
    """`content` under the name that its checksum asks for, as the newest: only the content can
    give it away.
    """
    path = folder / "part"
    path.write_bytes(content)
    return path.rename(folder / f"{99:08d}-{checkpoints.checksum(path)}.safetensors")


def safetensors_file(header: dict | str, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def tree_file(tree: str) -> bytes:
    return safetensors_file({"__metadata__": {"version": str(checkpoints.VERSION), "tree": tree}})


def test_a_pickle_is_refused_and_not_run(folder):
    class Harm:
        def __reduce__(self):
            return (folder.joinpath("harm").write_text, ("done",))

    buffer = folder / "hostile"
    torch.save({"version": checkpoints.VERSION, "step": 99, "x": Harm()}, buffer)
    for content in (buffer.read_bytes(), pickle.dumps({"version": 1, "x": Harm()})):
        with pytest.raises(UserError, match="damaged or not a checkpoint"):
            checkpoints.read(named(folder, content))
    assert not (folder / "harm").exists()


FLOATS = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HOSTILE = {
    "a header of exabytes": (2**62).to_bytes(8, "little") + b"{}",
    "no header": b"\x10",
    "overlapping tensors": safetensors_file(
        {"a": FLOATS, "b": FLOATS | {"data_offsets": [8, 24]}}, bytes(24)
    ),
    "a tensor beyond the end": safetensors_file(
        {"a": FLOATS | {"data_offsets": [0, 1 << 40], "shape": [1 << 38]}}, bytes(16)
    ),
    "shape times size over 64 bits": safetensors_file(
        {"a": FLOATS | {"shape": [2**62, 4]}}, bytes(16)
    ),
    "no version": safetensors_file({"a": FLOATS}, bytes(16)),
    "a tree too deep": tree_file("[" * 100_000 + "]" * 100_000),
    "a tree just too deep": tree_file('["list",' * 100 + "0" + "]" * 100),
    "a tensor that is not there": tree_file('["dict", ["step", ["tensor", "x"]]]'),
    "an unknown kind": tree_file('["os.system", "true"]'),
    "no dict": tree_file('["list", 1, 2]'),
    "a tree of numbers": tree_file("1.5"),
    "a dict for a key": tree_file('["dict", [["list"], 1]]'),
    "a NaN": tree_file("NaN"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_clear_line(folder, what):
    with pytest.raises(UserError, match="damaged or not a checkpoint") as told:
        checkpoints.read(named(folder, HOSTILE[what]))
    assert "\n" not in str(told.value) and len(str(told.value)) < 1000


def test_another_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "VERSION", 0)
    path = checkpoints.save(folder, {"step": 50})
    monkeypatch.undo()
    with pytest.raises(UserError, match="version 2"):
        checkpoints.read(path)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / f"00000010-{'0' * 64}.pt").write_bytes(b"")
    with pytest.raises(UserError, match="version 1, which this program does not read"):
        checkpoints.load(folder)


def test_a_state_comes_back_as_it_was_to_the_last_bit(folder):
    shared = torch.randn(3, 4)
    state = {
        "step": 7,
        "best": -math.inf,
        "float": 0.1 + 0.2,
        "tiny": 5e-324,
        "large": 2**62,
        "yes": True,
        "none": None,
        "text": "é/\0",
        "nested": (
            1,
            [2.0, (), [], {}],
            {0: {"exp": torch.zeros(()), 1: "int and text keys", "1": "apart"}},
        ),
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "empty": torch.zeros(0, 3),
        "shared": [shared, shared, shared[0]],
        "turned": shared.T,
        "format": torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d),
        "types": [
            torch.tensor([0, 1], dtype=getattr(torch, name))
            for name in (
                "bool",
                "uint8",
                "int8",
                "int16",
                "int32",
                "int64",
                "float16",
                "bfloat16",
                "float32",
                "float64",
            )
        ],
        "odd": torch.tensor([math.nan, math.inf, -0.0, 1e-45]),
    }
    again = checkpoints.read(checkpoints.save(folder, state))
    assert_same(again, state)
    assert again["shared"][0].data_ptr() == again["shared"][1].data_ptr()
    with pytest.raises(TypeError, match="no part of a state: /x, a set"):
        checkpoints.save(folder, {"step": 8, "x": {1}})


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert (
            ours.contiguous().numpy(force=True).tobytes()
            == theirs.contiguous().numpy(force=True).tobytes()
            if ours.dtype != torch.bfloat16
            else torch.equal(ours, theirs)
        )
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs) and [type(key) for key in ours] == [
            type(key) for key in theirs
        ]
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


def toy(optimiser: str = "adamw") -> TrainState:
    """A network whose kernels lie in memory as `to_device` lays them, after two steps."""
    from dkuxnet.core.config import TrainSettings
    from dkuxnet.machine.devices import to_device
    from dkuxnet.training.loop import make_state

    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1))
    state = make_state(
        to_device(network, torch.device("cpu")), TrainSettings(average=0.9, optimiser=optimiser)
    )
    for _ in range(2):
        step(state)
    return state


def step(state: TrainState) -> None:
    image = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(state.step))
    state.optimiser.zero_grad()
    state.method(image).square().mean().backward()
    state.optimiser.step()
    state.step += 1


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_training_goes_on_to_the_bit(folder, optimiser):
    """The moments of a fused optimiser must lie in memory as the kernels do: else it mixes them up
    without a word.
    """
    state, other = toy(optimiser), toy(optimiser)
    for group in state.optimiser.param_groups:
        group["lr"] = 1 / 3  # as the loop sets it
    other.restore(checkpoints.read(checkpoints.save(folder, state.to_checkpoint())))
    assert_same(other.to_checkpoint(), state.to_checkpoint())
    kernel = next(other.method.parameters())
    assert not kernel.is_contiguous()
    assert all(
        value.stride() == kernel.stride()
        for value in other.optimiser.state[kernel].values()
        if value.ndim
    )
    for each in (state, other):
        step(each)
    assert_same(other.to_checkpoint(), state.to_checkpoint())


def test_the_figures_of_steps_that_are_not_logged_yet_come_back(folder):
    from dkuxnet.training.loop import finite_means

    state, other = toy(), toy()
    for value in (1 / 3, 0.1):
        state.add({"seg": torch.tensor(value), "grad_norm": torch.tensor(value, dtype=torch.half)})
    other.restore(checkpoints.read(checkpoints.save(folder, state.to_checkpoint())))
    assert_same(other.to_checkpoint(), state.to_checkpoint())
    for each in (state, other):
        each.add({"seg": torch.tensor(0.7), "grad_norm": torch.tensor(0.7, dtype=torch.half)})
    assert finite_means(other.window, 3) == finite_means(state.window, 3)


@pytest.mark.parametrize(
    "window",
    [
        [],
        {"seg": 1.0},
        {"seg": torch.zeros(())},
        {"seg": torch.zeros(2, 1)},
        {"seg": torch.zeros(2, dtype=torch.int64)},
        {"seg": torch.tensor([1.0, math.nan])},
        {"seg": torch.zeros(3)},  # of more steps than there were
        {1: torch.zeros(2)},
    ],
)
def test_a_window_that_is_none_is_refused(window):
    state = toy()
    with pytest.raises(UserError, match="the checkpoint is of another"):
        state.restore(state.to_checkpoint() | {"window": window})


@pytest.mark.parametrize("change", ["shape", "names", "index", "groups", "type", "step", "best"])
def test_a_checkpoint_that_does_not_fit_is_refused_before_a_step_walks_through_memory(change):
    state, saved = toy(), toy().to_checkpoint()
    moments = saved["optimiser"]["state"]
    {
        "shape": lambda: moments[0].update(exp_avg=torch.zeros(1)),
        "names": lambda: moments[0].pop("exp_avg_sq"),
        "index": lambda: moments.update({99: moments[0]}),
        "groups": lambda: saved["optimiser"]["param_groups"][0]["params"].pop(),
        "type": lambda: moments[0].update(exp_avg=[1.0]),
        "step": lambda: saved.update(step=-1),
        "best": lambda: saved.update(best="much"),
    }[change]()
    with pytest.raises(UserError, match="another network, method or optimiser"):
        state.restore(saved)


@pytest.mark.parametrize(
    "path", sorted(RELEASED.glob("*.safetensors")), ids=lambda path: path.name[:20]
)
def test_the_checkpoints_of_every_released_format_load(path):
    """tests/data/checkpoints holds one of each format that was ever released.

    They are never written anew.
    """
    state, fresh = checkpoints.read(path), toy()
    fresh.restore(state)
    assert fresh.step == 2 and state["best"] == -math.inf
    assert_same(fresh.to_checkpoint()["optimiser"]["state"], state["optimiser"]["state"])
    step(fresh)


def test_there_is_a_checkpoint_of_the_present_format():
    versions = [
        json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])[
            "__metadata__"
        ]["version"]
        for path in RELEASED.glob("*.safetensors")
    ]
    assert str(checkpoints.VERSION) in versions
