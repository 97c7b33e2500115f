"""An outline from coarse pointing: what references mark at strides 8 and 16 is carried to the edges of the image.

Random walker (Grady, TPAMI 2006): places that are surely lesion, and surely not, are seeds; every other pixel is what a
walker that avoids edges reaches first.
"""

import torch
from jaxtyping import Bool, Float, Int
from skimage.segmentation import random_walker
from torch import Tensor

SURE_LESION = 0.7  # from this share of an image's highest logit on
SURE_BACKGROUND = -0.5  # up to this logit
PREFERRED = 0.25  # logits by which references prefer one place to another
LESION, BACKGROUND = 1, 2  # seeds; 0 is undecided


def outline(images: Float[Tensor, "B C H W"], pointed: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Probability of lesion along the edges of `images` by the logits `pointed`.

    It is theirs as it was where they mark nothing, or leave nothing to decide. A tenth of a second at 224 px, on the
    CPU.
    """
    outlined = pointed.sigmoid()
    for grey, logits, answer in zip(images.mean(dim=1), pointed[:, 0], outlined[:, 0], strict=True):
        seeds = torch.zeros_like(logits, dtype=torch.int32)
        seeds[logits <= SURE_BACKGROUND] = BACKGROUND
        seeds[logits >= SURE_LESION * logits.max()] = LESION
        if (logits > 0).any() and len(torch.unique(seeds)) == 3:
            answer.copy_(_walked(grey, seeds))
    return outlined


def _walked(image: Float[Tensor, "H W"], seeds: Int[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """Probability that a walker from each pixel reaches a seed of the lesion first."""
    numbers = image.double().cpu().numpy(), seeds.cpu().numpy()
    return torch.from_numpy(random_walker(*numbers, mode="bf", return_full_prob=True)[LESION - 1])


def contradicted(
    probability: Float[Tensor, "B 1 H W"], theirs: Float[Tensor, "B 1 H W"], pointed: Float[Tensor, "B 1 H W"]
) -> Bool[Tensor, " B"]:
    """Whether references prefer the place that they outline (`theirs`) to that which `probability` outlines.

    They do where the mean of their logits `pointed` is higher there by more than PREFERRED, or nothing else is
    outlined.
    """
    there, here = _mean_inside(pointed, theirs), _mean_inside(pointed, probability)
    return (there - here > PREFERRED) | (here.isnan() & ~there.isnan())


def _mean_inside(pointed: Float[Tensor, "B 1 H W"], probability: Float[Tensor, "B 1 H W"]) -> Float[Tensor, " B"]:
    """Mean logit where `probability` is above 0.5; not a number where it nowhere is."""
    outlined = (probability > 0.5).flatten(1)
    return (pointed.flatten(1) * outlined).sum(dim=1) / outlined.sum(dim=1)
