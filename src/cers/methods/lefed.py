"""LeFeD: learning from feature differences (Zeng et al., TMI 2025, arXiv 2309.14819), "differential decoding".

One encoder, two decoders that enlarge differently; the second sees the encoder's maps through gates that the first
opens, g_i = sg(sigmoid(d1_i)), in the program only (`gates`). Three passes over the same batch, each with its own
optimiser step; what the decoders' features differ in after a pass is added to the encoder's stages in the next,
e_i = 0.001 sg(d2_i - d1_i), and forgotten with the batch.

    L = DiceCE(D1(x_l), y) + DiceCE(D2(x_l), y) + sum_s w_s DiceCE(side_s(x_l), y) + mean((p_1 - p_2)^2 on all images)

with w = 0.8, 0.6, 0.4, 0.2 (0.1) for the side heads of the first decoder from fine to coarse. The agreement has weight
1 and no ramp: the program computes one and does not use it. It takes the lesion's Dice alone where we take DiceCE, as
for every method. Prediction: the first decoder, no feedback. `backbone` "vnet" is what the paper ran, trained from
scratch. Both side heads and bottleneck dropout follow it; the shared encoder keeps its own stochastic depth.
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
from cers.nets.differential import Difference, DifferentialUNet
from cers.nets.vnet import VNetEncoder

SIDE_WEIGHTS = (0.8, 0.6, 0.4, 0.2, 0.1)


class LeFeDSettings(Settings):
    """Defaults of the program, on the shared encoder."""

    backbone: Literal["encoder", "vnet"] = Field("encoder", description="vnet: a 2-D V-Net, as the paper ran it")
    width: int = Field(16, ge=1, description="channels of the V-Net's finest map")
    passes: int = Field(3, ge=1, description="passes over a batch, each with an optimiser step")
    feedback: float = Field(1e-3, ge=0, description="scale of the differences that the next pass adds")
    consistency: float = Field(1.0, ge=0, description="weight of the agreement of both decoders")
    gates: bool = Field(True, description="false: the second decoder sees the encoder's maps as they are")
    dropout: float = Field(0.5, ge=0, lt=1, description="before both heads")


class LeFeD(Method):
    """An encoder that learns from where its two decoders differ."""

    Settings = LeFeDSettings
    optimiser_steps = 3
    networks = "1, two decoders"

    def __init__(self, setup: Setup, settings: LeFeDSettings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.optimiser_steps = settings.passes
        encoder = setup.encoder() if settings.backbone == "encoder" else VNetEncoder(settings.width)
        self.network = DifferentialUNet(encoder, settings.gates, settings.dropout)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """`passes` steps, each after the first with the feedback of the one before."""
        images, masks, n = batch.joined().images, batch.labelled.required_masks, len(batch.labelled)
        feedback = None
        for _ in range(self.settings.passes):
            seen: Difference = self.network(images, feedback)
            yield self._result(seen, masks, n)
            feedback = seen.feedback(self.settings.feedback)

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """The declared branch `first`, without feedback."""
        probability = self.network.predict(batch.images).float().sigmoid()
        return Prediction(probability, {"first": probability})

    def _result(self, seen: Difference, masks: Tensor, n: int) -> StepResult:
        segmentation = dice_ce(seen.first[:n], masks) + dice_ce(seen.second[:n], masks)
        for weight, side in zip(SIDE_WEIGHTS, seen.sides, strict=False):
            segmentation = segmentation + weight * dice_ce(side[:n], masks)
        consistency = F.mse_loss(seen.first.float().sigmoid(), seen.second.float().sigmoid())
        logs = {"segmentation": segmentation.detach(), "consistency": consistency.detach()}
        ratio = relative_feedback(seen, self.settings.feedback)
        return StepResult(segmentation + self.settings.consistency * consistency, logs | {"feedback": ratio})


def relative_feedback(seen: Difference, scale: float) -> Tensor:
    """Mean over the encoder's maps x of |e| / |x|: how large the feedback e to the next pass is beside them."""
    pairs = zip(seen.feedback(scale), seen.encoded, strict=True)
    return torch.stack([e.float().norm() / x.detach().float().norm().clamp(min=1e-6) for e, x in pairs]).mean()
