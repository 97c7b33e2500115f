"""Where retrieved cases had their lesion: prototypes under their masks, and a query's similarity to them.

After few-shot segmentation by masked pooling (PANet, arXiv 1908.06391) and its prior maps (PFENet, arXiv 2008.01449).
A reference also remembers its look-alike, the place outside its mask that most resembles its lesion: what the lesion
differs from is what a query must be told.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cers.nets.layers import Size, upsample

SCALES = slice(-3, -1)  # the maps at strides 8 and 16: fine enough to point, deep enough to mean something
TEMPERATURE = 0.1  # a margin of cosines over this is a logit
LIKENESS = 0.02  # temperature of the search for the look-alike: low, so that it is one place and no average


def mask_prototypes(
    features: Sequence[Float[Tensor, "B _ _ _"]], masks: Float[Tensor, "B 1 _ _"]
) -> Float[Tensor, "B 3 D"]:
    """Mean feature of lesion, background and look-alike, of unit length, at both scales side by side; 0 if absent."""
    with torch.autocast(masks.device.type, enabled=False):  # half a digit of a cosine is much at these temperatures
        return torch.cat([_prototypes(feature.float(), masks.float()) for feature in features[SCALES]], dim=-1)


def _prototypes(feature: Float[Tensor, "B C _ _"], masks: Float[Tensor, "B 1 _ _"]) -> Float[Tensor, "B 3 C"]:
    lesion = F.adaptive_avg_pool2d(masks, (feature.shape[2], feature.shape[3])).flatten(2)
    places = feature.flatten(2).mT
    means = F.normalize(torch.cat([lesion, 1 - lesion], dim=1) @ places, dim=-1)
    likeness = means[:, :1] @ F.normalize(places, dim=-1).mT
    weights = (likeness / LIKENESS).masked_fill(lesion > 0, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    look_alike = F.normalize(weights @ places, dim=-1) * lesion.any(dim=2, keepdim=True)
    return torch.cat([means, look_alike], dim=1)


class MaskPrior(nn.Module):
    """Tells the maps at strides 8 and 16 how much more each place resembles the references' lesions than all else.

    A reference says `(cos(f, lesion) - max(cos(f, background), cos(f, look-alike))) / 0.1`; mean and maximum over the
    references enter each map by a 1x1 convolution that starts at zero.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(channels[SCALES])
        self.enter = nn.ModuleList(_silent(nn.Conv2d(2, width, 1)) for width in self.widths)

    def margins(
        self,
        features: Sequence[Float[Tensor, "B _ _ _"]],
        prototypes: Float[Tensor, "B k 3 D"],
        valid: Bool[Tensor, "B k"],
    ) -> list[Float[Tensor, "B 2 _ _"]]:
        """Mean and maximum of what the `valid` references say about `features`, at either scale.

        A reference without lesion says nothing; 0 where none says anything.
        """
        scales = torch.split(prototypes.float(), self.widths, dim=-1)
        return [_margin(f, scale, valid) / TEMPERATURE for f, scale in zip(features[SCALES], scales, strict=True)]

    def forward(
        self, maps: Sequence[Float[Tensor, "B _ _ _"]], margins: Sequence[Float[Tensor, "B 2 _ _"]]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """`maps`, finest first, with the margins added to two of them."""
        told = list(maps)
        for place, enter, said in zip(range(len(told))[SCALES], self.enter, margins, strict=True):
            told[place] = told[place] + enter(said.to(told[place].dtype))
        return told


def pointed(margins: Sequence[Float[Tensor, "B 2 _ _"]], size: Size) -> Float[Tensor, "B 1 _ _"]:
    """What the references say by themselves, as logits (B,1,*size): the mean margin, over both scales."""
    return torch.stack([upsample(margin[:, :1], size) for margin in margins]).mean(dim=0)


def _margin(
    feature: Float[Tensor, "B C H W"], prototypes: Float[Tensor, "B k 3 C"], valid: Bool[Tensor, "B k"]
) -> Float[Tensor, "B 2 H W"]:
    """Mean and maximum over the valid references of cos(lesion) - max(cos(background), cos(look-alike))."""
    pixels = F.normalize(feature.float().flatten(2), dim=1)
    with torch.autocast(feature.device.type, enabled=False):
        cosine = torch.einsum("bknc,bcp->bknp", prototypes, pixels)
    margin = cosine[:, :, 0] - cosine[:, :, 1:].amax(dim=2)
    known = (valid & prototypes[:, :, 0].any(dim=-1))[..., None]
    mean = margin.masked_fill(~known, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)
    highest = margin.masked_fill(~known, -torch.inf).amax(dim=1).masked_fill(~known.any(dim=1), 0.0)
    return torch.stack([mean, highest], dim=1).reshape(-1, 2, *feature.shape[2:])


def _silent(conv: nn.Conv2d) -> nn.Conv2d:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
