"""CPS: cross pseudo supervision (Chen et al., CVPR 2021, arXiv 2106.01226).

Two networks of one architecture, differently initialised. Each learns from labels, and on unlabelled images from the
other's hard labels Y = [p > 1/2], which carry no gradient:

    L = sum_i DiceCE(S_i(x_l), y_l) + w(t) [CE(S_1(x_u), Y_2) + CE(S_2(x_u), Y_1)],   w(t) = 0.1 exp(-5 (1-t)^2)

Schedule and weight are those of the 2-D program in SSL4MIS (the paper: 1.5 with CutMix). Its two optimisers are one
here; they share no weight, so that only the clipping of the gradient sees both.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cers.data.case import Batch, SemiBatch
from cers.losses import dice_ce
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, StepResult
from cers.nets.unet import UNet
from cers.schedules import sigmoid_ramp


class CPSSettings(Settings):
    """Defaults of the 2-D reference."""

    consistency: float = Field(0.1, ge=0, description="largest weight of the cross supervision")
    output: Literal["first", "second"] = Field("first", description="the declared branch")


class CPS(Method):
    """Two networks that label for each other."""

    Settings = CPSSettings
    networks = "2"

    def __init__(self, setup: Setup, settings: CPSSettings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.first = UNet(setup.encoder())
        self.second = UNet(setup.encoder())

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step of both networks."""
        n, images, masks = len(batch.labelled), batch.joined().images, batch.labelled.required_masks
        first, second = self.first(images).float(), self.second(images).float()
        segmentation = dice_ce(first[:n], masks) + dice_ce(second[:n], masks)
        logs = {"segmentation": segmentation.detach()}
        if batch.unlabelled is None:
            yield StepResult(segmentation, logs)
            return
        cross = _cross_entropy(first[n:], second[n:]) + _cross_entropy(second[n:], first[n:])
        weight = self.settings.consistency * sigmoid_ramp(progress.fraction)
        yield StepResult(segmentation + weight * cross, logs | {"cross": cross.detach()})

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """Branches `first` and `second`; the declared one is `settings.output`."""
        nets = {"first": self.first, "second": self.second}
        branches = {name: net(batch.images).float().sigmoid() for name, net in nets.items()}
        return Prediction(branches[self.settings.output], branches)


def _cross_entropy(logits: Tensor, labeller: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, (labeller > 0).float())
