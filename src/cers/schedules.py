"""Ramps and learning-rate schedules as functions of the share of training that lies behind."""

import math


def sigmoid_ramp(fraction: float) -> float:
    """exp(-5 (1-t)^2) with t clipped to [0, 1]: 0.0067 at the start, 1 at the end."""
    t = min(max(fraction, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


def learning_rate(
    step: int, steps: int, *, lr: float, min_lr: float = 0.0, schedule: str = "cosine", warmup_steps: int = 0
) -> float:
    """Learning rate at `step` of `steps` (from 0): linear warm-up, then `cosine`, `poly` (power 0.9) or `constant`."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    t = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "cosine":
        return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * t)) / 2
    if schedule == "poly":
        return min_lr + (lr - min_lr) * math.pow(1 - t, 0.9)
    return lr
