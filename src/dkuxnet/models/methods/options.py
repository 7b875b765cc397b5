"""What options of methods may be: checked where settings are read."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Drop = Annotated[float, Field(ge=0, lt=1)]  # share of channels
Edge = Annotated[float, Field(gt=0, lt=1)]  # of a patch
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a moving average
# share of an organ's radius; wider smoothing dissolves the organ itself
Outline = Annotated[float, Field(ge=0, le=0.4)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=0)]
Branch = Literal["mean", "a", "b"]  # which of two branches predicts


@dataclass(frozen=True)
class MethodOptions:
    """What can be set for every method. w_qd: weight of the query loss, for networks with queries.

    An option that is added later gives in its field's metadata, as `before`, the value that stands
    for runs which do not have it.
    """

    w_qd: Weight = 0.1
