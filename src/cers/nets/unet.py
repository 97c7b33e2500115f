"""The network that the methods share, so that only the learning rule differs."""

from jaxtyping import Float
from torch import Tensor, nn

from cers.nets.decoders import ResidualUNetDecoder
from cers.nets.encoder import PyramidEncoder


class UNet(nn.Module):
    """Encoder E and base decoder D_S: 34,480,393 parameters with ConvNeXt-T."""

    def __init__(self, encoder: PyramidEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = ResidualUNetDecoder(encoder.channels)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """Images to logits."""
        logits: Tensor = self.decoder(self.encoder(images), (images.shape[2], images.shape[3]))
        return logits
