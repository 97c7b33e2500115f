"""What flows through the program: a case, and the batches made of cases."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One image with whatever is known about it. `id` is the stem of its name and unique in a dataset.

    `mask` is None when nobody annotated the image; `negative` says that somebody did and saw no lesion.
    `rationale` was written without sight of the mask and is what queries use; `mask_rationale` was written with the
    mask overlaid and is read for entries of the knowledge pool only.
    """

    id: str
    image: Path
    mask: Path | None = None
    negative: bool = False
    report: str | None = None
    rationale: str | None = None
    mask_rationale: str | None = None
    group: str | None = None
    label: str | None = None
    part: str | None = None

    @property
    def annotated(self) -> bool:
        """Whether the lesion, or its absence, is known."""
        return self.mask is not None or self.negative


@dataclass(frozen=True)
class Batch:
    """Tensors of B cases. Optional fields are None when no case of the run has them.

    `images` (B,3,H,W) are z-scored, the weak view; `strong` (B,V,3,H,W) are V photometric views of the same geometry.
    `masks` (B,1,H,W) hold 0 and 1. `report_tokens` (B,L,D) come with `report_padding` (B,L), True where there is no
    token (all True for a case without report). `cot` (B,E) embeds the mask-free rationale and `mask_cot` (B,E) the
    mask-informed one; `cot_known` and `mask_cot_known` (B,) are False, and the rows zero, where there is none.
    `report` (B,R) is the pooled report embedding, with `report_known` (B,).
    """

    ids: tuple[str, ...]
    images: Tensor
    masks: Tensor | None = None
    strong: Tensor | None = None
    report_tokens: Tensor | None = None
    report_padding: Tensor | None = None
    report: Tensor | None = None
    report_known: Tensor | None = None
    cot: Tensor | None = None
    cot_known: Tensor | None = None
    mask_cot: Tensor | None = None
    mask_cot_known: Tensor | None = None
    groups: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Self:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class SemiBatch:
    """What one step of a method may see."""

    labelled: Batch
    unlabelled: Batch | None = None

    def to(self, device: torch.device) -> Self:
        """The same pair on `device`."""
        unlabelled = None if self.unlabelled is None else self.unlabelled.to(device)
        return replace(self, labelled=self.labelled.to(device), unlabelled=unlabelled)
