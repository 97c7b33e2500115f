"""Checkpoints: one safetensors file, written whole or not at all, with its facts as JSON in the header."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from cers.config import RunConfig
from cers.ema import WeightAverage
from cers.errors import CersError
from cers.files import write_atomic

LONG = 160  # characters of a reason that names every tensor


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by `method.…`, `optimizer.<parameter>.<key>` and `average.…`; `facts` say what they were trained on."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below `name.`, with the prefix taken off."""
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}


def save_checkpoint(
    path: Path,
    facts: Mapping[str, Any],
    method: nn.Module,
    optimizer: Optimizer | None = None,
    average: WeightAverage | None = None,
) -> None:
    """Write all state to `path` under a temporary name, then rename it.

    Raises:
        CersError: the disk is full or the folder cannot be written; the previous checkpoint is untouched.
    """
    tensors = {f"method.{k}": v for k, v in method.state_dict().items()}
    if optimizer is not None:
        tensors |= _optimizer_tensors(optimizer)
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.average.items()}
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, save(whole, metadata={"facts": json.dumps(facts, ensure_ascii=False)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CersError: it is missing or not a whole checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return Checkpoint({k: file.get_tensor(k) for k in file.keys()}, facts)  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise CersError(f"no checkpoint at {path}; train first, or name another run") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CersError(f"{path} is not a whole checkpoint ({error}); restore it from a copy, or train again") from None


def require_same_run(checkpoint: Checkpoint, config: RunConfig, split: str, where: Path) -> None:
    """The files of a run were written together: weights that were trained by other settings would pass for these.

    `split` is the hash of the run's split. Of checkpoints that do not say how they were trained nothing is required.

    Raises:
        CersError: a setting, or the split, is not the one that the weights were trained with.
    """
    trained, now = checkpoint.facts.get("settings", {}), config.flat()
    for key in sorted(trained.keys() & now.keys()):
        if trained[key] != now[key]:
            raise CersError(
                f"{where} was trained with {key}={trained[key]!r}, config.yaml says {now[key]!r}; "
                "restore config.yaml, or train anew with --out"
            )
    if checkpoint.facts.get("split", split) != split:
        raise CersError(f"{where} was trained on another split than split.json; restore it from a copy, or train again")


def restore_method(method: nn.Module, checkpoint: Checkpoint, where: Path) -> None:
    """Load the method's part, every tensor of it.

    Raises:
        CersError: a tensor is missing, left over or of another shape: the settings differ from those it was made with.
    """
    try:
        method.load_state_dict(checkpoint.part("method"))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        shown = reason if len(reason) <= LONG else f"{reason[:LONG]} …"
        raise CersError(f"{where} does not fit this configuration: {shown}") from None


def restore_optimizer(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Load the state of every parameter; the learning rate is set anew at each step."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.part("optimizer").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_average(average: WeightAverage, checkpoint: Checkpoint, updates: int) -> None:
    """Load averaged weights and how often they were updated."""
    average.updates = updates
    for name, tensor in checkpoint.part("average").items():
        average.average[name].copy_(tensor)


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }
