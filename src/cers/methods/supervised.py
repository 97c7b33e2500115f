"""Supervised U-Net (Ronneberger et al., MICCAI 2015, arXiv 1505.04597): the bound that every other method must beat.

With a pyramid encoder and the residual decoder of the CERS paper (its Table 1, "U-Net"), on labelled images only.
"""

from collections.abc import Iterator

import torch

from cers.data.case import Batch, SemiBatch
from cers.losses import dice_ce
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, Stage, StepResult
from cers.nets.decoders import ResidualUNetDecoder


class SupervisedSettings(Settings):
    """Nothing to choose."""


class Supervised(Method):
    """Encoder and decoder trained by Dice and cross entropy on labelled images only; never touches the others."""

    Settings = SupervisedSettings

    def __init__(self, setup: Setup, settings: SupervisedSettings) -> None:
        super().__init__(setup, settings)
        self.encoder = setup.encoder()
        self.decoder = ResidualUNetDecoder(self.encoder.channels)

    def stages(self) -> tuple[Stage, ...]:
        """One stage without unlabelled images."""
        return (Stage("supervised", 1.0, unlabelled=False),)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step on the labelled images."""
        loss = dice_ce(self._logits(batch.labelled), batch.labelled.required_masks)
        yield StepResult(loss, {"segmentation": loss.detach()})

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """The single branch `base`."""
        probability = self._logits(batch).float().sigmoid()
        return Prediction(probability, {"base": probability})

    def _logits(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self.decoder(self.encoder(batch.images), batch.size)
        return logits
