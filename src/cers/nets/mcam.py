"""Retrieval-aware decoder D_R: multi-scale coordinate-attention modules (MCAM), Eq. 4 of the CERS paper."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cers.nets.decoders import Head, ResidualUNetDecoder
from cers.nets.layers import Size, ladder, upsample
from cers.nets.swin_unet import SwinUNetDecoder

Pair = tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]


class CoordinateGate(nn.Module):
    """Weigh the reference by rows and columns (coordinate attention), then add it to the main path.

    `A = A_h * A_w` from the row and column means of both; `ref' = A*ref`; `main' = GELU(BN(conv3x3(main + ref')))`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 16)
        self.squeeze = nn.Conv1d(2 * channels, hidden, 1)
        self.squeeze_norm = nn.BatchNorm1d(hidden)
        self.rows = nn.Conv1d(hidden, channels, 1)
        self.columns = nn.Conv1d(hidden, channels, 1)
        self.fuse = nn.Conv2d(channels, channels, 3, padding=1)
        self.fuse_norm = nn.BatchNorm2d(channels)

    def forward(self, main: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"]) -> Pair:
        """main and reference to main' and reference', all (B,C,H,W)."""
        both = (main, reference)
        means = torch.cat([torch.cat([x.mean(3) for x in both], 1), torch.cat([x.mean(2) for x in both], 1)], 2)
        squeezed = F.gelu(self.squeeze_norm(self.squeeze(means)))
        rows, columns = torch.split(squeezed, list(main.shape[2:]), dim=2)
        reference = self.rows(rows).sigmoid()[..., None] * self.columns(columns).sigmoid()[:, :, None] * reference
        return F.gelu(self.fuse_norm(self.fuse(main + reference))), reference


class PointwiseGate(nn.Module):
    """What stands in for `CoordinateGate` in its ablation: a 1x1 convolution of both paths."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, main: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"]) -> Pair:
        """main and reference to main' and the unchanged reference."""
        return self.fuse(torch.cat([main, reference], 1)), reference


class ScaleBranch(nn.Module):
    """Depthwise convolution, LayerNorm over channels, expansion to 4x channels, GELU; channels come out last."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W D"]:
        """(B,C,H,W) to (B,H,W,4C)."""
        return F.gelu(self.expand(self.norm(self.depthwise(x).movedim(1, -1))))


class MultiScaleMix(nn.Module):
    """Own 7x7 branches and a shared 5x5 branch: `out = P(u7(x) + u5(x)) + x` for main and reference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide_main = ScaleBranch(channels, 7)
        self.wide_reference = ScaleBranch(channels, 7)
        self.shared = ScaleBranch(channels, 5)
        self.project_main = nn.Linear(4 * channels, channels)
        self.project_reference = nn.Linear(4 * channels, channels)

    def forward(self, main: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"]) -> Pair:
        """main and reference, mixed, all (B,C,H,W)."""
        mixed_main = self.project_main(self.wide_main(main) + self.shared(main))
        mixed_reference = self.project_reference(self.wide_reference(reference) + self.shared(reference))
        return mixed_main.movedim(-1, 1) + main, mixed_reference.movedim(-1, 1) + reference


class PointwiseMix(nn.Module):
    """What stands in for `MultiScaleMix` in its ablation: a 1x1 convolution of each path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Conv2d(channels, channels, 1)
        self.reference = nn.Conv2d(channels, channels, 1)

    def forward(self, main: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"]) -> Pair:
        """main and reference, each by its own convolution."""
        return self.main(main), self.reference(reference)


class MCAMBlock(nn.Module):
    """Enlarge main path and reference, gate the reference, mix scales."""

    def __init__(
        self, inputs: int, skip: int, outputs: int, coordinate_gate: bool = True, multi_scale: bool = True
    ) -> None:
        super().__init__()
        self.main = nn.Conv2d(inputs + skip, outputs, 1)
        self.reference = nn.Conv2d(inputs, outputs, 1)
        self.gate = CoordinateGate(outputs) if coordinate_gate else PointwiseGate(outputs)
        self.mix = MultiScaleMix(outputs) if multi_scale else PointwiseMix(outputs)

    def forward(
        self,
        x: Float[Tensor, "B _ H W"],
        reference: Float[Tensor, "B _ H W"],
        skip: Float[Tensor, "B _ H W"] | None,
        size: Size,
    ) -> tuple[Float[Tensor, "B D _ _"], Float[Tensor, "B D _ _"]]:
        """x and reference (B,`inputs`,H,W), skip (B,`skip`,H,W) or None, to a pair (B,`outputs`,*size)."""
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        main = F.gelu(upsample(self.main(x), size))
        reference = F.gelu(upsample(self.reference(reference), size))
        main, reference = self.mix(*self.gate(main, reference))
        return main, reference


class MCAMDecoder(nn.Module):
    """D_R, Eq. 4: four MCAM blocks of widths C/2 … C/16 for C = `channels[-1]`, both paths joined, then a head.

    As in D_S the head reads the map at stride 2 of an encoder that has one.
    6,741,301 parameters on ConvNeXt-T's channels (96, 192, 384, 768).
    """

    def __init__(self, channels: Sequence[int], coordinate_gate: bool = True, multi_scale: bool = True) -> None:
        super().__init__()
        *finest, c1, c2, c3, c4 = channels
        widths = [c4 // 2, c4 // 4, c4 // 8, c4 // 16]
        self.blocks = nn.ModuleList(
            MCAMBlock(inputs, skip, outputs, coordinate_gate, multi_scale)
            for inputs, skip, outputs in zip([c4, *widths[:3]], (0, c3, c2, c1), widths, strict=True)
        )
        self.head = Head(2 * widths[-1] + sum(finest), widths[-1] // 2)

    def forward(
        self, features: Sequence[Float[Tensor, "B _ _ _"]], reference: Float[Tensor, "B _ _ _"] | None, size: Size
    ) -> Float[Tensor, "B 1 _ _"]:
        """The maps, finest first, and the fused references in the shape of f4 (None: f4 itself), to (B,1,*size)."""
        *finest, f1, f2, f3, x = features
        reference = x if reference is None else reference
        *sizes, image = ladder(features, size)
        for block, skip, target in zip(self.blocks, (None, f3, f2, f1), sizes, strict=True):
            x, reference = block(x, reference, skip, target)
        logits: Tensor = self.head(torch.cat([x, reference, *finest], dim=1), image)
        return logits


class FusedBottleneck(nn.Module):
    """A plain decoder in D_R's place: the fused references replace f4."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, features: Sequence[Float[Tensor, "B _ _ _"]], reference: Float[Tensor, "B _ _ _"] | None, size: Size
    ) -> Float[Tensor, "B 1 _ _"]:
        """The maps, finest first, and the fused references in the shape of f4 (None: f4 itself), to (B,1,*size)."""
        bottleneck = features[-1] if reference is None else reference
        logits: Tensor = self.decoder([*features[:-1], bottleneck], size)
        return logits


def make_retrieval_decoder(
    name: str, channels: Sequence[int], coordinate_gate: bool = True, multi_scale: bool = True
) -> nn.Module:
    """The decoder `name`, mcam, unet or swin-unet; the two switches ablate parts of MCAM."""
    if name == "mcam":
        return MCAMDecoder(channels, coordinate_gate, multi_scale)
    plain = {"unet": ResidualUNetDecoder, "swin-unet": SwinUNetDecoder}
    return FusedBottleneck(plain[name](channels))
