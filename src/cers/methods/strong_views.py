"""What a network sees in the weak view of an image, to be learned from a strong one (FixMatch, arXiv 2001.07685).

Each strong view gets a box of another image (CutMix, arXiv 1905.04899); labels and their sureness move along.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from cers.losses import two_class_dice


@dataclass(frozen=True)
class Lesson:
    """Strong views `images` (VB,3,H,W) with the `label` and the sureness `sure` (VB,1,H,W), 0 or 1, of their pixels.

    The first view of all images stands before the second of all.
    """

    images: Tensor
    label: Tensor
    sure: Tensor

    @classmethod
    def of(cls, strong: Tensor, probability: Tensor, confidence: float, cutmix: float) -> Self:
        """From views (B,V,3,H,W) and what a teacher says of the weak one (B,1,H,W): [p > 1/2] where it is sure.

        It is sure where max(p, 1-p) >= `confidence`; `cutmix` is the probability that an image gets a box.
        """
        label = (probability > 0.5).float()
        sure = (torch.maximum(probability, 1 - probability) >= confidence).float()
        views = strong.unbind(1)
        boxes = [cutmix_boxes(len(strong), strong.shape[3:], cutmix).to(strong.device) for _ in views]
        images = torch.cat([paste(view, box) for view, box in zip(views, boxes, strict=True)])
        return cls(images, *(torch.cat([paste(values, box) for box in boxes]) for values in (label, sure)))

    def loss(self, logits: Tensor, dice: float) -> Tensor:
        """Cross entropy of logits (VB,1,H,W) where the teacher was sure, as a mean over all pixels.

        Beside it, weighted by `dice`, the Dice loss of the whole label, sure or not: borders and doubtful lesions, few
        pixels and never sure, are else taught by nobody (UCMT, arXiv 2301.04465, learns from its labels by this alone).
        """
        logits = logits.float()
        whole = dice * two_class_dice(logits, self.label)
        return whole + (F.binary_cross_entropy_with_logits(logits, self.label, reduction="none") * self.sure).mean()


def cutmix_boxes(count: int, size: Sequence[int], probability: float) -> Tensor:
    """Maps (count,1,H,W), 1 within a box of 2 to 40 % of the image and of sides 1:3 to 3:1; 0 where there is none."""
    height, width = size
    wanted = torch.rand(count) < probability
    area = height * width * torch.empty(count).uniform_(0.02, 0.4)
    ratio = torch.empty(count).uniform_(0.3, 1 / 0.3)
    h = (area * ratio).sqrt().clamp(1, height).floor()
    w = (area / ratio).sqrt().clamp(1, width).floor()
    top, left = ((torch.rand(count) * (side - part + 1)).floor() for side, part in ((height, h), (width, w)))
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    top, left, h, w = (x[:, None, None] for x in (top, left, h, w))
    inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
    return (inside & wanted[:, None, None])[:, None].float()


def paste(values: Tensor, boxes: Tensor) -> Tensor:
    """Maps (B,_,H,W) with the boxes of the batch in reverse order pasted in."""
    return torch.where(boxes > 0, values.flip(0), values)
