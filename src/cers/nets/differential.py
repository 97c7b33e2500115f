"""Two decoders that differ on purpose, and what they differ in (LeFeD, arXiv 2309.14819)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cers.nets.decoders import Head
from cers.nets.encoder import PyramidEncoder
from cers.nets.layers import Size, upsample
from cers.nets.side_heads import SideHead
from cers.nets.vnet import VNetEncoder, convolutions


@dataclass(frozen=True)
class Decoded:
    """Logits of the image's size; the stages' features, and the blocks' maps, both coarsest first."""

    logits: Tensor
    stages: Sequence[Tensor]
    maps: Sequence[Tensor]


class AddingDecoder(nn.Module):
    """Enlarge twofold, add the skip, convolve; one of two ways to enlarge.

    The features of a stage are the bottleneck, and the enlarged maps before their skip is added.
    """

    def __init__(self, channels: Sequence[int], enlarge: Literal["transposed", "bilinear"], dropout: float) -> None:
        super().__init__()
        widths = list(reversed(channels))
        pairs = list(pairwise(widths))
        self.ups = nn.ModuleList(_enlarging(coarse, fine, enlarge) for coarse, fine in pairs)
        self.blocks = nn.ModuleList(convolutions(fine, fine, 2) for _, fine in pairs)
        self.dropout = nn.Dropout2d(dropout)
        self.head = Head(widths[-1], max(8, widths[-1] // 2))

    def forward(
        self, features: Sequence[Float[Tensor, "B _ _ _"]], size: Size, gates: Sequence[Tensor] | None = None
    ) -> Decoded:
        """The encoder's maps, finest first, to logits (B,1,*size).

        `gates` (0..1, coarsest first) scale the skips, and add themselves times the bottleneck to it.
        """
        x, *skips = reversed(features)
        if gates is not None:
            x, skips = x + x * gates[0], [s * g for s, g in zip(skips, gates[1:], strict=True)]
        stages, maps = [x], [x]
        for up, block, skip in zip(self.ups, self.blocks, skips, strict=True):
            stages.append(up(maps[-1]))
            maps.append(block(stages[-1] + skip))
        return Decoded(self.head(self.dropout(maps[-1]), size), stages, maps)


def _enlarging(coarse: int, fine: int, how: str) -> nn.Sequential:
    if how == "transposed":
        layers: list[nn.Module] = [nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False)]
    else:
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        layers = [enlarge, nn.Conv2d(coarse, fine, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(fine), nn.ReLU())


@dataclass(frozen=True)
class Difference:
    """Logits of both decoders (B,1,H,W), the first's side logits and the encoder's maps, finest first, and both
    decoders' stage features, coarsest first.
    """

    first: Tensor
    second: Tensor
    sides: Sequence[Tensor]
    encoded: Sequence[Tensor]
    features: Sequence[tuple[Tensor, Tensor]]

    def feedback(self, scale: float) -> list[Tensor]:
        """e = `scale` (second - first) for every map of the encoder, finest first, without gradient."""
        return [scale * (second - first).detach() for first, second in reversed(self.features)]


class DifferentialUNet(nn.Module):
    """One encoder and two decoders: by transposed convolution, and by interpolation under gates from the first."""

    def __init__(self, encoder: PyramidEncoder | VNetEncoder, gated: bool = True, dropout: float = 0.5) -> None:
        super().__init__()
        self.gated = gated
        self.encoder = encoder
        self.first = AddingDecoder(encoder.channels, "transposed", dropout)
        self.second = AddingDecoder(encoder.channels, "bilinear", dropout)
        self.side_heads = nn.ModuleList(SideHead(width) for width in encoder.channels)

    def forward(self, images: Float[Tensor, "B 3 H W"], feedback: Sequence[Tensor] | None = None) -> Difference:
        """Everything that learning needs; `feedback` is that of the pass before on the same images."""
        size = (images.shape[2], images.shape[3])
        features = self.encoder(images, feedback)
        first = self.first(features, size)
        gates = [torch.sigmoid(stage.detach()) for stage in first.stages] if self.gated else None
        second = self.second(features, size, gates)
        maps = reversed(first.maps)
        sides = [upsample(head(m), size) for head, m in zip(self.side_heads, maps, strict=True)]
        stages = list(zip(first.stages, second.stages, strict=True))
        return Difference(first.logits, second.logits, sides, features, stages)

    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """Logits of the first decoder, without feedback."""
        logits: Tensor = self.first(self.encoder(images), (images.shape[2], images.shape[3])).logits
        return logits
