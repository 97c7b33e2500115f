"""Where retrieved cases had their lesion: prototypes under their masks, and a query's similarity to them.

After few-shot segmentation by masked pooling (PANet, arXiv 1908.06391) and its prior maps (PFENet, arXiv 2008.01449).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

SCALES = slice(-3, -1)  # the maps at strides 8 and 16: fine enough to point, deep enough to mean something


def mask_prototypes(
    features: Sequence[Float[Tensor, "B _ _ _"]], masks: Float[Tensor, "B 1 _ _"]
) -> Float[Tensor, "B 2 D"]:
    """Mean feature of lesion and of background, of unit length, at both scales side by side; 0 for an absent one."""
    scales = []
    for feature in features[SCALES]:
        lesion = F.adaptive_avg_pool2d(masks, (feature.shape[2], feature.shape[3]))
        weights = torch.cat([lesion, 1 - lesion], dim=1).flatten(2)
        scales.append(F.normalize(weights @ feature.float().flatten(2).mT, dim=-1))
    return torch.cat(scales, dim=-1)


class MaskPrior(nn.Module):
    """Tells the maps at strides 8 and 16 how much more each place resembles the references' lesions than the rest.

    `cos(f, lesion) - cos(f, background)`, its mean and its maximum over the references, enter each map by a 1x1
    convolution that starts at zero.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(channels[SCALES])
        self.enter = nn.ModuleList(_silent(nn.Conv2d(2, width, 1)) for width in self.widths)

    def forward(
        self,
        features: Sequence[Float[Tensor, "B _ _ _"]],
        maps: Sequence[Float[Tensor, "B _ _ _"]],
        prototypes: Float[Tensor, "B k 2 D"],
        valid: Bool[Tensor, "B k"],
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """`maps`, finest first, with what the `valid` references say about `features` added to two of them.

        A reference without lesion says nothing, nor does an image without reference hear anything.
        """
        told = list(maps)
        scales = torch.split(prototypes.float(), self.widths, dim=-1)
        places = range(len(told))[SCALES]
        for place, enter, scale in zip(places, self.enter, scales, strict=True):
            said = _margin(features[place], scale, valid)
            told[place] = told[place] + enter(said.to(told[place].dtype))
        return told


def _margin(
    feature: Float[Tensor, "B C H W"], prototypes: Float[Tensor, "B k 2 C"], valid: Bool[Tensor, "B k"]
) -> Float[Tensor, "B 2 H W"]:
    """Mean and maximum over the valid references of cos(lesion) - cos(background); 0 without any."""
    pixels = F.normalize(feature.float().flatten(2), dim=1)
    margin = torch.einsum("bkc,bcp->bkp", prototypes[:, :, 0] - prototypes[:, :, 1], pixels)
    known = (valid & prototypes[:, :, 0].any(dim=-1))[..., None]
    mean = margin.masked_fill(~known, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)
    highest = margin.masked_fill(~known, -torch.inf).amax(dim=1).masked_fill(~known.any(dim=1), 0.0)
    return torch.stack([mean, highest], dim=1).reshape(-1, 2, *feature.shape[2:])


def _silent(conv: nn.Conv2d) -> nn.Conv2d:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
