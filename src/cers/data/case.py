"""What flows through the program: a case, and the batches made of cases."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F


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
    `report` (B,R) is the pooled report embedding, with `report_known` (B,). Where upper layers of the rationale encoder
    train, `cot_tokens` and `mask_cot_tokens` (B,L,D) are the states that enter them, with padding (B,L) as above.
    `geometry` (B,2,3) says where each point (x, y, 1) of a case, x and y in -1..1, lies in its views; None: as it was.
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
    cot_tokens: Tensor | None = None
    cot_padding: Tensor | None = None
    mask_cot_tokens: Tensor | None = None
    mask_cot_padding: Tensor | None = None
    geometry: Tensor | None = None
    groups: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def required_masks(self) -> Tensor:
        """The masks of a labelled batch.

        Raises:
            ValueError: the batch has none, which means that the caller mixed up the two streams.
        """
        if self.masks is None:
            raise ValueError(f"batch of {self.ids} carries no masks")
        return self.masks

    @property
    def mirrored(self) -> list[bool]:
        """Which cases are seen in a mirror: their words then tell of the other side."""
        return [False] * len(self) if self.geometry is None else mirrors(self.geometry)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[2], self.images.shape[3]

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

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the pair by name, to be saved."""
        streams = {"labelled": self.labelled, "unlabelled": self.unlabelled}
        return {
            f"{stream}.{f.name}": value.contiguous()
            for stream, batch in streams.items()
            if batch is not None
            for f in fields(batch)
            if isinstance(value := getattr(batch, f.name), Tensor)
        }

    def joined(self) -> Batch:
        """Labelled cases first, then unlabelled, as one batch without masks: one forward pass serves both."""
        first, second = self.labelled, self.unlabelled
        if second is None:
            return replace(first, masks=None)
        values = {f.name: _concatenate(f.name, getattr(first, f.name), getattr(second, f.name)) for f in fields(Batch)}
        return Batch(**(values | {"masks": None}))


def mirrors(geometry: Tensor) -> list[bool]:
    """Which of the moves (B,2,3) turn an image over."""
    turned: list[bool] = (torch.linalg.det(geometry[:, :, :2]) < 0).tolist()
    return turned


def _concatenate(name: str, first: Any, second: Any) -> Any:
    if first is None or second is None:
        return None
    if not isinstance(first, Tensor):
        return first + second
    if name.endswith(("_tokens", "_padding")):
        length = max(first.shape[1], second.shape[1])
        first, second = _lengthened(first, length), _lengthened(second, length)
    return torch.cat([first, second])


def _lengthened(sequence: Tensor, length: int) -> Tensor:
    """(B,L,D) tokens padded with zeros, or (B,L) padding with True, to `length`."""
    missing = length - sequence.shape[1]
    return F.pad(sequence, (0, missing), value=True) if sequence.dim() == 2 else F.pad(sequence, (0, 0, 0, missing))
