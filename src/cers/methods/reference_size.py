"""How large a lesion is at least: about as the smallest of its references.

A report often says how large a lesion is, or of what kind, and so how large it will be; a network that doubts outlines
much too little of it, or nothing. Then the place that it holds most likely grows along its own opinion until the size
is reached; a lower threshold for the whole image would bring in look-alikes as well. Where the size is no further off
than by half, the network knows better.
"""

import math
from bisect import bisect_left

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.ndimage import label
from torch import Tensor

STANDS = 0.5  # of the size: an outline that large stays as it is; words and past cases are no rulers
ABOVE = 1e-3  # log-odds that the last of the new pixels gets, so that rounding does not take it away
CORNERS = np.ones((3, 3))
OVERSHOOT = 2.0  # times the wanted pixels: a region that jumps beyond them has run into something else


def smallest_size(
    area: Float[Tensor, "B k"], text_similarity: Float[Tensor, "B k"], valid: Bool[Tensor, "B k"]
) -> Float[Tensor, " B"]:
    """Smallest `area`, a share of the image, among the valid references that were compared by their words; else 0.

    Where nothing was written the image alone decides: it may show no lesion, as none of the references does.
    """
    compared = valid & ~text_similarity.isnan()
    smallest = area.masked_fill(~compared, torch.inf).amin(dim=1)
    return smallest.masked_fill(~compared.any(dim=1), 0.0)


def grown(logits: Float[Tensor, "B 1 H W"], share: Float[Tensor, " B"]) -> Float[Tensor, "B 1 H W"]:
    """`logits` with `share` of the pixels of each image above zero, where less than half as many are.

    The region around the highest logit is raised as a whole; everything else stays as it was. Where it would run into
    something large on its way, it stops before. A few milliseconds for each image that needs it, on the CPU.
    """
    answer = logits.clone()
    wanted, outlined = share * logits[0].numel(), (logits > 0).sum(dim=(1, 2, 3))
    for row in (STANDS * wanted > outlined).nonzero()[:, 0].tolist():
        raised = _raised(logits[row, 0].float().cpu().numpy(), math.ceil(wanted[row]))
        answer[row, 0] = torch.from_numpy(raised).to(answer)
    return answer


def _raised(image: NDArray[np.float32], wanted: int) -> NDArray[np.float32]:
    """`image` (H,W) with the region around its peak raised above zero, down to where `wanted` pixels are."""
    outlined, peak, ranked = image > 0, image.argmax(), np.sort(image, axis=None)[::-1]

    def region(rank: int) -> NDArray[np.bool_]:
        regions, _ = label(image >= ranked[rank], structure=CORNERS)
        around: NDArray[np.bool_] = regions == regions.flat[peak]
        return around

    def size(rank: int) -> int:
        return int((region(rank) | outlined).sum())

    rank = bisect_left(range(image.size), wanted, key=size)
    if size(rank) > OVERSHOOT * wanted:
        rank -= 1
    if rank < 0:  # all that is most likely is too much: nothing tells places apart
        return image
    return np.where(region(rank), image + max(0.0, ABOVE - ranked[rank]), image)
