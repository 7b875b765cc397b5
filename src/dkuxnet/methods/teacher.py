"""What methods with a teacher share: a moving average of the student's weights that no gradient reaches."""

import copy
from collections.abc import Sequence

from torch import nn

from dkuxnet.average import update_average
from dkuxnet.methods.base import Method
from dkuxnet.types import NetworkShape


class TeacherMethod(Method):
    """A student, `networks[0]`, and its `teacher`. Options have `decay` of the moving average and `predict`, who answers."""

    def __init__(self, networks: Sequence[nn.Module], options: Method.Options, shape: NetworkShape):
        super().__init__(networks, options, shape)
        self.teacher = copy.deepcopy(self.networks[0]).requires_grad_(False)

    def after_step(self, step: int) -> None:
        update_average(self.teacher, self.networks[0], self.options.decay, step)

    def predictor(self) -> nn.Module:
        return self.teacher if self.options.predict == "teacher" else self.networks[0]
