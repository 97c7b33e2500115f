"""Mean Teacher: weight-averaged consistency targets (Tarvainen & Valpola, NeurIPS 2017, arXiv 1703.01780).

A student S and a teacher T, whose weights follow S: theta_T <- a theta_T + (1-a) theta_S, a = min(1 - 1/(t+1), 0.99).

    L = DiceCE(S(x_l), y_l) + w(t) mean((p_S(x_u) - p_T(x_u + noise))^2),   noise = clip(N(0, 0.1^2), -0.2, 0.2)

w(t) = 0.1 exp(-5 (1-t)^2) over the whole run, 0 in its first thirtieth. Schedule, noise and weight are those of the
2-D program in SSL4MIS. It lets the teacher normalise by its own batches and validates the student: both are settings.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cers.data.case import Batch, SemiBatch
from cers.ema import Teacher
from cers.losses import dice_ce
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, StepResult
from cers.nets.unet import UNet
from cers.schedules import sigmoid_ramp


class MeanTeacherSettings(Settings):
    """Defaults of the 2-D reference, a teacher in eval mode that predicts."""

    consistency: float = Field(0.1, ge=0, description="largest weight of the consistency")
    quiet: float = Field(1 / 30, ge=0, lt=1, description="share of the steps before consistency counts at all")
    noise: float = Field(0.1, ge=0, description="deviation of the noise on the teacher's images; cut off at twice this")
    decay: float = Field(0.99, ge=0, lt=1, description="of the teacher's average")
    teacher_mode: Literal["eval", "train"] = Field("eval", description="train: the teacher normalises by its batch")
    output: Literal["teacher", "student"] = Field("teacher", description="the declared branch")


class MeanTeacher(Method):
    """A student and its average, which agree on unlabelled images."""

    Settings = MeanTeacherSettings
    networks = "1 + teacher"

    def __init__(self, setup: Setup, settings: MeanTeacherSettings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.student = UNet(setup.encoder())
        self.teacher = Teacher(self.student, settings.decay, settings.teacher_mode)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step: supervised on the labelled images, consistent on the others."""
        n = len(batch.labelled)
        logits = self.student(batch.joined().images)
        segmentation = dice_ce(logits[:n], batch.labelled.required_masks)
        logs = {"segmentation": segmentation.detach()}
        if batch.unlabelled is None:
            yield StepResult(segmentation, logs)
            return
        consistency = self._consistency(logits[n:].float().sigmoid(), batch.unlabelled.images, progress)
        yield StepResult(
            segmentation + self.weight(progress) * consistency, logs | {"consistency": consistency.detach()}
        )

    def after_step(self) -> None:
        """The teacher follows the student."""
        self.teacher.update(self.student)

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """Branches `teacher` and `student`; the declared one is `settings.output`."""
        nets = {"teacher": self.teacher, "student": self.student}
        branches = {name: net(batch.images).float().sigmoid() for name, net in nets.items()}
        return Prediction(branches[self.settings.output], branches)

    def weight(self, progress: Progress) -> float:
        """w(t) of the consistency."""
        if progress.fraction < self.settings.quiet:
            return 0.0
        return self.settings.consistency * sigmoid_ramp(progress.fraction)

    def _consistency(self, student: Tensor, images: Tensor, progress: Progress) -> Tensor:
        return F.mse_loss(student, self._taught(images))

    def _taught(self, images: Tensor) -> Tensor:
        """The teacher's probabilities under fresh noise."""
        noise = self.settings.noise
        noisy = images + (noise * torch.randn_like(images)).clamp(-2 * noise, 2 * noise)
        probability: Tensor = self.teacher(noisy).float().sigmoid()
        return probability
