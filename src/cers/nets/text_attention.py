"""Report text in the encoder: gated cross attention from every pixel to the words."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TextCrossAttention(nn.Module):
    """`LN_C(f + gamma * out(MHA(q(f), k(t), v(t))))` at one scale, gamma = 0 at the start.

    The LayerNorm stands after the sum, as in the authors' program; so f is normalised even while gamma is 0, and images
    without any word get `LN_C(f)`. With `norm` False it is left out, and they keep f.
    """

    def __init__(self, channels: int, text_width: int, width: int = 256, heads: int = 8, *, norm: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(text_width, width)
        self.value = nn.Linear(text_width, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Linear(width, channels)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(
        self,
        feature: Float[Tensor, "B C H W"],
        tokens: Float[Tensor, "B L D"] | None = None,
        padding: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """`tokens` None: no report in this batch. `padding` is True where there is no word (None: all are words)."""
        pixels = feature.flatten(2).mT
        if tokens is not None:
            pixels = pixels + self.gamma * self._attend(pixels, tokens, padding)
        normed: Tensor = self.norm(pixels)
        return normed.mT.reshape(feature.shape)

    def _attend(self, pixels: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
        if padding is None:
            padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        empty = padding.all(dim=1, keepdim=True)
        # A row with every key masked would be a softmax over nothing: let it see its padding, then drop the result.
        seen = (~padding | empty)[:, None, None]
        to_query, to_key, to_value = self.attention.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = self.attention.in_proj_bias.chunk(3)
        q = F.linear(pixels, *_composed(self.query, to_query, query_bias))
        k = F.linear(self.key(tokens), to_key, key_bias)
        v = F.linear(self.value(tokens), to_value, value_bias)
        q, k, v = (self._split_heads(x) for x in (q, k, v))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        joined = read.transpose(1, 2).flatten(2)
        out = F.linear(joined, *_composed(self.attention.out_proj, self.out.weight, self.out.bias))
        return out.masked_fill(empty[..., None], 0.0)

    def _split_heads(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        return x.reshape(b, n, self.attention.num_heads, width // self.attention.num_heads).transpose(1, 2)


def _composed(first: nn.Linear, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of `first` followed by another linear map.

    Nothing stands between them, and there are far more pixels than channels: one map of the pixels instead of two takes
    a third of the time.
    """
    return weight @ first.weight, weight @ first.bias + bias


class ReportAttention(nn.Module):
    """`TextCrossAttention` at strides 4 to 32: 3,370,212 parameters on ConvNeXt-T with 768-wide tokens."""

    def __init__(
        self, channels: Sequence[int], text_width: int, width: int = 256, heads: int = 8, *, norm: bool = True
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(TextCrossAttention(c, text_width, width, heads, norm=norm) for c in channels[-4:])

    def forward(
        self,
        features: Sequence[Float[Tensor, "B _ _ _"]],
        tokens: Float[Tensor, "B L D"] | None = None,
        padding: Bool[Tensor, "B L"] | None = None,
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps after reading the report, shapes unchanged."""
        finest, pyramid = features[:-4], features[-4:]
        return [*finest, *(scale(f, tokens, padding) for scale, f in zip(self.scales, pyramid, strict=True))]
