"""Two-stage search: coarse by one similarity, fine by another."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SearchResult:
    """Rows of the pool: `candidates` (B,K) of the coarse stage and `index` (B,k) of the fine one, best first.

    The `valid` tensors of the same shapes are False where fewer cases were allowed; such places repeat row 0. `place`
    (B,k) says which of the candidates each is, and `fine` (B,K) is their fine similarity, None if there was no such
    stage.
    """

    index: Int[Tensor, "b k"]
    valid: Bool[Tensor, "b k"]
    candidates: Int[Tensor, "b K"]
    candidates_valid: Bool[Tensor, "b K"]
    place: Int[Tensor, "b k"]
    fine: Float[Tensor, "b K"] | None


Similarity = Callable[[Int[Tensor, "b K"]], Float[Tensor, "b K"]]


def cosine_similarity(
    query: Float[Tensor, "b d"], pool: Float[Tensor, "n d"], rows: Int[Tensor, "b K"] | None = None
) -> Float[Tensor, "b _"]:
    """Cosine (b,n) of every query with every pool entry, or (b,K) with some `rows` for each query.

    The entries are of unit length already.
    """
    with torch.autocast(query.device.type, enabled=False):  # half precision would reorder near neighbours
        query = F.normalize(query.float(), dim=-1)
        if rows is None:
            return query @ pool.float().T
        # Row by row, so that equal entries have equal similarity wherever they stand.
        chosen = pool.index_select(0, rows.flatten()).view(*rows.shape, -1).float()
        return (query[:, None] * chosen).sum(dim=-1)


def two_stage_search(
    coarse: Float[Tensor, "b n"],
    fine: Similarity | None,
    allowed: Bool[Tensor, "b n"],
    *,
    candidates: int,
    k: int,
) -> SearchResult:
    """The `candidates` allowed rows highest in `coarse`, re-ranked by `fine`; the best `k` are kept (paper, 2.2).

    `fine` gives the similarity of the rows it is asked for: NaN where it cannot be known, which ranks last; a query of
    which nothing is known keeps the coarse order. At least `k` candidates are considered. Exact, without a loop over
    queries. Ties go to the lower row, that is to the smaller id.
    """
    rows, valid = _best(coarse, allowed, max(candidates, k) if fine is not None else k)
    if fine is None:
        place = torch.arange(k, device=rows.device).expand_as(rows)
        return SearchResult(rows, valid, rows, valid, place, None)
    similarity = fine(rows)
    unknown = similarity.isnan() | ~valid
    ranked = torch.where(
        unknown.all(dim=1, keepdim=True), coarse.gather(1, rows), similarity.masked_fill(unknown, -torch.inf)
    )
    by_row = rows.masked_fill(~valid, coarse.shape[1]).argsort(dim=1)  # absent ones last
    ranked = ranked.masked_fill(~valid, -torch.inf).gather(1, by_row)
    place = by_row.gather(1, _descending(ranked)[:, :k])
    return SearchResult(rows.gather(1, place), valid.gather(1, place), rows, valid, place, similarity)


def _best(similarity: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` allowed rows of highest similarity and which of them exist; those that do not are row 0."""
    wanted = min(count, similarity.shape[1])
    values = similarity.float().masked_fill(~allowed, -torch.inf)
    top = values.topk(wanted, dim=1)
    rows = top.indices
    # Which of several equal values topk takes is left open: where the last place is tied, it has to take them all.
    tied = ((values >= top.values[:, -1:]) & allowed).sum(dim=1)
    if (most := max(tied.tolist(), default=0)) > wanted:
        rows = values.topk(most, dim=1).indices
    rows = rows.sort(dim=1).values
    rows = rows.gather(1, _descending(values.gather(1, rows)))[:, :wanted]
    valid = allowed.gather(1, rows)
    missing = count - wanted
    rows, valid = F.pad(rows, (0, missing)), F.pad(valid, (0, missing))
    return rows.masked_fill(~valid, 0), valid


def _descending(values: Tensor) -> Tensor:
    """The order that sorts each row; equal values stay as they stand."""
    return values.argsort(dim=1, descending=True, stable=True)
