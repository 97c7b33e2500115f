"""BCP: bidirectional copy-paste (Bai et al., CVPR 2023, arXiv 2305.00673).

A mask M, 0 in one random rectangle of two thirds of each side and 1 around it, is shared by the batch. Stage
"pre-training" learns from labelled images pasted into each other, x_a M + x_b (1-M). In stage "self-training" a
teacher T, which starts as the student S and follows it (a = 0.99), labels the unlabelled images, and with halves a, b
of the labelled and a', b' of the unlabelled images S learns from

    x_in = x_a' M + x_a (1-M),   x_out = x_b M + x_b' (1-M),   labels likewise

    L = 1/2 sum over both of [R(labelled region) + 1/2 R(unlabelled region)],   R = two-class Dice + mean CE there

so that a step trains on half as many images as it reads. The program keeps the largest component of a pseudo-label;
lesions come in several pieces, so here that is a setting. It starts self-training from the weights that validated
best in pre-training; here from the last ones. It predicts with the student.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from cers.data.case import Batch, SemiBatch
from cers.ema import Teacher
from cers.losses import region_dice_ce
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, Stage, StepResult
from cers.nets.unet import UNet


class BCPSettings(Settings):
    """Defaults of the paper, but for the largest component."""

    pretraining_share: float = Field(0.25, gt=0, lt=1, description="share of the steps spent in pre-training")
    unlabelled_weight: float = Field(0.5, ge=0, description="of regions that the teacher labelled")
    side: float = Field(2 / 3, gt=0, lt=1, description="sides of the pasted rectangle, of the image's")
    largest_component: bool = Field(False, description="keep only the largest piece of a pseudo-label, as the program")
    smallest_piece: int = Field(0, ge=0, description="pixels; smaller pieces of a pseudo-label are dropped")
    decay: float = Field(0.99, ge=0, lt=1, description="of the teacher's average")


class BCP(Method):
    """A student that learns from collages of labelled and unlabelled images."""

    Settings = BCPSettings
    networks = "1 + teacher"

    def __init__(self, setup: Setup, settings: BCPSettings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.student = UNet(setup.encoder())
        self.teacher = Teacher(self.student, settings.decay)

    def stages(self) -> tuple[Stage, ...]:
        """Pre-training on labelled images and self-training; both count inside the budget."""
        share = self.settings.pretraining_share
        return (Stage("pre-training", share, unlabelled=False), Stage("self-training", 1 - share))

    def start_stage(self, stage: str, labelled: Iterable[Batch]) -> None:
        """The teacher starts self-training as the student."""
        if stage == "self-training":
            self.teacher.restart(self.student)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step on collages; of labelled images only in pre-training, and where there are no others."""
        images, masks = batch.labelled.images, batch.labelled.required_masks
        outside = rectangle(batch.labelled.size, self.settings.side).to(images.device)
        if progress.stage == "pre-training" or batch.unlabelled is None:
            logits = self.student(paste(*halves(images), outside))
            target = paste(*halves(masks), outside)
            loss = region_dice_ce(logits, target, outside) + region_dice_ce(logits, target, 1 - outside)
            yield StepResult(loss, {"segmentation": loss.detach()})
            return
        pairs = max(len(images), len(batch.unlabelled))
        others = cycled(batch.unlabelled.images, pairs)
        collages = bidirectional(cycled(images, pairs), others, outside)
        targets = bidirectional(cycled(masks, pairs), self._pseudo_labels(others), outside)
        inner, outer = self.student(torch.cat(collages)).chunk(2)
        yield bidirectional_loss((inner, outer), targets, outside, self.settings.unlabelled_weight)

    def after_step(self) -> None:
        """The teacher follows the student (and starts anew when self-training does)."""
        self.teacher.update(self.student)

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """The single branch `student`."""
        probability = self.student(batch.images).float().sigmoid()
        return Prediction(probability, {"student": probability})

    def _pseudo_labels(self, images: Tensor) -> Tensor:
        """The teacher's hard labels (B,1,H,W), cleaned as the settings say."""
        logits: Tensor = self.teacher(images)
        labels = (logits > 0).float()
        smallest = self.settings.smallest_piece
        if not self.settings.largest_component and smallest == 0:
            return labels
        cleaned = [clean(label, self.settings.largest_component, smallest) for label in labels[:, 0].cpu().numpy()]
        return torch.from_numpy(np.stack(cleaned))[:, None].to(labels)


def rectangle(size: tuple[int, int], side: float) -> Tensor:
    """M (1,1,H,W): 0 in one rectangle of floor(`side` H) x floor(`side` W) pixels somewhere, 1 around it."""
    parts = [max(1, int(side * whole + 1e-9)) for whole in size]  # 2/3 of 96 is 64, not 63.99…
    top, left = (int(torch.randint(whole - part, ())) for whole, part in zip(size, parts, strict=True))
    mask = torch.ones(1, 1, *size)
    mask[:, :, top : top + parts[0], left : left + parts[1]] = 0
    return mask


def paste(context: Tensor, patch: Tensor, outside: Tensor) -> Tensor:
    """`context` where M is 1 and `patch` where it is 0."""
    return torch.where(outside > 0, context, patch)


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """First and second half of a batch; of an odd number both hold the middle one."""
    half = (len(values) + 1) // 2
    return values[:half], values[-half:]


def cycled(values: Tensor, count: int) -> Tensor:
    """`count` rows, from the first on and again."""
    return values[torch.arange(count, device=values.device) % len(values)]


def bidirectional(labelled: Tensor, unlabelled: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Labelled patches in unlabelled contexts (in), and unlabelled patches in labelled contexts (out)."""
    (a, b), (c, d) = halves(labelled), halves(unlabelled)
    return paste(c, a, outside), paste(b, d, outside)


def bidirectional_loss(
    logits: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], outside: Tensor, weight: float
) -> StepResult:
    """Half the sum over both collages of the labelled region's loss and `weight` times the unlabelled region's."""
    (inner, outer), (inner_target, outer_target) = logits, targets
    labelled = region_dice_ce(inner, inner_target, 1 - outside) + region_dice_ce(outer, outer_target, outside)
    unlabelled = region_dice_ce(inner, inner_target, outside) + region_dice_ce(outer, outer_target, 1 - outside)
    loss = (labelled + weight * unlabelled) / 2
    return StepResult(loss, {"labelled": labelled.detach() / 2, "unlabelled": unlabelled.detach() / 2})


def clean(label: NDArray[np.float32], largest_only: bool, smallest: int) -> NDArray[np.float32]:
    """A mask (H,W) without pieces under `smallest` pixels, or with its largest piece only (8-connected)."""
    pieces, count = ndimage.label(label, structure=np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = sizes >= max(smallest, 1)
    if largest_only:
        kept &= np.arange(len(sizes)) == sizes.argmax()
    return np.asarray(kept[pieces], np.float32)
