"""Base network with a logit map at every scale of its decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cers.nets.decoders import PRIOR_LOGIT, ResidualUNetDecoder
from cers.nets.encoder import PyramidEncoder
from cers.nets.layers import ladder


@dataclass(frozen=True)
class Scales:
    """Four decoder maps, coarsest first, and a logit map for each, the last of the image's size."""

    maps: Sequence[Tensor]
    logits: Sequence[Tensor]

    def rows(self, rows: slice) -> "Scales":
        """The same of some images of the batch."""
        return Scales([m[rows] for m in self.maps], [z[rows] for z in self.logits])


class SideHead(nn.Module):
    """One logit per pixel of a decoder's map, at that map's size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.logit.get_parameter("bias"), PRIOR_LOGIT)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        """Map to logits."""
        logits: Tensor = self.logit(x)
        return logits


class MultiScaleUNet(nn.Module):
    """`UNet` with 1x1 heads on the decoder's maps at strides 16, 8 and 4; D_S's own head is the finest."""

    def __init__(self, encoder: PyramidEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = ResidualUNetDecoder(encoder.channels)
        width = encoder.channels[-1]  # which the decoder halves at every block
        self.side_heads = nn.ModuleList(SideHead(width // 2**i) for i in (1, 2, 3))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Scales:
        """Every scale, for learning."""
        features = self.encoder(images)
        *finest, f1, f2, f3, x = features
        *sizes, image = ladder(features, (images.shape[2], images.shape[3]))
        maps = []
        for block, skip, size in zip(self.decoder.blocks, (None, f3, f2, f1), sizes, strict=True):
            x = block(x, skip, size)
            maps.append(x)
        logits = [head(m) for head, m in zip(self.side_heads, maps[:-1], strict=True)]
        return Scales(maps, [*logits, self.decoder.head(torch.cat([x, *finest], dim=1), image)])

    def finest(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """Logits of the image's size."""
        return self.forward(images).logits[-1]


def resized(masks: Float[Tensor, "B 1 _ _"], like: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B 1 H W"]:
    """Masks at the size of a map, nearest."""
    return F.interpolate(masks, size=like.shape[2:], mode="nearest")
