"""LViT's network: a CNN U, a ViT U beside it that reads the text, and pixel-level attention on the skips.

Li et al., "LViT: Language meets Vision Transformer in Medical Image Segmentation", TMI 2024, arXiv 2206.14718. Without
the parts of the released program that never receive a gradient.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cers.nets.decoders import PRIOR_LOGIT
from cers.nets.layers import upsample
from cers.nets.vnet import convolutions

PATCHES = (16, 8, 4, 2)  # of each level, so that all have one token per 16 x 16 pixels of the image
STRIDE = PATCHES[0]
HEADS = 8


class PLAM(nn.Module):
    """Pixel-level attention: a skip times a gate per pixel, made of the mean and the maximum over its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Conv2d(channels, channels, 1)
        self.maximum = nn.Conv2d(channels, channels, 1)
        self.mlp = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1))

    def gate(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        """The factor of each pixel, of any sign."""
        mean = F.relu(self.mean(x)).mean(dim=1, keepdim=True)
        maximum = F.relu(self.maximum(x)).amax(dim=1, keepdim=True)
        factor: Tensor = self.mlp(torch.cat([mean, maximum, mean + maximum], dim=1))
        return factor

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The skip, gated."""
        return x * self.gate(x)


class TextPath(nn.Module):
    """A text's first `length` tokens, whatever their number, to one vector for each cell of a `grid` x `grid` image."""

    def __init__(self, text_width: int, length: int, grid: int, width: int) -> None:
        super().__init__()
        self.text_width, self.length, self.grid = text_width, length, grid
        widths = [text_width, 8 * width, 4 * width, 2 * width, width]
        self.narrow = nn.Sequential(*(nn.Conv1d(i, o, 3, padding=1) for i, o in pairwise(widths)))
        self.spread = nn.Conv1d(length, grid**2, 3, padding=1)  # the tokens are its channels
        self.norm = nn.BatchNorm1d(grid**2)

    def forward(self, tokens: Float[Tensor, "B L D"], padding: Bool[Tensor, "B L"]) -> Float[Tensor, "B _ _ _"]:
        """Tokens and where there are none (True) to a map (B,width,grid,grid)."""
        words = tokens.masked_fill(padding[..., None], 0.0)[:, : self.length]
        words = F.pad(words, (0, 0, 0, self.length - words.shape[1]))
        cells: Tensor = F.relu(self.norm(self.spread(self.narrow(words.mT).mT)))
        return cells.mT.reshape(len(cells), -1, self.grid, self.grid)


class Tokens(nn.Module):
    """Patch embedding with learned positions: a map (B,C,H,W) to a smaller one (B,C,H/patch,W/patch)."""

    def __init__(self, channels: int, patch: int, grid: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, channels, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(1, channels, grid, grid))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C _ _"]:
        """Positions are interpolated where the image is not of the size that they were made for."""
        embedded: Tensor = self.embed(x)
        return embedded + _fitted(self.position, embedded)


class TextViT(nn.Module):
    """The ViT U on the CNN's four levels; the text enters the finest.

    Each level reads the finer one on the way down and the coarser one on the way up.
    """

    def __init__(self, channels: Sequence[int], grid: int) -> None:
        super().__init__()
        self.tokens = nn.ModuleList(Tokens(c, p, grid) for c, p in zip(channels, PATCHES, strict=True))
        self.halve = nn.ModuleList(_convolved(c, c // 2, row=3) for c in channels[1:])
        self.down = nn.ModuleList(Block(c, HEADS) for c in channels)
        self.reduce = nn.ModuleList(_convolved(coarse, fine, row=3) for fine, coarse in pairwise(channels))
        self.up = nn.ModuleList(Block(c, HEADS) for c in channels)

    def forward(self, levels: Sequence[Float[Tensor, "B _ _ _"]], text: Tensor | None) -> list[Tensor]:
        """Four CNN maps, finest first, and the text's map to four maps of tokens."""
        ways: list[Tensor] = []
        for i, (embed, block, x) in enumerate(zip(self.tokens, self.down, levels, strict=True)):
            x = embed(x)
            if i:
                x = torch.cat([self.halve[i - 1](x), ways[-1]], dim=1)
            elif text is not None:
                x = x + _fitted(text, x)
            ways.append(_attended(block, x))
        found: list[Tensor] = []
        for i in reversed(range(len(ways))):
            x = ways[i] + self.reduce[i](found[0]) if found else ways[i]
            found.insert(0, _attended(self.up[i], x))
        return found


class UpBlock(nn.Module):
    """Enlarge twofold, join the skip under its attention, two convolutions."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.attention = PLAM(channels)
        self.convolutions = convolutions(2 * channels, outputs, 2)

    def forward(self, x: Float[Tensor, "B C _ _"], skip: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ H W"]:
        """A coarse map and the skip, twice its size and as wide."""
        enlarged = F.interpolate(x, size=skip.shape[2:], mode="nearest")
        joined: Tensor = self.convolutions(torch.cat([self.attention(skip), enlarged], dim=1))
        return joined


class LViTNet(nn.Module):
    """The whole network, for images of `size`; others are enlarged to multiples of 16 and its positions fitted.

    `text_width` None: without text. `length` tokens of a text are read, which shorter ones are padded to.
    """

    def __init__(self, width: int = 64, size: int = 224, text_width: int | None = 768, length: int = 24) -> None:
        super().__init__()
        grid = -(-size // STRIDE)
        channels = [width, 2 * width, 4 * width, 8 * width]
        self.stem = convolutions(3, width, 1)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), convolutions(i, o, 2))
            for i, o in zip(channels, [*channels[1:], channels[-1]], strict=True)
        )
        self.text = None if text_width is None else TextPath(text_width, length, grid, width)
        self.vit = TextViT(channels, grid)
        self.reconstruct = nn.ModuleList(_convolved(c, c, row=1) for c in channels)
        self.ups = nn.ModuleList(UpBlock(c, o) for c, o in zip(channels, [width, *channels[:-1]], strict=True))
        self.logit = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.logit.get_parameter("bias"), PRIOR_LOGIT)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        tokens: Float[Tensor, "B L D"] | None = None,
        padding: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B 1 H W"]:
        """Images and their reports to logits; `tokens` None is a text without words."""
        height, width = images.shape[2:]
        size = (-(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE)
        levels = [self.stem(images if size == (height, width) else upsample(images, size))]
        for down in self.downs:
            levels.append(down(levels[-1]))
        *levels, x = levels
        found = self.vit(levels, self._read(images, tokens, padding))
        for i in reversed(range(len(levels))):
            skip = levels[i] + self.reconstruct[i](F.interpolate(found[i], scale_factor=PATCHES[i], mode="nearest"))
            x = self.ups[i](x, skip)
        logits: Tensor = self.logit(x)
        return logits if size == (height, width) else upsample(logits, (height, width))

    def _read(self, images: Tensor, tokens: Tensor | None, padding: Tensor | None) -> Tensor | None:
        if self.text is None:
            return None
        if tokens is None:
            tokens = images.new_zeros(len(images), 0, self.text.text_width)
        if padding is None:
            padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        read: Tensor = self.text(tokens, padding)
        return read


def _convolved(inputs: int, outputs: int, row: int) -> nn.Sequential:
    """Convolution along the rows, as the program's one-dimensional ones are, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, (1, row), padding=(0, row // 2), bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _attended(block: Block, x: Tensor) -> Tensor:
    tokens: Tensor = block(x.flatten(2).mT)
    return tokens.mT.reshape(x.shape)


def _fitted(cells: Tensor, like: Tensor) -> Tensor:
    """A map of cells at the size of another."""
    if cells.shape[2:] == like.shape[2:]:
        return cells
    return upsample(cells, (like.shape[2], like.shape[3]))
