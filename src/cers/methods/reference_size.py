"""How large a lesion is at least: as the smallest of the references whose words agree with those of the query.

A report often says how large a lesion is, or of what kind, and so how large it will be; a network that doubts outlines
too little of it, or nothing. Raising all log-odds of an image alike keeps its opinion of where, and gives up that of
how much.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

AGREEING = 0.7  # cosine of two texts from which on they are about the same; below it a size says nothing
ABOVE = 1e-3  # log-odds: what the last of the raised pixels gets, so that rounding does not take it away


def smallest_size(
    area: Float[Tensor, "B k"], text_similarity: Float[Tensor, "B k"], valid: Bool[Tensor, "B k"]
) -> Float[Tensor, " B"]:
    """Smallest `area`, a share of the image, among the valid references whose text agrees; 0 where none does."""
    agrees = valid & (text_similarity >= AGREEING)  # false where a text is unknown, which is NaN
    smallest = area.masked_fill(~agrees, torch.inf).amin(dim=1)
    return smallest.masked_fill(~agrees.any(dim=1), 0.0)


def raised(logits: Float[Tensor, "B 1 H W"], share: Float[Tensor, " B"]) -> Float[Tensor, "B 1 H W"]:
    """`logits` raised by a constant for each image until `share` of its pixels are above zero, if fewer are.

    Where that would bring in more than twice as many, being equal, nothing tells them apart and all stay as they are.
    """
    flat = logits.float().flatten(1)
    wanted = (share * flat.shape[1]).ceil().long()
    last = flat.sort(dim=1, descending=True).values.gather(1, (wanted - 1).clamp(min=0)[:, None])
    coming = (flat >= last).sum(dim=1)
    lift = (ABOVE - last[:, 0]).clamp(min=0).masked_fill((wanted == 0) | (coming > 2 * wanted), 0.0)
    return logits + lift[:, None, None, None]
