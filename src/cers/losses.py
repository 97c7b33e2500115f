"""Losses: small pure functions from tensors to a scalar."""

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

_soft_dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)


def dice_ce(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean soft Dice loss of each image plus mean cross entropy (Eq. 1).

    `logits` and `masks` are (B,1,H,W). Smoothing by 1 keeps the gradient alive on empty masks, where a smoothing of
    1e-7 would give a loss near 1 that false positives hardly change.
    """
    logits = logits.float()
    dice: Tensor = _soft_dice(logits, masks)
    return dice + F.binary_cross_entropy_with_logits(logits, masks)


def two_class_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean soft Dice loss of lesion and background, per image: the two-class Dice of a one-logit network."""
    logits = logits.float()
    lesion: Tensor = _soft_dice(logits, masks)
    background: Tensor = _soft_dice(-logits, 1 - masks)
    return (lesion + background) / 2


def squared_dice(probability: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """1 - (2 sum(py) + 1) / (sum(p^2) + sum(y^2) + 1) over the whole batch, or over the pixels of a 0/1 `region`."""
    weight = torch.ones_like(target) if region is None else region.expand_as(target)
    overlap = (weight * probability * target).sum()
    size = (weight * (probability.square() + target.square())).sum()
    return 1 - (2 * overlap + 1) / (size + 1)


def region_dice_ce(logits: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """Squared Dice of both classes plus mean cross entropy, on the pixels of a 0/1 `region` alone; 0 if it is empty."""
    logits = logits.float()
    probability = logits.sigmoid()
    dice = squared_dice(probability, target, region) + squared_dice(1 - probability, 1 - target, region)
    return dice / 2 + region_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), region)


def region_mean(values: Tensor, region: Tensor) -> Tensor:
    """Mean of `values` over the pixels of a 0/1 `region`; 0 if it is empty."""
    weight = region.to(values.dtype).expand_as(values)
    mean: Tensor = (weight * values).sum() / weight.sum().clamp(min=1)
    return mean


def binary_entropy(probability: Tensor) -> Tensor:
    """-p ln p - (1-p) ln(1-p), elementwise: at most ln 2."""
    other = 1 - probability
    entropy: Tensor = -torch.special.xlogy(probability, probability) - torch.special.xlogy(other, other)
    return entropy


def pointing_loss(margins: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Mean over scales of `dice_ce` between margins (B,_,h,w), whose first channel is a logit, and masks (B,1,H,W).

    Masks shrink to the size of each scale by averaging.
    """
    losses = [
        dice_ce(margin[:, :1], F.adaptive_avg_pool2d(masks, (margin.shape[2], margin.shape[3]))) for margin in margins
    ]
    return torch.stack(losses).mean()


def contrastive_alignment(image: Tensor, cot: Tensor, log_scale: Tensor, known: Tensor | None = None) -> Tensor:
    """Symmetric cross entropy between image and CoT embeddings of the same cases (Eq. 2, after CLIP).

    `image` and `cot` are (B,D) of unit length; the scale exp(`log_scale`) is clamped at 100. Cases whose rationale is
    not `known` (B,) are left out; with fewer than two left there is nothing to tell apart and the loss is 0.
    """
    if known is not None:
        image, cot = image[known], cot[known]
    if len(image) < 2:
        return image.sum() * 0.0 + cot.sum() * 0.0 + log_scale * 0.0
    with torch.autocast(image.device.type, enabled=False):
        similarity = log_scale.exp().clamp(max=100.0) * image.float() @ cot.float().T
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def sharpen(probability: Tensor, temperature: float) -> Tensor:
    """p^(1/T) / (p^(1/T) + (1-p)^(1/T)): pushes a probability towards 0 or 1; 0, 1/2 and 1 stay."""
    return (probability.logit() / temperature).sigmoid()  # the same without powers, which underflow at a small T


def sharpened_consistency(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean squared difference of each branch to the other's sharpened probability, both ways (Eq. 6).

    `first` and `second` are logits (B,1,H,W). Targets carry no gradient. The mean over pixels makes the weight
    independent of batch and resolution; the authors' program sums instead.
    """
    p, q = first.float().sigmoid(), second.float().sigmoid()
    to_second = F.mse_loss(p, sharpen(q.detach(), temperature))
    to_first = F.mse_loss(q, sharpen(p.detach(), temperature))
    return to_second + to_first
