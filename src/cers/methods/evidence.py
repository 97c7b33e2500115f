"""Which references a query gets: the retrieval strategies of Table 2, and their controls."""

import zlib
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cers.data.case import Batch
from cers.methods.base import Evidence
from cers.methods.reference_size import smallest_size
from cers.retrieval.pool import KnowledgePool
from cers.retrieval.search import cosine_similarity, two_stage_search

Strategy = Literal[
    "none", "image", "cot", "report", "image+report", "image+cot", "random", "shuffled-cot", "shuffled-report"
]


@dataclass(frozen=True)
class Retriever:
    """Two-stage retrieval by `strategy`: `candidates` by the coarse similarity, `k` of them by the fine one.

    `random` draws any allowed cases; `shuffled-cot` and `shuffled-report` are `image+cot` and `image+report` with the
    texts of the pool dealt to the wrong cases. A query without report goes by its rationale, one without rationale by
    its image.
    """

    strategy: Strategy
    candidates: int
    k: int
    exclude_group: bool
    exclude_self: bool = True

    def __call__(
        self, pool: KnowledgePool, batch: Batch, image: Tensor, cot: Tensor | None, *, fresh: bool
    ) -> Evidence:
        """References of B queries from pooled features `image` (B,C) and CoT embeddings `cot` (B,E).

        `fresh` lets the random control draw anew at each call; otherwise its draw depends on the query's id alone.
        """
        by_image = cosine_similarity(image, pool.image)
        by_text = partial(self._text_similarity, pool, batch, cot, by_image)
        coarse, fine = by_image, by_text if "+" in self.strategy or self._shuffled else None
        if self.strategy in ("cot", "report"):
            text = by_text(None)
            coarse = torch.where(text.isnan().all(dim=1, keepdim=True), by_image, text.nan_to_num(nan=-2.0))
        elif self.strategy == "random":
            coarse = _random_scores(batch.ids, by_image, fresh)
        allowed = pool.allowed(
            batch.ids, batch.groups, exclude_group=self.exclude_group, exclude_self=self.exclude_self
        )
        found = two_stage_search(coarse, fine, allowed, candidates=self.candidates, k=self.k)
        candidate_image = by_image.gather(1, found.candidates)
        candidate_text = by_text(found.candidates) if found.fine is None else found.fine
        text = candidate_text.gather(1, found.place)
        return Evidence(
            pool_ids=pool.ids,
            index=found.index,
            valid=found.valid,
            image_similarity=candidate_image.gather(1, found.place),
            text_similarity=text,
            candidates=found.candidates,
            candidates_valid=found.candidates_valid,
            candidate_image_similarity=candidate_image,
            candidate_text_similarity=candidate_text,
            by_report=self._by_report(pool, batch, found.candidates),
            at_least=smallest_size(pool.area[found.index], text, found.valid) if pool.shape.areas else None,
        )

    @property
    def _shuffled(self) -> bool:
        return self.strategy.startswith("shuffled-")

    def _text_similarity(
        self, pool: KnowledgePool, batch: Batch, cot: Tensor | None, like: Tensor, rows: Tensor | None
    ) -> Tensor:
        """Cosine of the strategy's text (B,N), or (B,K) for some rows of the pool; NaN where either side has none."""
        blank = torch.full_like(like if rows is None else like.gather(1, rows), torch.nan)
        deal = self._deal(pool)
        by_cot = _cosine_or(blank, cot, batch.cot_known, pool.cot[deal], pool.cot_known[deal], rows)
        if "report" not in self.strategy:
            return by_cot
        by_report = _cosine_or(
            blank, batch.report, batch.report_known, pool.report[deal], pool.report_known[deal], rows
        )
        return torch.where(by_report.isnan().all(dim=1, keepdim=True), by_cot, by_report)

    def _by_report(self, pool: KnowledgePool, batch: Batch, rows: Tensor) -> Tensor:
        """Which queries (B,) go by their report: those that have one, as has some of their `rows` (B,K) of the pool."""
        if "report" not in self.strategy or batch.report_known is None:
            return torch.zeros(len(batch), dtype=torch.bool, device=rows.device)
        return batch.report_known & pool.report_known[self._deal(pool)][rows].any(dim=1)

    def _deal(self, pool: KnowledgePool) -> Tensor | slice:
        """Whose text each case of the pool is known by: its own, or in a shuffled control another's."""
        return _derangement(len(pool)).to(pool.cot.device) if self._shuffled else slice(None)


def _cosine_or(
    blank: Tensor, query: Tensor | None, known: Tensor | None, entries: Tensor, entry_known: Tensor, rows: Tensor | None
) -> Tensor:
    """Cosine (B,N) of queries and entries of the pool, of its `rows` (B,K) if given; `blank` where either has none."""
    if query is None or known is None or entries.shape[1] == 0:
        return blank
    both = known[:, None] & (entry_known[None] if rows is None else entry_known[rows])
    return torch.where(both, cosine_similarity(query, entries, rows), blank)


def _derangement(n: int) -> Tensor:
    """A fixed permutation of n >= 2 that leaves nothing in its place: one cycle through all in random order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _random_scores(ids: tuple[str, ...], like: Tensor, fresh: bool) -> Tensor:
    if fresh:
        return torch.rand(like.shape, device=like.device)
    rows = [torch.rand(like.shape[1], generator=torch.Generator().manual_seed(zlib.crc32(i.encode()))) for i in ids]
    return torch.stack(rows).to(like.device)
