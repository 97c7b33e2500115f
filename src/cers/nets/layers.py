"""Small pieces that the decoders share."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Size = tuple[int, int]


def ladder(features: Sequence[Float[Tensor, "B _ _ _"]], size: Size) -> list[Size]:
    """The sizes a decoder climbs through: those of f3, f2 and f1, twice that, and `size`, the image's own."""
    f1, f2, f3, _ = ((f.shape[2], f.shape[3]) for f in features)
    return [f3, f2, f1, (2 * f1[0], 2 * f1[1]), size]


def upsample(x: Float[Tensor, "B C _ _"], size: Size) -> Float[Tensor, "B C _ _"]:
    """`x` enlarged bilinearly to `size`. Commutes with 1x1 convolutions, which therefore come first."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
