"""Dice on the validation cases, at the size of the network's input."""

from collections.abc import Iterable

import torch
from torch import Tensor

from cers.data.case import Batch
from cers.methods.base import Method


def validation_dice(method: Method, batches: Iterable[Batch], device: torch.device) -> tuple[float, dict[str, float]]:
    """Mean Dice over cases of the declared branch, and of every branch by name."""
    method.eval()
    declared: list[Tensor] = []
    branches: dict[str, list[Tensor]] = {}
    for batch in batches:
        moved = batch.to(device)
        prediction = method.predict(moved)
        declared.append(dice(prediction.probability, moved.required_masks))
        for name, probability in prediction.branches.items():
            branches.setdefault(name, []).append(dice(probability, moved.required_masks))
    return float(torch.cat(declared).mean()), {
        name: float(torch.cat(values).mean()) for name, values in branches.items()
    }


def dice(probability: Tensor, masks: Tensor) -> Tensor:
    """Dice (B,) of (B,1,H,W) thresholded at one half; 1 where both are empty."""
    predicted, true = probability.flatten(1) > 0.5, masks.flatten(1) > 0.5
    total = predicted.sum(1) + true.sum(1)
    overlap = 2 * (predicted & true).sum(1)
    return torch.where(total == 0, 1.0, overlap / total.clamp(min=1))
