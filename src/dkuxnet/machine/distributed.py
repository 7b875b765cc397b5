"""One training in several processes, on one machine or many, which torchrun starts.

No method knows of it.

Every process builds the whole batch, runs the networks on its share of the patches, and gets the
outputs of all of them. So each computes the losses of the whole batch, whatever they compare,
exactly as one process does; its gradients are those of its own patches, and their sum over the
processes is the gradient of the whole. DistributedDataParallel would average losses of parts
instead: a soft Dice over a batch, a mixture of two patches or a mean over sure voxels is not such
an average.
"""

import datetime
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # public, but not in __all__
from torch.distributed.rendezvous import rendezvous

from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Output

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

    Without torchrun nothing happens. Raises UserError in the processes that are left when another
    one ends.
    """
    if (
        "RANK" not in os.environ
        or int(os.environ.get("WORLD_SIZE", "1")) == 1
        or dist.is_initialized()
    ):
        yield
        return
    kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, number, count = next(rendezvous("env://"))
    dist.init_process_group(
        kinds, store=of_this_start(store, number, count), rank=number, world_size=count
    )
    try:
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


def sum_gradients(method: nn.Module) -> None:
    """Add up the gradients of the networks over the processes.

    What a method owns besides works on the outputs of all, so that its gradient is whole in each
    process already: these, and running statistics, are averaged.
    """
    if world() == 1:
        return
    networks = method.get_submodule("networks")
    inside = {id(parameter) for parameter in networks.parameters()}
    learnt = [(id(p), p.grad) for p in method.parameters() if p.grad is not None]
    buffers = [buffer for buffer in method.buffers() if buffer.is_floating_point()]
    for tensor in [grad for owner, grad in learnt if owner not in inside] + buffers:
        tensor.div_(world())
    tensors = [grad for _, grad in learnt] + buffers
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


# --- networks that share a batch ---


def shared(network: nn.Module, with_features: bool) -> nn.Module:
    """`network`, which trains on this process's share of a batch and returns the outputs of all.

    Its parameters and their names stay. with_features: also gather `Output.features`, which are
    large.
    """
    if world() == 1:
        return network
    if hasattr(network, "decode"):
        _become(network.get_submodule("encoder"), _SharedEncoder, with_features)
        _become(network, _SharedDecoder, with_features)
    else:
        _become(network, _SharedWhole, with_features)
    return network


def _become(module: nn.Module, part: type, with_features: bool) -> None:
    """Make a module one of a subclass with `part` in front.

    Not a wrapper: the names in the state_dict stay, and copies (teachers) are shared as well.
    """
    content = {"gathers_features": with_features}
    module.__class__ = type(
        f"{part.__name__}{type(module).__name__}", (part, type(module)), content
    )


class _Shared(nn.Module):
    gathers_features: bool


class _SharedEncoder(_Shared):
    def forward(self, image: Tensor) -> Any:
        return super().forward(share(image) if self.training else image)


class _SharedDecoder(_Shared):
    def decode(self, image: Tensor, features: Any) -> Output:
        decode = cast("Any", super()).decode  # the network's own
        output: Output = decode(share(image) if self.training else image, features)
        return gather(output, self.gathers_features) if self.training else output


class _SharedWhole(_Shared):
    def forward(self, image: Tensor) -> Output:
        output: Output = super().forward(share(image) if self.training else image)
        return gather(output, self.gathers_features) if self.training else output


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch."""
    if len(batch) % world():
        raise UserError(
            f"a batch of {len(batch)} patches cannot be shared by {world()} processes alike: "
            "choose train.labelled_batch and train.unlabelled_batch as multiples of their number"
        )
    return batch.chunk(world())[rank()]


def gather(output: Output, with_features: bool) -> Output:
    """The outputs of all processes, in the order of the batch."""
    features = output.features if with_features else None
    parts = [output.logits, output.group_prob, features, *output.layer_group_prob]
    there = [part for part in parts if part is not None]
    flat = cast("Tensor", _Gather.apply(torch.cat([p.flatten(1).float() for p in there], dim=1)))  # type: ignore[no-untyped-call]  # torch's
    pieces = iter(torch.split(flat, [part[0].numel() for part in there], dim=1))
    logits, group_prob, features, *layers = (
        None if part is None else next(pieces).reshape(-1, *part.shape[1:]) for part in parts
    )
    if logits is None:
        raise RuntimeError("an output has logits")
    return Output(logits, group_prob, tuple(p for p in layers if p is not None), features)


class _Gather(torch.autograd.Function):
    """(b, L) of each process -> (B, L), whose gradient each process takes for its own part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.rows = len(part)
        parts = [torch.empty_like(part) for _ in range(world())]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        mine: Tensor = grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]
        return mine
