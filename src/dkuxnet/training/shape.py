"""What network and patch a data set and the settings ask for."""

import math

from dkuxnet.core.config import Settings
from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Plan
from dkuxnet.core.types import HALVINGS, NEVER_FLAT, Group, LevelsFlat, NetworkShape, Strides
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.models.networks import FOLLOW_STRIDES
from dkuxnet.models.networks.grouping import default_groups


def network_shape(data: PreparedSet, settings: Settings, with_priors: bool = False) -> NetworkShape:
    """Channels, classes and query groups for a data set.

    The groups are those of the settings, or else follow from the classes. with_priors: the
    foreground probabilities of a coarse stage are further channels.
    """
    names, plan = data.class_names, data.meta.plan
    if not settings.network.groups:
        groups = default_groups(names, settings.network.queries)
    else:
        for group in settings.network.groups:
            for name in group.classes:
                if name not in names:
                    raise UserError(
                        f"network.groups: '{group.name}' names the class '{name}'; the data set "
                        f"has {names}"
                    )
        groups = tuple(
            Group(each.name, tuple(map(names.index, each.classes)), each.queries)
            for each in settings.network.groups
        )
    channels = len(data.meta.channels) + (len(names) - 1 if with_priors else 0)
    strides, flat = strides_for(settings, plan), flat_for(settings, plan)
    return NetworkShape(channels, len(names), groups, strides, flat)


def strides_for(settings: Settings, plan: Plan) -> Strides:
    """The strides of the settings or else of the plan, or halvings for a network without any.

    Raises UserError where the settings ask such a network for others.
    """
    chosen, name = settings.network.strides, settings.network.name or plan.network
    if name in FOLLOW_STRIDES:
        return chosen or plan.strides
    if chosen not in (None, HALVINGS):
        raise UserError(f"network.strides: '{name}' halves along every axis; leave them out")
    return HALVINGS


def flat_for(settings: Settings, plan: Plan) -> LevelsFlat:
    """The flat axes of the settings or else of the plan; none for a network that is never flat.

    Raises UserError where the settings ask such a network for some.
    """
    chosen, name = settings.network.flat, settings.network.name or plan.network
    if name in FOLLOW_STRIDES:
        return plan.flat if chosen is None else chosen
    if chosen not in (None, NEVER_FLAT):
        raise UserError(f"network.flat: '{name}' looks along every axis; leave it out")
    return NEVER_FLAT


def patch_for(shape: NetworkShape, settings: Settings, plan: Plan) -> tuple[int, int, int]:
    """The patch of the settings, or the plan's, enlarged where the network needs it.

    Raises UserError for one in the settings that the network cannot take.
    """
    given = settings.train.patch
    x, y, z = (
        math.ceil(n / d) * d for n, d in zip(given or plan.patch, shape.divisor, strict=True)
    )
    if given and (x, y, z) != given:
        raise UserError(
            f"train.patch: for this network the edges must be multiples of {list(shape.divisor)}, "
            f"got {list(given)}; {[x, y, z]} would do"
        )
    return x, y, z
