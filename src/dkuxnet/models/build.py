"""Settings and a network's shape -> a method with its networks.

The only module that brings networks and methods together.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dkuxnet.core.config import Settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup, parse_options
from dkuxnet.core.seeds import INITIAL, step_seed
from dkuxnet.core.types import NetworkShape
from dkuxnet.machine.distributed import shared
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.base import Method
from dkuxnet.models.networks import NETWORKS


def build_method(settings: Settings, shape: NetworkShape, network: str) -> Method[Any]:
    """The method with its freshly initialised networks; the same seed gives the same weights.

    network: by name, where the settings leave that to the plan of the data set. Raises UserError
    for an unknown name or option, and where network and method do not fit.
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
            networks.append(shared(builder(shape, settings.network.options), method.uses_features))
        return method(networks, options, shape)
    # AssertionError and ZeroDivisionError are torch's for sizes that do not fit
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise UserError(f"method '{chosen.name}' with network '{name}': {error}") from error
