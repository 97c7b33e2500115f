"""Base decoder D_S: a residual U-Net decoder."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cers.nets.layers import Size, conv3x3_upsampled, ladder, upsample

PRIOR_LOGIT = -3.0  # a lesion covers about 5 % of the pixels


class ResidualUpBlock(nn.Module):
    """Concatenate a skip, enlarge, then two 3x3 convolutions beside a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(outputs)

    def forward(
        self, x: Float[Tensor, "B _ H W"], skip: Float[Tensor, "B _ H W"] | None, size: Size
    ) -> Float[Tensor, "B _ _ _"]:
        """(B,C,H,W) and a skip of the same size to (B,`outputs`,*size)."""
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        shortcut = self.shortcut_norm(upsample(self.shortcut(x), size))
        y = F.relu(self.norm1(conv3x3_upsampled(x, self.conv1.weight, size)))
        return F.relu(self.norm2(self.conv2(y)) + shortcut)


class Head(nn.Module):
    """Enlarge to the image, 3x3 convolution to `hidden` channels, one logit per pixel."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, hidden, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.logit = nn.Conv2d(hidden, 1, 1)
        # From even odds a bias that moves by the learning rate takes hundreds of steps to say "background".
        nn.init.constant_(self.logit.get_parameter("bias"), PRIOR_LOGIT)

    def forward(self, x: Float[Tensor, "B _ _ _"], size: Size) -> Float[Tensor, "B 1 _ _"]:
        """(B,C,H,W) to logits (B,1,*size)."""
        logits: Tensor = self.logit(F.relu(self.norm(conv3x3_upsampled(x, self.conv.weight, size))))
        return logits


class ResidualUNetDecoder(nn.Module):
    """D_S (methods' shared decoder): four residual blocks of widths C/2 … C/16 for C = `channels[-1]`, then a head.

    The head reads the map at stride 2 of an encoder that has one: without it small encoders lose thin borders.
    6,661,801 parameters on ConvNeXt-T's channels (96, 192, 384, 768).
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        *finest, c1, c2, c3, c4 = channels
        widths = [c4 // 2, c4 // 4, c4 // 8, c4 // 16]
        inputs = [c4, widths[0] + c3, widths[1] + c2, widths[2] + c1]
        self.blocks = nn.ModuleList(ResidualUpBlock(i, o) for i, o in zip(inputs, widths, strict=True))
        self.head = Head(widths[-1] + sum(finest), widths[-1] // 2)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]], size: Size) -> Float[Tensor, "B 1 _ _"]:
        """The encoder's maps, finest first, to logits (B,1,*size)."""
        *finest, f1, f2, f3, x = features
        *sizes, image = ladder(features, size)
        for block, skip, target in zip(self.blocks, (None, f3, f2, f1), sizes, strict=True):
            x = block(x, skip, target)
        logits: Tensor = self.head(torch.cat([x, *finest], dim=1), image)
        return logits
