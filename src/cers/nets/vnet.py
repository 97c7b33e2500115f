"""Encoder of a small 2-D V-Net (Milletari et al., 3DV 2016, arXiv 1606.04797)."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CONVOLUTIONS = (1, 2, 3, 3, 3)
STRIDE = 2 ** (len(CONVOLUTIONS) - 1)


def convolutions(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """`count` times 3x3 convolution, BatchNorm, ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        conv = nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class VNetEncoder(nn.Module):
    """Five maps at strides 1 to 16, finest first, `width` to 16 `width` channels; dropout on the coarsest.

    Images whose sides are no multiples of 16 are enlarged to the next ones, so that each map is twice the next.
    """

    def __init__(self, width: int = 16, dropout: float = 0.3) -> None:
        super().__init__()
        self.channels = tuple(width * 2**i for i in range(len(CONVOLUTIONS)))
        inputs = (3, *self.channels[1:])
        self.blocks = nn.ModuleList(
            convolutions(i, o, count) for i, o, count in zip(inputs, self.channels, CONVOLUTIONS, strict=True)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, coarse, 2, stride=2, bias=False), nn.BatchNorm2d(coarse), nn.ReLU())
            for fine, coarse in pairwise(self.channels)
        )
        self.dropout = nn.Dropout2d(dropout)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], feedback: Sequence[Float[Tensor, "B _ _ _"]] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps. `feedback`, of their shapes, is added to each of them before the next stage reads it."""
        height, width = (-(-side // STRIDE) * STRIDE for side in images.shape[-2:])
        if (height, width) != images.shape[-2:]:
            images = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
        maps: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(self.downs[i - 1](maps[-1]) if i else images)
            if i == len(self.blocks) - 1:
                x = self.dropout(x)
            maps.append(x if feedback is None else x + feedback[i].to(x.dtype))
        return maps
