"""The space that images and rationales share (CERS, Eq. 2): what pulls them together, and what retrieval reads."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cers.data.case import Batch
from cers.losses import contrastive_alignment


class Alignment(nn.Module):
    """Projections of pooled images (B,`channels`) and rationales (B,`cot_width`) to `width` numbers, and their scale.

    Without `cot_width` there are no rationales. `cot_upper` makes the upper layers of their encoder where these train.
    """

    def __init__(
        self, channels: int, cot_width: int | None, width: int, cot_upper: Callable[[], nn.Module] | None
    ) -> None:
        super().__init__()
        self.image_projection = nn.Linear(channels, width, bias=False)
        self.cot_projection = nn.Linear(cot_width, width, bias=False) if cot_width else None
        self.cot_upper = cot_upper() if cot_upper else None
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._rested: dict[tuple[str, bool], Tensor] = {}

    def loss(self, batch: Batch, feature: Tensor) -> Tensor:
        """How far the last features (B,C,h,w) are from the rationales that saw the mask (Eq. 2)."""
        cot, known = self.mask_informed(batch)
        if cot is None:
            return feature.new_zeros(())
        image = F.normalize(self.image_projection(feature.mean(dim=(2, 3))).float(), dim=-1)
        return contrastive_alignment(image, F.normalize(cot.float(), dim=-1), self.log_scale, known)

    def mask_informed(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Rationales that saw the mask, the mask-free ones where there are none (B,`width`); and which are known."""
        free = self._embedded(batch.cot, batch.cot_tokens, batch.cot_padding)
        informed = self._embedded(batch.mask_cot, batch.mask_cot_tokens, batch.mask_cot_padding)
        if free is None or informed is None or batch.mask_cot_known is None or batch.cot_known is None:
            return free, batch.cot_known
        cot = torch.where(batch.mask_cot_known[:, None], informed, free)
        return cot, batch.mask_cot_known | batch.cot_known

    @torch.no_grad()
    def mask_free(self, batch: Batch) -> Tensor | None:
        """Mask-free rationales (B,`width`). Their encoder rests meanwhile: in training each goes through it once.

        Or twice: a mirrored view has words of its own. In evaluation the weights may be averages, which never rest.
        """
        tokens, padding = batch.cot_tokens, batch.cot_padding
        if self.cot_upper is None or self.cot_projection is None or tokens is None or padding is None:
            return self._embedded(batch.cot, None, None)
        training = self.cot_upper.training
        self.cot_upper.eval()
        rested = self._rested if self.training else {}
        keys = list(zip(batch.ids, batch.mirrored, strict=True))
        for row, key in enumerate(keys):
            if key not in rested:  # alone and unpadded, so that the result does not depend on the batch
                words = max(1, int((~padding[row]).sum()))
                pooled = self.cot_upper(tokens[row : row + 1, :words], padding[row : row + 1, :words])
                rested[key] = self.cot_projection(pooled)[0]
        self.cot_upper.train(training)
        return torch.stack([rested[key] for key in keys])

    def forget(self) -> None:
        """The encoder of rationales has moved: embed them afresh."""
        self._rested = {}

    def _embedded(self, pooled: Tensor | None, tokens: Tensor | None, padding: Tensor | None) -> Tensor | None:
        if pooled is None or self.cot_projection is None:
            return None
        if self.cot_upper is not None:
            pooled = self.cot_upper(tokens, padding)
        embedded: Tensor = self.cot_projection(pooled)
        return embedded
