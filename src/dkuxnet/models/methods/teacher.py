"""What methods with a teacher share: the moving average (EMA) of a student, and its targets."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from dkuxnet.core.shares import draw_uniform
from dkuxnet.core.types import NetworkShape, Views
from dkuxnet.models.methods.average import update_average
from dkuxnet.models.methods.base import Method
from dkuxnet.models.methods.options import Decay, MethodOptions
from dkuxnet.models.methods.outline import outline_displacement, warp


@dataclass(frozen=True)
class TeacherOptions(MethodOptions):
    """decay: of the teacher's moving average. predict: which of the two predicts."""

    decay: Decay = 0.99
    predict: Literal["teacher", "student"] = "teacher"


TeacherOptionsT = TypeVar("TeacherOptionsT", bound=TeacherOptions)


class TeacherMethod(Method[TeacherOptionsT]):
    """A student, `networks[0]`, and its `teacher`, which no gradient reaches."""

    def __init__(
        self, networks: Sequence[nn.Module], options: TeacherOptionsT, shape: NetworkShape
    ):
        super().__init__(networks, options, shape)
        self.teacher = copy.deepcopy(self.networks[0]).requires_grad_(False)

    def after_step(self, step: int) -> None:
        update_average(self.teacher, self.networks[0], self.options.decay, step)

    def predictor(self) -> nn.Module:
        return self.teacher if self.options.predict == "teacher" else self.networks[0]


@torch.no_grad()
def teacher_targets(
    patches: Views, predict: Callable[[Tensor], dict[str, Tensor]], outline: float
) -> tuple[Views, dict[str, Tensor]]:
    """The unlabelled patches for the student, and the teacher's targets on them.

    predict: the teacher, weak views (B, C, X, Y, Z) -> maps (B, C', X, Y, Z) by name, the class
    probabilities first. outline: how far the outline of the foreground that these show moves at
    most, in both views and in every map, see `outline.outline_displacement`; 0: nothing moves.
    """
    if not outline:
        return patches, predict(patches.weak)
    # drawn before a teacher may draw: it does so for the patches of this process alone
    outwards = draw_uniform(len(patches.weak), device=patches.weak.device)
    maps = predict(patches.weak)
    foreground = 1 - next(iter(maps.values()))[:, :1]
    displacement = outline_displacement(foreground, outwards, outline, patches.edges)
    views = replace(
        patches, weak=warp(patches.weak, displacement), strong=warp(patches.strong, displacement)
    )
    return views, {name: warp(each, displacement) for name, each in maps.items()}
