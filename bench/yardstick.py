"""A yardstick for `supervised`: segmentation_models.pytorch's U-Net with the same encoder, weights, images and steps.

    python bench/yardstick.py RUN_FOLDER data.path=… data.split=… seed=0

It trains through the project's own loop, so that only the network differs; score it with `evaluate` as it prints.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import segmentation_models_pytorch as smp
import torch

from cers.config import load_config
from cers.data.case import Batch, SemiBatch
from cers.evaluation import evaluate
from cers.losses import dice_ce
from cers.methods.base import Method, Prediction, Progress, Setup, Stage, StepResult
from cers.methods.registry import METHODS
from cers.methods.supervised import SupervisedSettings
from cers.run import train


class SmpUNet(Method):
    """`smp.Unet` with its default decoder on the run's encoder."""

    Settings = SupervisedSettings

    def __init__(self, setup: Setup, settings: SupervisedSettings) -> None:
        super().__init__(setup, settings)
        self.encoder = setup.encoder()
        self.unet = smp.Unet(f"tu-{self.encoder.name}", encoder_weights=None)
        self.unet.encoder.model.load_state_dict(self.encoder.body.state_dict())
        self.encoder.requires_grad_(False)  # kept for its name only; the network trained is the U-Net's own

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("supervised", 1.0, unlabelled=False),)

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        loss = dice_ce(self.unet(batch.labelled.images), batch.labelled.required_masks)
        yield StepResult(loss, {"segmentation": loss.detach()})

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        probability = self.unet(batch.images).float().sigmoid()
        return Prediction(probability, {"base": probability})


def main() -> None:
    folder, *overrides = sys.argv[1:]
    METHODS["smp-unet"] = SmpUNet
    config = load_config("cpu", [*overrides, "method.name=smp-unet", "method.settings={}"])
    train(config, Path(folder), on_row=lambda row: row["kind"] == "validation" and sys.stderr.write(f"{row}\n"))
    dice = evaluate(Path(folder))["branches"]["declared"]["all"]["metrics"]["dice"]
    sys.stdout.write(f"test Dice {dice['mean']:.4f}, 95 % interval {dice['low']:.4f} to {dice['high']:.4f}\n")


if __name__ == "__main__":
    main()
