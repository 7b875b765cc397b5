"""Settings and a network's shape -> a method with its networks; a finished run -> its predictor.

The only module that brings networks and methods together.
"""

import torch

from dkuxnet.core.config import Settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.lookup import lookup, parse_options
from dkuxnet.core.seeds import INITIAL, step_seed
from dkuxnet.core.types import NetworkShape
from dkuxnet.machine.distributed import shared
from dkuxnet.models.methods import METHODS
from dkuxnet.models.methods.base import Method
from dkuxnet.models.networks import NETWORKS


def build_method(settings: Settings, shape: NetworkShape, network: str) -> Method:
    """The method with its freshly initialised networks; the same seed gives the same weights.

    network: by name, where the settings leave that to the plan of the data set.
    """
    method = lookup(METHODS, settings.method.name, "method")
    name = settings.network.name or network
    builder = lookup(NETWORKS, name, "network")
    options = parse_options(
        method.Options, settings.method.options, f"method.{settings.method.name}"
    )
    networks = []
    try:
        for branch in range(method.branches):
            torch.manual_seed(step_seed(settings.train.seed, INITIAL, branch))
            networks.append(shared(builder(shape, settings.network.options), method.uses_features))
        return method(networks, options, shape)
    except (
        ValueError,
        AssertionError,
        ZeroDivisionError,
    ) as error:  # the last two are torch's for sizes that do not fit
        raise UserError(
            f"method '{settings.method.name}' with network '{name}': {error}"
        ) from error
