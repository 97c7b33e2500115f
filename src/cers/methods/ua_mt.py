"""UA-MT: uncertainty-aware self-ensembling (Yu et al., MICCAI 2019, arXiv 1907.07034).

Mean Teacher whose consistency counts only where the teacher is sure: with pbar the mean of T = 8 further noisy passes
of the teacher and H its binary entropy,

    L_cons = mean((p_S - p_T)^2 over the pixels with H(pbar) < h(t)),   h(t) = (3/4 + 1/4 exp(-5 (1-t)^2)) ln 2

Where no pixel is sure the term is 0. Schedule and numbers are those of the 2-D program in SSL4MIS.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from cers.losses import binary_entropy, region_mean
from cers.methods.base import Progress
from cers.methods.mean_teacher import MeanTeacher, MeanTeacherSettings
from cers.schedules import sigmoid_ramp


class UAMTSettings(MeanTeacherSettings):
    """Mean Teacher's, and how often the teacher is asked."""

    passes: int = Field(8, ge=1, description="T: noisy passes of the teacher by which a pixel's entropy is judged")


class UAMT(MeanTeacher):
    """Mean Teacher that learns from sure pixels only."""

    Settings = UAMTSettings
    settings: UAMTSettings

    def _consistency(self, student: Tensor, images: Tensor, progress: Progress) -> Tensor:
        target = self._taught(images)
        mean = torch.stack([self._taught(images) for _ in range(self.settings.passes)]).mean(dim=0)
        sure = binary_entropy(mean) < self.largest_entropy(progress)
        return region_mean((student - target).square(), sure)

    def largest_entropy(self, progress: Progress) -> float:
        """h(t), below which a pixel is sure: from almost 3/4 of the largest entropy to all of it."""
        return (0.75 + 0.25 * sigmoid_ramp(progress.fraction)) * math.log(2)
