"""The decoders that may stand in D_R's place, behind one interface: `forward(features, reference, size)`."""

from collections.abc import Sequence
from difflib import get_close_matches

from jaxtyping import Float
from torch import Tensor, nn

from cers.nets.decoders import ResidualUNetDecoder
from cers.nets.layers import Size
from cers.nets.mcam import MCAMDecoder
from cers.nets.swin_unet import SwinUNetDecoder

RETRIEVAL_DECODERS = ("mcam", "unet", "swin-unet")


class FusedBottleneck(nn.Module):
    """A plain decoder in D_R's place: the fused references replace f4."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, features: Sequence[Float[Tensor, "B _ _ _"]], reference: Float[Tensor, "B _ _ _"] | None, size: Size
    ) -> Float[Tensor, "B 1 _ _"]:
        """Four maps, finest first, and the fused references in the shape of f4 (None: f4 itself), to (B,1,*size)."""
        bottleneck = features[3] if reference is None else reference
        logits: Tensor = self.decoder([*features[:3], bottleneck], size)
        return logits


def make_retrieval_decoder(
    name: str, channels: Sequence[int], coordinate_gate: bool = True, multi_scale: bool = True
) -> nn.Module:
    """The decoder `name` of `RETRIEVAL_DECODERS`; the two switches ablate parts of MCAM.

    Raises:
        ValueError: unknown name.
    """
    if name == "mcam":
        return MCAMDecoder(channels, coordinate_gate, multi_scale)
    if name == "unet":
        return FusedBottleneck(ResidualUNetDecoder(channels))
    if name == "swin-unet":
        return FusedBottleneck(SwinUNetDecoder(channels))
    close = get_close_matches(name, RETRIEVAL_DECODERS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(RETRIEVAL_DECODERS)}"
    raise ValueError(f"unknown retrieval decoder '{name}'; {hint}")
