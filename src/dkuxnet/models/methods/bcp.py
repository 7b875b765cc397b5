"""BCP, bidirectional copy-paste: labelled and unlabelled scans in one patch.

Source: Bai et al., CVPR 2023, arXiv 2305.00673.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dkuxnet.core.types import Batch
from dkuxnet.models.components import keep_largest_component
from dkuxnet.models.methods.base import probabilities
from dkuxnet.models.methods.losses import hard_label
from dkuxnet.models.methods.mixing import before, paste, random_boxes
from dkuxnet.models.methods.options import Edge, Steps, Weight
from dkuxnet.models.methods.teacher import TeacherMethod, TeacherOptions


@dataclass(frozen=True)
class BCPOptions(TeacherOptions):
    """box: edge of the pasted box as a share of the patch's, beta in the paper.

    alpha: weight of what the teacher has labelled. pretrain_steps: steps of copy-paste among
    labelled patches alone. largest_component: of each class keep the largest component of the
    teacher's label alone, for organs of which there is one.
    """

    box: Edge = 2 / 3
    alpha: Weight = 0.5
    pretrain_steps: Steps = field(default=200, metadata={"share": 0.25})
    largest_component: bool = True


class BCP(TeacherMethod[BCPOptions]):
    """A student learns on labelled patches with a box of an unlabelled one, and vice versa.

    What is unlabelled has the largest component of the teacher's label as its pseudo-label. Before
    `pretrain_steps`, labelled patches are pasted into each other, see `mixing.before`. Weak
    views are mixed, and the intensities of what comes out are changed once.

    The teacher follows the student from the first step (the paper starts it from the pre-trained
    one). The query loss reads true labels alone.
    """

    mixes = "labelled"
    Options = BCPOptions

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, image, label = self.options, batch.labelled.weak, batch.label
        pretraining = batch.unlabelled is None or step < options.pretrain_steps
        if batch.unlabelled is None or pretraining:
            other_image, other_label = before(image), before(label)
        else:
            other_image = batch.unlabelled.weak
            other_label = self.pseudo_label(other_image)
        # as many mixed patches of each direction as the larger of the two parts has
        pairs = torch.arange(max(len(image), len(other_image)), device=image.device)
        own, theirs = pairs % len(image), pairs % len(other_image)
        image, label = image[own], label[own]
        other_image, other_label = other_image[theirs], other_label[theirs]
        boxes = random_boxes(2 * len(pairs), image.shape[2:], options.box, image.device)
        into, out = boxes.chunk(2)
        mixed_image = torch.cat([paste(other_image, image, into), paste(image, other_image, out)])
        mixed_label = torch.cat([paste(other_label, label, into), paste(label, other_label, out)])
        # parts with intensities of their own would draw the box into the image
        output = self.networks[0](batch.strengthen(mixed_image))
        if pretraining:  # every label is true
            return self.supervision([output], mixed_label)
        labelled = torch.cat([~into, out])[:, 0].float()  # where the true labels are
        losses = {
            "labelled": self.segmentation(output.logits, mixed_label, labelled),
            "pasted": options.alpha * self.segmentation(output.logits, mixed_label, 1 - labelled),
        }
        return losses | self.query_supervision([output], mixed_label, labelled)

    @torch.no_grad()
    def pseudo_label(self, image: Tensor) -> Tensor:
        """The teacher's hard label: (B, C, X, Y, Z) -> (B, X, Y, Z) int64."""
        label = hard_label(probabilities(self.teacher(image)))
        if not self.options.largest_component:
            return label
        kept = [torch.from_numpy(keep_largest_component(each)) for each in label.cpu().numpy()]
        return torch.stack(kept).to(image.device)
