"""Exponential moving average of a network's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


def ema_update_(target: Tensor, source: Tensor, decay: float) -> None:
    """target <- decay * target + (1 - decay) * source, in place and without gradient."""
    with torch.no_grad():
        target.lerp_(source.to(target.dtype), 1 - decay)


class WeightAverage:
    """Averaged copies of a module's parameters and normalisation statistics.

    The decay at update t (from 0) is min(1 - 1/(t+1), `decay`), so that the first update copies the weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = {**dict(module.named_parameters()), **_statistics(module)}
        self.average = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def update(self) -> None:
        """Take one step towards the live weights."""
        decay = min(1 - 1 / (self.updates + 1), self.decay)
        for name, tensor in self._live.items():
            ema_update_(self.average[name], tensor.detach(), decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module carries the averaged weights."""
        kept = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(kept)

    def _write(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._live.items():
                tensor.copy_(values[name])


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in module.named_buffers() if name.endswith(_STATISTICS)}
