"""Two-stage search: coarse by one similarity, fine by another."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SearchResult:
    """Rows of the pool: `candidates` (B,K) of the coarse stage and `index` (B,k) of the fine one, best first.

    The `valid` tensors of the same shapes are False where fewer cases were allowed; such places repeat row 0.
    """

    index: Int[Tensor, "b k"]
    valid: Bool[Tensor, "b k"]
    candidates: Int[Tensor, "b K"]
    candidates_valid: Bool[Tensor, "b K"]


def cosine_similarity(query: Float[Tensor, "b d"], pool: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
    """Cosine of every query with every pool entry; the entries are of unit length already."""
    with torch.autocast(query.device.type, enabled=False):  # half precision would reorder near neighbours
        return F.normalize(query.float(), dim=-1) @ pool.float().T


def two_stage_search(
    coarse: Float[Tensor, "b n"],
    fine: Float[Tensor, "b n"] | None,
    allowed: Bool[Tensor, "b n"],
    *,
    candidates: int,
    k: int,
) -> SearchResult:
    """The `candidates` allowed rows highest in `coarse`, re-ranked by `fine`; the best `k` are kept (paper, 2.2).

    At least `k` candidates are considered. Exact, without a loop over queries. Ties go to the lower row, that is to the
    smaller id.
    """
    coarse_rows, coarse_valid = _best(coarse, allowed, max(candidates, k) if fine is not None else k)
    if fine is None:
        return SearchResult(coarse_rows, coarse_valid, coarse_rows, coarse_valid)
    # Invalid places repeat row 0: they add nothing there, where writing False would strike out a true candidate.
    kept = torch.zeros_like(allowed, dtype=torch.uint8).scatter_add_(1, coarse_rows, coarse_valid.byte())
    index, valid = _best(fine, kept > 0, k)
    return SearchResult(index, valid, coarse_rows, coarse_valid)


def _best(similarity: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    n = similarity.shape[1]
    key = _sortable(similarity) * n + torch.arange(n - 1, -1, -1, device=similarity.device)
    key = key.masked_fill(~allowed, torch.iinfo(torch.int64).min)
    best = key.topk(min(count, n), dim=1).indices
    valid = allowed.gather(1, best)
    missing = count - best.shape[1]
    best, valid = F.pad(best, (0, missing)), F.pad(valid, (0, missing))
    return best.masked_fill(~valid, 0), valid


def _sortable(values: Tensor) -> Tensor:
    """Integers in the order of the floats, so that similarity and row fit into one exact sorting key."""
    bits = (values.float() + 0.0).contiguous().view(torch.int32)  # +0.0 makes -0.0 equal to 0.0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
