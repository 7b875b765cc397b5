"""One training in several processes, on one machine or many, which torchrun starts.

No method knows of it.

Every process reads its share of the patches and computes their losses. What is no mean over
patches, a soft Dice over a batch or a mean over the voxels that count, exchanges its sums
(`core.shares`); the sum of the gradients is then what one process computes. DistributedDataParallel
alone would average the losses of the parts.
"""

import datetime
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # public, but not in __all__
from torch.distributed.rendezvous import rendezvous

from dkuxnet.core.documents import reason
from dkuxnet.core.errors import UserError
from dkuxnet.core.shares import Share, taking

T = TypeVar("T")
LARGE = 2**16  # numbers: what is summed over the processes by itself
JOINING = 600  # seconds that processes wait for each other at the start


class ToldElsewhere(UserError):
    """Another process failed and reports the error itself."""

    told_elsewhere = True


def world() -> int:
    """Processes of this training; 1 where it is not distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the training, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, for the duration of the block.

    Without torchrun nothing happens. Raises UserError where they do not come together, and in the
    processes that are left when another one ends.
    """
    if (
        "RANK" not in os.environ
        or int(os.environ.get("WORLD_SIZE", "1")) == 1
        or dist.is_initialized()
    ):
        yield
        return
    kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, number, count = _meet()
    dist.init_process_group(
        kinds, store=of_this_start(store, number, count), rank=number, world_size=count
    )
    try:
        check_alike({name: metadata.version(name) for name in ("dkuxnet", "torch")})
        with taking(Share(number, count, _total)):
            yield
    except RuntimeError as error:
        # gloo's errors have no kind of their own
        if not isinstance(error, dist.DistError) and "peer" not in str(error):
            raise
        raise ToldElsewhere(
            "another process of this training has ended; its own message says why"
        ) from error
    finally:
        dist.destroy_process_group()


def _meet() -> tuple[Store, int, int]:
    """The store of all processes, the number of this one, and how many there are."""
    try:
        found: tuple[Store, int, int] = next(
            rendezvous("env://", timeout=datetime.timedelta(seconds=JOINING))
        )
        return found
    except ValueError as error:
        raise UserError(
            "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say who trains with whom, as torchrun "
            f"and examples/slurm.sh set them: {reason(error)}"
        ) from error
    except dist.DistError as error:
        raise UserError(
            "the other processes of this training were not met at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason(error)}"
        ) from error


def check_alike(facts: Mapping[str, object]) -> None:
    """Raises UserError in all processes where these are not the same in one as in the first."""
    first, *others = all_gather([dict(facts)])
    for number, its in enumerate(others, 1):
        for name in sorted(first.keys() | its.keys()):
            if (ours := first.get(name)) != (theirs := its.get(name)):
                raise UserError(
                    f"the processes are not alike: {name} is {theirs} in process {number} and "
                    f"{ours} in process 0; start all with the same command, program and data"
                )


def _total(part: Tensor) -> Tensor:
    """The sum of the processes' tensors."""
    whole = part.clone()
    dist.all_reduce(whole)
    return whole


def of_this_start(store: Store, number: int, count: int, seconds: float = JOINING) -> Store:
    """The part of torchrun's store that is of this start alone.

    torchrun keeps one store over all its restarts, in which the addresses of the processes before
    still stand: a fast process would connect to one that is gone. So the first process invents a
    name, and tells it to each that says who it is until each has heard it. Raises UserError where
    not all of them come within `seconds`.
    """
    store.set_timeout(datetime.timedelta(seconds=seconds))
    try:
        name = _name_of_this_start(store, number, count, time.monotonic() + seconds)
        return PrefixStore(name, store)
    except dist.DistError as error:
        raise UserError(
            f"not all of the {count} processes of this training have come within {seconds:g} "
            "seconds: start them together, and where one ends its own message says why"
        ) from error


def _name_of_this_start(store: Store, number: int, count: int, deadline: float) -> str:
    """deadline: of `time.monotonic`. Raises DistError where another process does not come."""
    me = uuid.uuid4().hex
    store.set(f"dkuxnet/{number}", me)
    if number:
        name = str(store.get(f"dkuxnet/to/{me}").decode())
        store.set(f"dkuxnet/{name}/{number}", "heard")
        return name
    waiting = set(range(1, count))
    while waiting:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(
                f"processes {sorted(waiting)} said who they are and do not listen"
            )
        for other in waiting:
            store.set(f"dkuxnet/to/{store.get(f'dkuxnet/{other}').decode()}", me)
        waiting = {other for other in waiting if not store.check([f"dkuxnet/{me}/{other}"])}
        time.sleep(0.01)
    return me


def on_rank_zero(work: Callable[[], T]) -> T:
    """Call `work` in the first process; what it returns, in all of them.

    Its UserError is the others' ToldElsewhere.
    """
    if world() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [work(), None]
        except UserError as error:
            dist.broadcast_object_list([None, str(error)])
            raise
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ToldElsewhere(outcome[1])
    result: T = outcome[0]
    return result


def all_gather(mine: list[T]) -> list[T]:
    """The processes' lists, one after another."""
    if world() == 1:
        return mine
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, mine)
    return [item for part in parts for item in part]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether it is true in any process."""
    if world() == 1:
        return flag
    told = torch.tensor(float(flag), device=device)
    dist.all_reduce(told)
    return bool(told)


def sum_gradients(method: nn.Module, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add up the gradients of a method over the processes; the means of their losses.

    Running statistics are averaged.
    """
    if world() == 1:
        return losses
    grads = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    means = torch.stack([loss.detach() for loss in losses.values()])
    averaged = [means, *(buffer for buffer in method.buffers() if buffer.is_floating_point())]
    for tensor in averaged:
        tensor.div_(world())
    tensors = grads + averaged
    # as they lie in memory, which autograd lays out as the parameters are: dense, and alike in all
    # processes
    memory = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    # large ones are summed where they are: copies would take longer than the sum
    pending = [dist.all_reduce(part, async_op=True) for part in memory if len(part) >= LARGE]
    small = [part for part in memory if len(part) < LARGE]
    flat = torch.cat(small)
    dist.all_reduce(flat)
    for part, summed in zip(small, torch.split(flat, [len(p) for p in small]), strict=True):
        part.copy_(summed)
    for work in pending:
        if work is not None:
            work.wait()
    return dict(zip(losses, means.unbind(), strict=True))
