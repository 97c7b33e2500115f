"""Exponential moving averages of a network's weights: a method's teacher, and the average a run may predict with."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")
WARMED_UP = 10**9  # updates after which min(1 - 1/(t+1), decay) is the decay, whatever it is


def ema_update_(target: Tensor, source: Tensor, decay: float) -> None:
    """target <- decay * target + (1 - decay) * source, in place and without gradient."""
    with torch.no_grad():
        target.lerp_(source.to(target.dtype), 1 - decay)


class Teacher(nn.Module):
    """A network whose weights are the average of its student's over time. It gets no gradient.

    The decay at update t (from 0) is min(1 - 1/(t+1), `decay`), so that the first update copies the student. By house
    rule it stays in eval mode, statistics of normalisation are averaged like weights and counters are copied; in
    `mode` "train" it normalises by its own batches instead, as several published programs let it.
    """

    updates: Tensor

    def __init__(self, student: nn.Module, decay: float, mode: Literal["eval", "train"] = "eval") -> None:
        super().__init__()
        self.decay = decay
        self.mode = mode
        self.network = deepcopy(student).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Follows the method only where its own mode is "train"."""
        return super().train(mode and self.mode == "train")

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """What the averaged network says."""
        return self.network(*inputs)

    @torch.no_grad()
    def update(self, student: nn.Module, other: nn.Module | None = None, share: float = 1.0) -> None:
        """One step towards the student, or towards `share` of it and the rest of the `other`."""
        decay = min(1 - 1 / (int(self.updates) + 1), self.decay)
        others = self._followed(student if other is None else other)
        for mine, first, second in zip(self._followed(self.network), self._followed(student), others, strict=True):
            if mine.is_floating_point():
                ema_update_(mine, first if other is None else second.lerp(first, share), decay)
            else:
                mine.copy_(first)
        self.updates += 1

    @torch.no_grad()
    def restart(self, student: nn.Module) -> None:
        """Become a copy of the student, and from then on average with the full decay."""
        self.network.load_state_dict(student.state_dict())
        self.updates.fill_(WARMED_UP)

    def _followed(self, network: nn.Module) -> list[Tensor]:
        """What is taken over: parameters, and buffers unless it keeps statistics of its own."""
        return [*network.parameters(), *(network.buffers() if self.mode == "eval" else ())]


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
