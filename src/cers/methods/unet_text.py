"""U-Net + report text, supervised: the control without which a method that reads proves nothing.

The supervised U-Net of this package with the report attention of CERS (arXiv 2606.17958, section 2.1) between encoder
and decoder, and nothing else: no rationale, no retrieval, no unlabelled image. L = DiceCE(D(A(E(x_l), t_l)), y_l).
Reports are read at test time as well. Without reports in a run it is the supervised U-Net itself.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from cers.data.case import Batch, SemiBatch
from cers.losses import dice_ce
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, Stage, StepResult
from cers.nets.decoders import ResidualUNetDecoder
from cers.nets.text_attention import ReportAttention


class UNetTextSettings(Settings):
    """The one choice that CERS has for the same attention."""

    report_norm: bool = Field(True, description="false: without the layer norm that the authors' program has after it")


class UNetText(Method):
    """Encoder, report attention and decoder, trained on labelled images only."""

    Settings = UNetTextSettings
    may_read_text = True

    def __init__(self, setup: Setup, settings: UNetTextSettings) -> None:
        super().__init__(setup, settings)
        self.encoder = setup.encoder()
        self.decoder = ResidualUNetDecoder(self.encoder.channels)
        self.reads_text = setup.report_width is not None
        self.report_attention = (
            None
            if setup.report_width is None
            else ReportAttention(self.encoder.channels, setup.report_width, norm=settings.report_norm)
        )

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

    def _logits(self, batch: Batch) -> Tensor:
        features = self.encoder(batch.images)
        if self.report_attention is not None:
            features = self.report_attention(features, batch.report_tokens, batch.report_padding)
        logits: Tensor = self.decoder(features, batch.size)
        return logits
