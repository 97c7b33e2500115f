"""Swin-Unet's decoder (Cao et al. 2021, "Swin-Unet: Unet-like pure transformer"), the decoder variant of Table 3."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import DropPath
from torch import Tensor, nn

from cers.nets.layers import Size, upsample

WINDOW = 7
DROP_PATH = 0.2
BLOCKS = 2


def partition(x: Float[Tensor, "B H W C"], window: int) -> Float[Tensor, "B n N C"]:
    """Cut maps into n = H*W/window² windows of N = window² tokens."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(b, -1, window * window, c)


def merge(windows: Float[Tensor, "B n N C"], height: int, width: int) -> Float[Tensor, "B H W C"]:
    """The inverse of `partition`."""
    b, _, tokens, c = windows.shape
    side = math.isqrt(tokens)
    x = windows.reshape(b, height // side, width // side, side, side, c)
    return x.transpose(2, 3).reshape(b, height, width, c)


def unfold_channels(x: Float[Tensor, "B H W _"], factor: int) -> Float[Tensor, "B _ _ _"]:
    """Lay factor² groups of channels out as a factor x factor square of pixels: (B,H,W,f²C) to (B,fH,fW,C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, factor, factor, c // factor**2)
    return x.transpose(2, 3).reshape(b, h * factor, w * factor, -1)


def fitting_window(height: int, width: int) -> int:
    """The largest window of at most 7 that tiles (height, width)."""
    return next(w for w in range(WINDOW, 0, -1) if height % w == 0 and width % w == 0)


def shift_mask(height: int, width: int, window: int, shift: int) -> Bool[Tensor, "n N N"]:
    """True where two tokens of a window, after rolling by `shift`, were neighbours before: only they may attend."""
    edges = torch.tensor([window, shift])
    rows = (torch.arange(height)[:, None] >= height - edges).sum(1)
    columns = (torch.arange(width)[:, None] >= width - edges).sum(1)
    region = (3 * rows[:, None] + columns).float()[None, :, :, None]
    tokens = partition(region, window)[0, :, :, 0]
    return tokens[:, :, None] == tokens[:, None, :]


def relative_index(window: int) -> Int[Tensor, "N N"]:
    """Where in the flattened 13x13 table of relative positions each pair of a window's tokens finds its bias."""
    grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + WINDOW - 1
    return offset[0] * (2 * WINDOW - 1) + offset[1]


class SwinBlock(nn.Module):
    """Attention within (shifted) windows and an MLP, each behind a LayerNorm and a residual connection."""

    def __init__(self, channels: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // 32))
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.position = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, self.heads))
        self.out = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.drop = DropPath(drop_path)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        """(B,H,W,C) to the same shape."""
        x = x + self.drop(self._attend(self.norm1(x)))
        mixed: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return mixed

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        window = fitting_window(height, width)
        shift = window // 2 if self.shifted and min(height, width) > window else 0
        bias = self.position[relative_index(window).to(x.device)].permute(2, 0, 1)
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
            allowed = shift_mask(height, width, window, shift).to(x.device)
            bias = bias.masked_fill(~allowed[:, None], -torch.inf)
        qkv = self.qkv(partition(x, window)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        y: Tensor = merge(self.out(read.transpose(2, 3).flatten(3)), height, width)
        return y.roll((shift, shift), dims=(1, 2)) if shift else y


class PatchExpand(nn.Module):
    """Double the size and halve the channels: Linear C to 2C, 2x2 rearrangement, LayerNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(channels // 2)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B _ _ _"]:
        """(B,H,W,C) to (B,2H,2W,C/2)."""
        enlarged: Tensor = self.norm(unfold_channels(self.expand(x), 2))
        return enlarged


class SwinLevel(nn.Module):
    """Join a skip, Linear back to the level's width, two Swin blocks."""

    def __init__(self, channels: int, skip: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.join = nn.Linear(channels + skip, channels)
        self.blocks = nn.Sequential(*(SwinBlock(channels, i % 2 == 1, rate) for i, rate in enumerate(drop_path)))

    def forward(self, x: Float[Tensor, "B H W C"], skip: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B H W C"]:
        """x (B,H,W,C) and skip (B,S,H,W) to (B,H,W,C)."""
        mixed: Tensor = self.blocks(self.join(torch.cat([x, skip.movedim(1, -1)], dim=-1)))
        return mixed


class SwinUNetDecoder(nn.Module):
    """Swin-Unet's decoder on the four coarsest maps of any encoder; a LayerNorm before the first expansion tames f4.

    Windows of 7, or the largest smaller one that tiles a level (224 px: 7 everywhere; 128 and 256 px: 4).
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        *skips, c4 = channels[-4:]
        widths = [c4 // 2, c4 // 4, c4 // 8]
        rates = [DROP_PATH * i / (4 * BLOCKS - 1) for i in range(3 * BLOCKS)]
        self.norm = nn.LayerNorm(c4)
        self.expands = nn.ModuleList(PatchExpand(c) for c in [c4, *widths[:2]])
        self.levels = nn.ModuleList(
            SwinLevel(width, skip, rates[BLOCKS * i : BLOCKS * (i + 1)])
            for i, width, skip in zip((2, 1, 0), widths, reversed(skips), strict=True)
        )
        last = widths[-1]
        self.last_norm = nn.LayerNorm(last)
        self.last_expand = nn.Linear(last, 16 * last, bias=False)
        self.pixel_norm = nn.LayerNorm(last)
        self.logit = nn.Linear(last, 1, bias=False)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]], size: Size) -> Float[Tensor, "B 1 _ _"]:
        """The maps, finest first, to logits (B,1,*size).

        Raises:
            ValueError: a map is not twice the next, so that windows and skips do not fit.
        """
        *skips, f4 = features[-4:]
        found = [tuple(f.shape[2:]) for f in features[-4:]]
        if found != [(f * f4.shape[2], f * f4.shape[3]) for f in (8, 4, 2, 1)]:
            raise ValueError(f"the swin-unet decoder needs maps that halve from one to the next, got {found}")
        x = self.norm(f4.movedim(1, -1))
        for expand, level, skip in zip(self.expands, self.levels, reversed(skips), strict=True):
            x = level(expand(x), skip)
        x = unfold_channels(self.last_expand(self.last_norm(x)), 4)
        logits: Tensor = self.logit(self.pixel_norm(x)).movedim(-1, 1)
        return logits if logits.shape[2:] == size else upsample(logits, size)
