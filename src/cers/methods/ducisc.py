"""DuCiSC: dual cross-image semantic consistency (Wu et al., TMI 2025, arXiv 2507.21440).

A student S and a teacher T (a = min(1 - 1/(t+1), 0.99)) with a logit map at four scales s. Five losses, each divided
by its own value, so that the weights 1, 0.3, 0.1, 0.1, 0.1 say how hard each pulls, whatever its size:

    L = L_sup/sg + 0.3 L_pseudo/sg + 0.1 L_proto/sg + 0.1 L_mix/sg + 0.1 L_mixproto/sg      (sg: detached itself)

*   sup: mean over s of DiceCE with the mask at that scale.
*   pseudo: mean over s of CE and lesion Dice with T's hard label, on certain pixels: T's probability of a class above
    that class's threshold, which follows the student's mean probability of what T calls that class:
    tau <- clip(0.99 tau + 0.01 m, 0.5, 0.95), from 0.5 on.
*   proto: squared difference of labelled and unlabelled prototypes: decoder features averaged over lesion and over
    background of an image, then over images; mean over s.
*   mix: KL and lesion Dice on w x_l + (1-w) x_u, w ~ U(1/4, 3/4), with the mixed label w y + (1-w) Y_T, where the
    unlabelled image is certain; mixproto: prototypes of the mixed image against the labelled ones.

Stage "warm-up" (2000 of the program's 15,000 steps) learns by the first alone. An image without lesion has no lesion
prototype and is left out of that mean; the program drops the whole scale. Prototypes are of the decoder's blocks as
they leave, the program's of the maps as they enter. It keeps its teacher in training mode; here it is in eval mode.
"""

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cers.data.case import Batch, SemiBatch
from cers.ema import Teacher
from cers.losses import binary_entropy, dice_ce, region_mean, squared_dice
from cers.methods.base import Method, Prediction, Progress, Settings, Setup, Stage, StepResult
from cers.nets.side_heads import MultiScaleUNet, Scales, resized

SCALES = 4
SMALLEST = 1e-8  # a loss below this is zero, and is not divided by itself


class DuCiSCSettings(Settings):
    """Defaults of the program."""

    warmup_share: float = Field(2 / 15, gt=0, lt=1, description="share of the steps on labels alone")
    pseudo: float = Field(0.3, ge=0, description="pull of the pseudo-labels")
    prototypes: float = Field(0.1, ge=0, description="pull of labelled on unlabelled prototypes")
    mixed: float = Field(0.1, ge=0, description="pull of the mixed images")
    mixed_prototypes: float = Field(0.1, ge=0, description="pull of labelled on mixed prototypes")
    momentum: float = Field(0.99, ge=0, le=1, description="of the thresholds")
    decay: float = Field(0.99, ge=0, lt=1, description="of the teacher's average")


class DuCiSC(Method):
    """A student, its average, and a threshold for each scale and class."""

    Settings = DuCiSCSettings
    networks = "1 + teacher"
    thresholds: Tensor

    def __init__(self, setup: Setup, settings: DuCiSCSettings) -> None:
        super().__init__(setup, settings)
        self.settings = settings
        self.student = MultiScaleUNet(setup.encoder())
        self.teacher = Teacher(self.student, settings.decay)
        self.register_buffer("thresholds", torch.full((SCALES, 2), 0.5))
        self._seen: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None

    def stages(self) -> tuple[Stage, ...]:
        """Labels alone, then all five losses; both count inside the budget."""
        share = self.settings.warmup_share
        return (Stage("warm-up", share, unlabelled=False), Stage("semi", 1 - share))

    def steps(self, batch: SemiBatch, progress: Progress) -> Iterator[StepResult]:
        """One step on labels, and in stage "semi" on unlabelled and mixed images as well."""
        if progress.stage == "warm-up" or batch.unlabelled is None:
            losses = {"supervised": _supervised(self.student(batch.labelled.images), batch.labelled.required_masks)}
        else:
            losses = self._semi_losses(batch.labelled, batch.unlabelled)
        yield StepResult(self._balanced(losses), {name: loss.detach() for name, loss in losses.items()})

    def after_step(self) -> None:
        """The teacher follows the student, the thresholds what the step has seen."""
        self.teacher.update(self.student)
        if self._seen is not None:
            self.thresholds.copy_(next_thresholds(self.thresholds, *self._seen, self.settings.momentum))
            self._seen = None

    @torch.no_grad()
    def predict(self, batch: Batch, *, use_evidence: bool = True) -> Prediction:
        """The single branch `student`, at its finest scale."""
        probability = self.student.finest(batch.images).float().sigmoid()
        return Prediction(probability, {"student": probability})

    def _semi_losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        n, pairs, masks = len(labelled), min(len(labelled), len(unlabelled)), labelled.required_masks
        share = 0.25 + 0.5 * torch.rand(pairs, 1, 1, 1, device=masks.device)
        mixed = share * labelled.images[:pairs] + (1 - share) * unlabelled.images[:pairs]
        taught = [z.float().sigmoid() for z in self.teacher(unlabelled.images).logits]
        labels = [(p > 0.5).float() for p in taught]
        certain = [certain_pixels(p, tau) for p, tau in zip(taught, self.thresholds, strict=True)]
        whole = self.student(torch.cat([labelled.images, unlabelled.images, mixed]))
        ours, others, mixes = (whole.rows(slice(a, b)) for a, b in ((0, n), (n, -pairs), (-pairs, None)))
        self._seen = [z.detach().float().sigmoid() for z in others.logits], labels
        soft = share * masks[:pairs] + (1 - share) * labels[-1][:pairs]
        known = [prototypes(m, resized(masks, m)) for m in ours.maps]
        unknown = [prototypes(m, resized(y, m)) for m, y in zip(others.maps, labels, strict=True)]
        mixed_up = [prototypes(m, resized(soft, m)) for m in mixes.maps]
        return {
            "supervised": _supervised(ours, masks),
            "pseudo": _pseudo(others, labels, certain),
            "prototypes": _distance(known, unknown),
            "mixed": mixed_loss(mixes.logits[-1], soft, certain[-1][:pairs]),
            "mixed_prototypes": _distance(known, mixed_up),
        }

    def _balanced(self, losses: dict[str, Tensor]) -> Tensor:
        """Every loss by itself, times how hard it is to pull; a loss of zero adds nothing."""
        pull = {"supervised": 1.0, **self.settings.model_dump()}
        parts = [pull[name] * loss / loss.detach().clamp(min=SMALLEST) for name, loss in losses.items()]
        return torch.stack(parts).sum()


def certain_pixels(probability: Tensor, thresholds: Tensor) -> Tensor:
    """1 where background or lesion is likelier than its threshold (2,), else 0."""
    background, lesion = thresholds
    certain: Tensor = (1 - probability > background) | (probability > lesion)
    return certain.float()


def next_thresholds(
    thresholds: Tensor, probabilities: Sequence[Tensor], labels: Sequence[Tensor], momentum: float
) -> Tensor:
    """Thresholds (scales,2) after seeing the student's `probabilities` under the teacher's `labels`, scale by scale.

    A class that the teacher sees nowhere keeps its threshold.
    """
    rows = []
    for row, p, y in zip(thresholds, probabilities, labels, strict=True):
        means = torch.stack([region_mean(1 - p, 1 - y), region_mean(p, y)])
        seen = torch.stack([(1 - y).any(), y.any()])
        moved = (momentum * row + (1 - momentum) * means).clamp(0.5, 0.95)
        rows.append(torch.where(seen, moved, row))
    return torch.stack(rows)


def prototypes(maps: Tensor, lesion: Tensor) -> tuple[Tensor, Tensor]:
    """Mean features (2,C) of background and lesion (B,1,H,W), soft or hard, and which of the two (2,) there are.

    An image without a class does not count in that class's mean.
    """
    maps = maps.float().flatten(2)
    means, found = [], []
    for region in (1 - lesion.flatten(2), lesion.flatten(2)):
        area = region.sum(dim=2)
        there = (area > 0).float()
        per_image = (maps * region).sum(dim=2) / area.clamp(min=1e-6)
        means.append((per_image * there).sum(dim=0) / there.sum().clamp(min=1))
        found.append(there.any())
    return torch.stack(means), torch.stack(found)


def mixed_loss(logits: Tensor, soft: Tensor, certain: Tensor) -> Tensor:
    """KL from the student to the mixed label, a mean over both classes, plus lesion Dice, on certain pixels."""
    logits = logits.float()
    divergence = F.binary_cross_entropy_with_logits(logits, soft, reduction="none") - binary_entropy(soft)
    return region_mean(divergence / 2, certain) + squared_dice(logits.sigmoid(), soft, certain)


def _supervised(scales: Scales, masks: Tensor) -> Tensor:
    return torch.stack([dice_ce(z, resized(masks, z)) for z in scales.logits]).mean()


def _pseudo(scales: Scales, labels: Sequence[Tensor], certain: Sequence[Tensor]) -> Tensor:
    losses = []
    for z, label, region in zip(scales.logits, labels, certain, strict=True):
        cross = F.binary_cross_entropy_with_logits(z.float(), label, reduction="none")
        losses.append(region_mean(cross, region) + squared_dice(z.float().sigmoid(), label, region))
    return torch.stack(losses).mean() / 2


def _distance(first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean over scales of the squared difference of prototypes, of the classes that both have."""
    distances = []
    for (mine, here), (theirs, there) in zip(first, second, strict=True):
        distances.append(region_mean((mine - theirs).square(), (here & there)[:, None]))
    return torch.stack(distances).mean()
