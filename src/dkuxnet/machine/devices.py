"""Devices: which one, how modules go there, and what to say when its memory is full."""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from dkuxnet.core.errors import UserError
from dkuxnet.machine.distributed import local_rank, world

AnyModule = TypeVar("AnyModule", bound=nn.Module)
# What torch's RuntimeError says on a CPU, where it has no kind of error for a full memory.
OUT_OF_MEMORY_ON_CPU = ("DefaultCPUAllocator", "std::bad_alloc")


def choose_device(name: str) -> torch.device:
    """The device by its name; "auto" is the GPU where there is one.

    Raises UserError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world() > 1:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # there are devices that hold no data
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"--device {name}: not available here; try {' or '.join(devices())}"
        ) from error
    return device


def devices() -> list[str]:
    """Names of the devices that are here, and "auto"."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def to_device(module: AnyModule, device: torch.device) -> AnyModule:
    """Move a module to a device, its kernels in channels-last memory.

    Convolutions are then faster on a CPU, and LayerNorm over channels reads contiguous memory.
    """
    module.to(device)
    for parameter in module.parameters():
        if parameter.ndim == 5:  # Module.to would refuse a module with a parameter of 4 axes
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return module


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Where wanted, torch takes algorithms that give the same bits every time in this block.

    It warns by name of what has none. cuBLAS reads its variable when a process first uses it. Where
    not wanted, torch's switch is left alone: even setting it to what it is loads torch's compiler.
    """
    if not wanted:
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[2:]


@contextmanager
def telling_out_of_memory(advise: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Out of memory is a UserError.

    advise: called once the memory of the block is free again; what to lower, and to what.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        told = any(sign in str(error) for sign in OUT_OF_MEMORY_ON_CPU)
        if isinstance(error, RuntimeError) and not (
            isinstance(error, torch.OutOfMemoryError) or told
        ):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors
        cause = error
    raise UserError(
        f"out of memory: {advise() or 'take a smaller network, patch or batch'}"
    ) from cause
