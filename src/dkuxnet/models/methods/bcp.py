"""BCP, bidirectional copy-paste (Bai et al., CVPR 2023, arXiv 2305.00673): labelled and unlabelled
scans in one patch.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.components import keep_largest_component
from dkuxnet.models.methods.base import Decay, Edge, Steps, Weight, probabilities
from dkuxnet.models.methods.losses import decision, query_loss_all, segmentation_loss
from dkuxnet.models.methods.mixing import paste, random_boxes
from dkuxnet.models.methods.teacher import TeacherMethod


class BCP(TeacherMethod):
    """The student learns on labelled patches with a box of an unlabelled one pasted in, and the
    other way round; a teacher's largest component labels what is unlabelled. Before
    `pretrain_steps` labelled patches are pasted into each other.

    The teacher follows the student from the first step (the paper starts it from the pre-trained
    one). The query loss reads true labels alone.
    """

    @dataclass(frozen=True)
    class Options:
        """box: edge of the pasted box as a share of the patch's, beta in the paper. alpha: weight
        of what is labelled by the teacher. pretrain_steps: copy-paste among labelled patches
        alone. decay, predict: of the teacher. w_qd: weight of the query loss.
        largest_component: of each class keep that of the teacher's label alone, for organs of
        which there is one.
        """

        box: Edge = 2 / 3
        alpha: Weight = 0.5
        pretrain_steps: Steps = 200
        decay: Decay = 0.99
        w_qd: Weight = 0.1
        largest_component: bool = True
        predict: Literal["teacher", "student"] = "teacher"

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, image, label = self.options, batch.labelled.strong, batch.labelled.label
        true = batch.unlabelled is None or step < options.pretrain_steps  # whether all labels are
        if true:
            other_image, other_label = image.roll(1, 0), label.roll(1, 0)
        else:
            other_image, other_label = (
                batch.unlabelled.strong,
                self.pseudo_label(batch.unlabelled.weak),
            )
        # as many mixed patches of each direction as the larger of the two parts has
        pairs = torch.arange(max(len(image), len(other_image)), device=image.device)
        mine, theirs = pairs % len(image), pairs % len(other_image)
        image, label, other_image, other_label = (
            image[mine],
            label[mine],
            other_image[theirs],
            other_label[theirs],
        )
        boxes = random_boxes(2 * len(pairs), image.shape[2:], options.box, image.device)
        into, out = boxes.chunk(2)
        mixed_image = torch.cat([paste(other_image, image, into), paste(image, other_image, out)])
        mixed_label = torch.cat([paste(other_label, label, into), paste(label, other_label, out)])
        output = self.networks[0](mixed_image)
        if true:
            return self.supervision([output], mixed_label, options.w_qd)
        labelled = torch.cat([~into, out])[:, 0].float()  # where the true labels are
        losses = {
            "labelled": segmentation_loss(output.logits, mixed_label, labelled),
            "pasted": options.alpha * segmentation_loss(output.logits, mixed_label, 1 - labelled),
        }
        if options.w_qd and output.group_prob is not None:
            losses["qd"] = options.w_qd * query_loss_all(
                output, mixed_label, self.shape.groups, labelled
            )
        return losses

    @torch.no_grad()
    def pseudo_label(self, image: Tensor) -> Tensor:
        """The teacher's decision: (B, C, X, Y, Z) -> (B, X, Y, Z) int64."""
        decided = decision(probabilities(self.teacher(image)))
        if not self.options.largest_component:
            return decided
        kept = [torch.from_numpy(keep_largest_component(label)) for label in decided.cpu().numpy()]
        return torch.stack(kept).to(image.device)
