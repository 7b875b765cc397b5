"""The step that a GPU would take, on torch's meta device: shapes and devices without a number.

What waits for a GPU (reading a number, a mask that chooses how many voxels there are) or brings
tensors of two devices together is an error there. What it cannot see: the speed, the memory, what
is computed in bfloat16, and kernels that differ from the CPU's.
"""

from contextlib import nullcontext

import pytest
import torch

from dkuxnet.core.config import load_settings
from dkuxnet.core.types import Batch, NetworkShape, Views
from dkuxnet.models.build import build_method
from dkuxnet.models.methods import METHODS
from dkuxnet.models.networks import NETWORKS
from dkuxnet.models.networks.grouping import default_groups
from dkuxnet.training.loop import make_state, train_step
from tiny import DK_UXNET

META = torch.device("meta")
# what these read at every step: scipy's components, its distances, whose turn it is
WAIT = {"bcp": "copy out of meta", "dtc": "copy out of meta", "ad-mt": r"item\(\)"}


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


def take_a_step(method: str, network: dict, step: int) -> dict[str, torch.Tensor]:
    settings = load_settings(overrides={"method.name": method, "train.average": 0.9} | network)
    shape = NetworkShape(1, 3, default_groups(["background", "organ", "tumour"], 8))
    made = build_method(settings, shape, settings.network.name or "").to(META)
    state = make_state(made, settings.train)
    state.step = step
    for group in state.optimiser.param_groups:
        group["fused"] = False  # which the meta device has not
    image = torch.empty(2, 1, 16, 16, 16, device=META)
    label = torch.empty(2, 16, 16, 16, dtype=torch.int64, device=META)
    batch = Batch(Views(image, image.clone(), label), Views(image.clone(), image.clone()))
    losses, norm = train_step(state, batch, settings.train, META, torch.float32)
    return losses | {"norm": norm}


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_a_gpu(method):
    if method in WAIT:
        with pytest.raises((NotImplementedError, RuntimeError), match=WAIT[method]):
            take_a_step(method, DK_UXNET, 500)
        return
    figures = take_a_step(method, DK_UXNET, 500)
    assert {each.device for each in figures.values()} == {META} and len(figures) > 2


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "dk-uxnet-tiny"])
def test_no_network_waits_for_a_gpu(network):
    figures = take_a_step("supervised", {"network.name": network}, 0)
    assert {each.device for each in figures.values()} == {META}
