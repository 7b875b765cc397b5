"""What methods with a teacher share: a moving average of the student's weights that no gradient
reaches, and organs that grow and shrink between what it sees and what it teaches.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dkuxnet.core.types import NetworkShape, Views
from dkuxnet.models.methods.average import update_average
from dkuxnet.models.methods.base import Method
from dkuxnet.models.methods.outline import displaced, outline_displacement


class TeacherMethod(Method):
    """A student, `networks[0]`, and its `teacher`.

    Options have `decay` of the moving average and `predict`, who answers.
    """

    def __init__(self, networks: Sequence[nn.Module], options: Method.Options, shape: NetworkShape):
        super().__init__(networks, options, shape)
        self.teacher = copy.deepcopy(self.networks[0]).requires_grad_(False)

    def after_step(self, step: int) -> None:
        update_average(self.teacher, self.networks[0], self.options.decay, step)

    def predictor(self) -> nn.Module:
        return self.teacher if self.options.predict == "teacher" else self.networks[0]


@torch.no_grad()
def taught(
    patches: Views, answer: Callable[[Tensor], dict[str, Tensor]], outline: float
) -> tuple[Views, dict[str, Tensor]]:
    """The unlabelled patches to learn from, and what the teacher says of them.

    answer: weak views -> maps (B, C, X, Y, Z) by name, the class probabilities first. outline: how
    far the outline of the foreground that these show moves at most, in both views and in every map;
    see `outline.outline_displacement`. 0: it stays.
    """
    if not outline:
        return patches, answer(patches.weak)
    # drawn before a teacher may draw: where processes share the patches, each runs its own, and all
    # must agree
    outwards = 2 * torch.rand(len(patches.weak), device=patches.weak.device) - 1
    maps = answer(patches.weak)
    foreground = 1 - next(iter(maps.values()))[:, :1]
    displacement = outline_displacement(foreground, outwards, outline)
    views = Views(displaced(patches.weak, displacement), displaced(patches.strong, displacement))
    return views, {name: displaced(each, displacement) for name, each in maps.items()}
