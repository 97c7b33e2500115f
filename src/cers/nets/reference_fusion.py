"""Cross attention to retrieved references, Eq. 3 of the CERS paper."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Fused(NamedTuple):
    """`map` (B,C,H,W) and, if asked for, `attention` (B,k): each reference's share, 0 for an absent one."""

    map: Tensor
    attention: Tensor | None


class ReferenceFusion(nn.Module):
    """`conv1x1(f4 + gate * r)`, `r = MHA(Q=LN(f4), K=V=LN(references))`, `gate = sigmoid(Linear([f4, r]))`.

    Invariant to the order of the references. Starts as the identity on f4, so that a decoder trained without
    references meets nothing new when they arrive. 4,136,448 parameters at 768 channels.
    """

    def __init__(self, channels: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(channels)
        self.reference_norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.gate = nn.Linear(2 * channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.attention.out_proj.weight)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        feature: Float[Tensor, "B C H W"],
        references: Float[Tensor, "B k T C"],
        valid: Bool[Tensor, "B k"],
        need_attention: bool = False,
    ) -> Fused:
        """Fuse f4 with k references of T tokens each; only those with `valid` True count, in any float type.

        An image without any valid reference gets `alone(f4)`. `need_attention` asks for the attention shares.
        """
        pixels = feature.flatten(2).mT
        keys = self.reference_norm(references.to(feature.dtype).flatten(1, 2))
        absent = ~valid.repeat_interleave(references.shape[2], dim=1)
        none = absent.all(dim=1, keepdim=True)
        # A row with every key masked would be a softmax over nothing: let it see all, then drop the result.
        read, weights = self.attention(
            self.query_norm(pixels), keys, keys, key_padding_mask=absent & ~none, need_weights=need_attention
        )
        read = read.masked_fill(none[..., None], 0.0)
        gate = self.gate(torch.cat([pixels, read], dim=-1)).sigmoid()
        fused = self._project(pixels + gate * read, feature)
        if weights is None:
            return Fused(fused, None)
        share = weights.mean(dim=1).reshape(references.shape[:3]).sum(dim=2)
        return Fused(fused, share.masked_fill(~valid, 0.0))

    def alone(self, feature: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """What an image gets that has no references: `conv1x1(f4)`."""
        return self._project(feature.flatten(2).mT, feature)

    def _project(self, pixels: Tensor, like: Tensor) -> Tensor:
        projected: Tensor = self.out(pixels)
        return projected.mT.reshape(like.shape)
