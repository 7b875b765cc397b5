"""Settings and a network's shape -> a method with its networks.

The only module that brings networks and methods together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dkuxnet.core.config import Settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup, parse_options
from dkuxnet.core.seeds import INITIAL, step_seed
from dkuxnet.core.types import NetworkShape
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.base import Ensemble, Method
from dkuxnet.models.networks import NETWORKS

StateDict = dict[str, Tensor]


def build_method(
    settings: Settings, shape: NetworkShape, network: str, start: Sequence[StateDict] = ()
) -> Method[Any]:
    """The method with its freshly initialised networks; the same seed gives the same weights.

    network: by name, where the settings leave that to the plan of the data set. start: weights that
    the first of the networks begin with, one of them each, see `take_weights`. Two begin with the
    same never: they would stay the same. Raises UserError for an unknown name or option, and where
    network and method do not fit.
    """
    chosen, name = settings.method, settings.network.name or network
    method: type[Method[Any]] = lookup(METHODS, chosen.name, "method")
    builder: Callable[[NetworkShape, dict[str, Any]], nn.Module]
    builder = lookup(NETWORKS, name, "network")
    options = parse_options(method.Options, chosen.options, f"method.{chosen.name}")
    networks = []
    try:
        for branch in range(method.branches):
            torch.manual_seed(step_seed(settings.train.seed, INITIAL, branch))
            made = builder(shape, settings.network.options)
            if branch < len(start):
                take_weights(made, start[branch])
            networks.append(made)
        return method(networks, options, shape)
    # AssertionError and ZeroDivisionError are torch's for sizes that do not fit
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise UserError(f"method '{chosen.name}' with network '{name}': {error}") from error


@torch.no_grad()
def take_weights(network: nn.Module, weights: StateDict) -> None:
    """Take what fits by name and shape; what does not stays as it is.

    Where a kernel has more channels in, the further ones become 0: the network then gives what
    the other one gave, whatever these channels hold. One that stays in the plane of slices takes
    the sum across them, and gives the other for the middle one.
    """
    misfits = misfits_of(network, weights)
    for name, own in network.state_dict().items():
        if name not in misfits:
            own.zero_()
            part, other = _fitted(own, weights[name])
            part.copy_(other)


def misfits_of(network: nn.Module, weights: StateDict) -> list[str]:
    """Names of the weights of a network that it cannot take, see `take_weights`."""
    return [
        name
        for name, own in network.state_dict().items()
        if (other := weights.get(name)) is None or not _fits(*_fitted(own, other))
    ]


def _fits(own: Tensor, other: Tensor) -> bool:
    return own.shape == other.shape


def _fitted(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a weight for what another one says, and that: of one shape where they fit."""
    if own.ndim != other.ndim or own.ndim < 2:
        return own, other
    own = own[:, : other.shape[1]]
    for axis in range(2, own.ndim):
        ours, theirs = own.shape[axis], other.shape[axis]
        if ours == 1 and theirs % 2:
            other = other.sum(dim=axis, keepdim=True)
        elif theirs == 1 and ours % 2:
            own = own.narrow(axis, ours // 2, 1)
    return own, other


def networks_of(predictor: nn.Module) -> list[nn.Module]:
    """The networks whose mean predicts, or the one."""
    return [*predictor.networks] if isinstance(predictor, Ensemble) else [predictor]
