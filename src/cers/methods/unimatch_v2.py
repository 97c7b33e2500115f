"""UniMatch V2: unified dual-stream consistency (Yang et al., TPAMI 2025, arXiv 2410.10777), its recipe on our encoder.

The teacher T (average of the student S, a = min(1 - 1/(t+1), 0.996)) labels the weak view: Y = [p > 1/2], sure where
max(p, 1-p) >= 0.95. The student sees two strong views of it, each with another image's box pasted in (CutMix, labels
and sureness move along), and half of the images lose channels of the encoder's maps: a random half c of them in the
first view and the complement 1-c in the second, the rest doubled.

    L = 1/2 DiceCE(S(x_l), y_l) + 1/4 sum over both views of mean(sure CE(S(view), Y))

Published with DINOv2 and DPT, and a 40 times larger learning rate for the head; here encoder, decoder and optimiser are
those of every method, and each scale of the pyramid draws its own c.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cers.data.case import Batch, SemiBatch
from cers.ema import Teacher
from cers.losses import dice_ce
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, StepResult
from cers.methods.strong_views import Lesson
from cers.nets.unet import UNet


class UniMatchV2Settings(Settings):
    """Defaults of the paper."""

    confidence: float = Field(0.95, ge=0.5, lt=1, description="from which the teacher's label of a pixel counts")
    weight: float = Field(1.0, ge=0, description="of the unlabelled images beside the labelled ones")
    cutmix: float = Field(0.5, ge=0, le=1, description="probability that an image gets a box of another")
    lesson_dice: float = Field(0.0, ge=0, description="weight of a Dice loss of strong views, sure or not; beyond it")
    kept: float = Field(0.5, ge=0, le=1, description="share of the images that keep all channels")
    decay: float = Field(0.996, ge=0, lt=1, description="of the teacher's average")
    output: Literal["teacher", "student"] = Field("teacher", description="the declared branch")


class UniMatchV2(Method):
    """A student that must see through two strong views what its average sees in the weak one."""

    Settings = UniMatchV2Settings
    strong_views = 2
    networks = "1 + teacher"

    def __init__(self, setup: Setup, settings: UniMatchV2Settings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.student = UNet(setup.encoder())
        self.teacher = Teacher(self.student, settings.decay)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step on the labelled images and both strong views of the others."""
        n, masks = len(batch.labelled), batch.labelled.required_masks
        lesson = self._lesson(batch.unlabelled)
        views = () if lesson is None else (lesson.images,)
        features = self.student.encoder(torch.cat([batch.labelled.images, *views]))
        if lesson is not None:
            features = [torch.cat([f[:n], self._drop_channels(f[n:])]) for f in features]
        logits = self.student.decoder(features, batch.labelled.size).float()
        segmentation = dice_ce(logits[:n], masks)
        logs = {"segmentation": segmentation.detach()}
        if lesson is None:
            yield StepResult(segmentation, logs)
            return
        unlabelled = lesson.loss(logits[n:], self.settings.lesson_dice)
        loss = (segmentation + self.settings.weight * unlabelled) / 2
        yield StepResult(loss, logs | {"unlabelled": unlabelled.detach(), "sure": lesson.sure.mean()})

    def after_step(self) -> None:
        """The teacher follows the student."""
        self.teacher.update(self.student)

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """Branches `teacher` and `student`; the declared one is `settings.output`."""
        nets = {"teacher": self.teacher, "student": self.student}
        branches = {name: net(batch.images).float().sigmoid() for name, net in nets.items()}
        return Prediction(branches[self.settings.output], branches)

    def _lesson(self, batch: Batch | None) -> Lesson | None:
        if batch is None or batch.strong is None:
            return None
        probability = self.teacher(batch.images).float().sigmoid()
        return Lesson.of(batch.strong, probability, self.settings.confidence, self.settings.cutmix)

    def _drop_channels(self, feature: Tensor) -> Tensor:
        """Complementary dropout on maps (2B,C,H,W), the first view's images before the second's."""
        images, channels = len(feature) // 2, feature.shape[1]
        first = 2 * torch.randint(2, (images, channels, 1, 1), device=feature.device).to(feature.dtype)
        keep = torch.randperm(images)[: round(self.settings.kept * images)].to(feature.device)
        first[keep] = 1.0
        return feature * torch.cat([first, 2 - first])
