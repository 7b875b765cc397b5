"""The step that a GPU would take, on torch's meta device: shapes and devices without a number.

What waits for a GPU (reading a number, a mask that chooses how many voxels there are) or brings
tensors of two devices together is an error there. What it cannot see: the speed, the memory, and
kernels that differ from the CPU's. What is computed in bfloat16 is seen on the CPU.
"""

import runpy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dkuxnet.core.config import InferSettings, load_settings
from dkuxnet.core.types import Batch, NetworkShape, Output, Views
from dkuxnet.machine.devices import to_device
from dkuxnet.models.build import build_method
from dkuxnet.models.methods import METHODS
from dkuxnet.models.networks import NETWORKS
from dkuxnet.models.networks.grouping import default_groups
from dkuxnet.prediction import windows
from dkuxnet.training.loop import TrainState, make_state, train_step
from tiny import DK_UXNET

METHOD = DK_UXNET | {
    "train.optimiser": "sgd"
}  # AdamW's step is a hundred operations a tensor there
META, CPU = torch.device("meta"), torch.device("cpu")
# what these read at every step: scipy's components, its distances
WAIT = {"bcp": "copy out of meta", "dtc": "copy out of meta"}


@pytest.fixture(autouse=True)
def autocast(monkeypatch):
    """torch has none for the meta device."""
    real = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device, *given, **named: (
            nullcontext() if device == "meta" else real(device, *given, **named)
        ),
    )


def state_of(method: str, network: dict, device: torch.device) -> tuple[TrainState, object]:
    settings = load_settings(overrides={"method.name": method} | network)
    shape = NetworkShape(1, 3, default_groups(["background", "organ", "tumour"], 8))
    made = build_method(settings, shape, settings.network.name or "")
    return make_state(to_device(made, device), settings.train), settings.train


def batch_on(device: torch.device) -> Batch:
    image = torch.rand(2, 1, 16, 16, 16, device=device)
    label = (image[:, 0] > 0.5).long()
    return Batch(Views(image, image.clone(), label), Views(image.clone(), image.clone()))


def take_a_step(method: str, network: dict, step: int) -> dict[str, torch.Tensor]:
    state, settings = state_of(method, network, META)
    state.step = step
    for group in state.optimiser.param_groups:
        group["fused"] = False  # which the meta device has not
    losses, norm = train_step(state, batch_on(META), settings, META, torch.float32)
    return losses | {"norm": norm}


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_a_gpu(method):
    if method in WAIT:
        with pytest.raises((NotImplementedError, RuntimeError), match=WAIT[method]):
            take_a_step(method, METHOD, 500)
        return
    fewer = {"method.passes": 2} if method == "ua-mt" else {}
    figures = take_a_step(method, METHOD | fewer, 500)
    assert {each.device for each in figures.values()} == {META} and len(figures) > 2


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "dk-uxnet-tiny"])
def test_no_network_waits_for_a_gpu(network):
    figures = take_a_step("supervised", {"network.name": network, "train.average": 0.9}, 0)
    assert {each.device for each in figures.values()} == {META}


# --- what autocast leaves in float32, and the memory format ---


def test_convolutions_are_bfloat16_and_channels_last_and_losses_float32():
    state, settings = state_of("dual-mutual", DK_UXNET, CPU)
    seen: list[tuple[nn.Module, torch.Tensor]] = []
    outputs: list[Output] = []
    for module in state.method.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.GroupNorm):
            module.register_forward_hook(lambda module, _, found: seen.append((module, found)))
    for network in state.method.networks:
        network.register_forward_hook(lambda module, _, found: outputs.append(found))
    losses, norm = train_step(state, batch_on(CPU), settings, CPU, torch.bfloat16)
    assert len(seen) > 100 and {found.dtype for _, found in seen} == {torch.bfloat16}
    last = torch.channels_last_3d
    wide = [found for module, found in seen if getattr(module, "in_channels", 1) > 1]
    assert len(wide) > 50 and all(found.is_contiguous(memory_format=last) for found in wide)
    assert {output.logits.dtype for output in outputs} == {torch.bfloat16}
    figures = [*losses.values(), norm, *state.method.parameters()]
    assert {each.dtype for each in figures} == {torch.float32}
    kernels = [each for each in state.method.parameters() if each.ndim == 5]
    assert all(each.is_contiguous(memory_format=last) for each in kernels)


# --- prediction, and so validation ---


def windows_on(device: torch.device) -> windows.Windows:
    return windows.Windows((16, 16, 16), 3, InferSettings(), device, True, 3, True)


@pytest.fixture
def never_read(monkeypatch):
    """Where the maps would come back from the device, once all windows are blended."""
    monkeypatch.setattr(windows.Blended, "result", lambda blended, part: blended)


def test_no_window_waits_for_a_gpu(never_read):
    """All of a scan's windows are told to the device before anything is read back."""
    state, _ = state_of("dual-mutual", DK_UXNET, META)
    image = np.zeros((1, 16, 16, 30), np.float32)
    told = []
    found = windows.sliding_window(
        state.method.predictor().eval(), image, windows_on(META), lambda *done: told.append(done)
    )
    sums = [found.prob, found.weight, found.doubt, found.groups, *found.signature.parts]
    assert {each.device for each in sums} == {META} and len(sums) == 4 + len(told)
    assert told == [(2, 3), (3, 3)]


@pytest.mark.parametrize("why", ["little is free", "the network took it"])
def test_a_scan_that_a_gpu_has_no_room_for_is_blended_on_the_cpu(monkeypatch, why):
    calls = []

    def predictor(images: torch.Tensor) -> Output:
        calls.append(images.device)
        if why == "the network took it" and len(calls) == 2:
            raise torch.OutOfMemoryError
        return Output(torch.zeros(len(images), 3, *images.shape[2:]))  # as if copied

    image = np.zeros((1, 30, 16, 40), np.float32)
    needed = windows_on(META).needed_bytes(image.shape[1:], 1)
    free = 2 * needed - (why == "little is free")
    monkeypatch.setattr(windows, "free_bytes", lambda device=None: free)
    if why == "the network took it":  # what it says cannot be added to maps on the meta device
        monkeypatch.setattr(torch.Tensor, "addcmul_", lambda sums, *parts: sums)
        monkeypatch.setattr(windows.Blended, "result", lambda blended, part: blended)
    found = windows.sliding_window(predictor, image, windows_on(META))
    assert set(calls) == {META} and len(calls) == 6 + 2 * (why == "the network took it")
    if why == "little is free":
        np.testing.assert_allclose(found.prob, 1 / 3, atol=1e-6)
    else:
        assert found.prob.device == CPU


# --- what is prepared for a GPU that is at hand ---


def test_a_part_of_the_script_that_fails_or_lasts_is_told_and_what_it_found_stays(tmp_path):
    path = Path(__file__).parents[1] / "measurements" / "gpu.py"
    script = runpy.run_path(str(path))
    chosen = SimpleNamespace(
        out=tmp_path / "out.json", device="cpu", run=tmp_path / "run", prepared=None, toy=False
    )
    assert sum(share for share, _ in script["PARTS"].values()) <= 1
    assert script["alone"](chosen, "training", 60)["error"] == "left out: no --prepared"
    late = script["alone"](chosen, "machine", 0.02)
    assert late["error"] == "stopped after its 0 s" and late["part_seconds"] < 5
