"""Devices: which one, how modules go there, and what to say of what one cannot do."""

import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from dkuxnet.core.errors import UserError
from dkuxnet.machine.distributed import local_rank, world

AnyModule = TypeVar("AnyModule", bound=nn.Module)
# What torch's RuntimeError says where it has no kind of error for a full memory.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc", "MPS backend out of memory")
# What torch says of an operation that such a device lacks, or of float64.
LACKS = re.compile(
    r"(?:(aten::[\w.]+).*)?(?:for|from|as) the '?(MPS|XPU)'? (?:device|backend|framework)",
    re.DOTALL,
)


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
    others = {"mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    return ["auto", "cpu", *gpus, *(name for name, here in others.items() if here)]


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of this computer, or of a device, did not suffice."""
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def what_is_lacking(error: BaseException) -> str | None:
    """A line on what the device cannot do, and what to do about it; None of any other error."""
    found = LACKS.search(str(error)) if isinstance(error, RuntimeError | TypeError) else None
    if found is None:
        return None
    operation, device = found.groups()
    fallback = f"set PYTORCH_ENABLE_{device}_FALLBACK=1 and the CPU does it, or "
    return (
        f"--device {device.lower()}: torch has no {operation or 'float64'} there; "
        f"{fallback if operation else ''}use --device cpu"
    )


@contextmanager
def telling_device_errors(advise: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Out of memory, and an operation that the device lacks, are a UserError.

    advise: called once the memory of the block is free again; what to lower, and to what.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError, TypeError) as error:
        if (lacking := what_is_lacking(error)) is not None:
            raise UserError(lacking) from error
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors
        cause = error
    raise UserError(
        f"out of memory: {advise() or 'take a smaller network, patch or batch'}"
    ) from cause
