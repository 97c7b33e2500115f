"""The authors' stage-2 step, built from our parts, and how far it has come towards ours.

The program's cost is as the methods' description of it has it: a retrieval pass of its own with gradient and the report
model for nothing (its R11), both language models in every step with full padding, search over flattened maps (R8), the
two streams one after the other, decoders that enlarge first.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from cers.bench import plain_decoders
from cers.bench.scene import Words
from cers.data.case import Batch, SemiBatch
from cers.losses import dice_ce, sharpened_consistency
from cers.methods.cers import CERS
from cers.nets.mcam import MCAMDecoder
from cers.retrieval.search import cosine_similarity, two_stage_search
from cers.schedules import sigmoid_ramp


@dataclass(frozen=True)
class Way:
    """Which of the authors' habits are left; the defaults are all of them.

    `query`: where the retrieval query comes from: a full pass with or without gradient, an encoder pass, or the
    training pass itself. `reports`: padded to 128 tokens or to the longest of the batch, or read from the cache.
    """

    query: Literal["graph", "no-grad", "encoder", "reused"] = "graph"
    cached_cot: bool = False
    reports: Literal["padded", "batch", "cached"] = "padded"
    one_forward: bool = False
    pooled: bool = False


class AuthorsStep(nn.Module):
    """The loss of one stage-2 step (Eq. 7) on the networks of `method`, computed in a given way.

    `report_model` is trained, `cot_model` frozen; each may be None for a way that does not run it.
    """

    def __init__(self, method: CERS, way: Way, report_model: nn.Module | None, cot_model: nn.Module | None) -> None:
        super().__init__()
        self.method = method
        self.way = way
        self.report_model = report_model if way.reports != "cached" else None
        self.cot_model = None if way.cached_cot or cot_model is None else cot_model.eval().requires_grad_(False)
        # The authors keep what they retrieve, and search, as full-precision maps.
        self.maps = None if way.pooled else method.pool.tokens.float().flatten(1)

    def forward(self, batch: SemiBatch, words: Words, fraction: float) -> Tensor:
        """The loss at `fraction` of the ramp; `words` are the texts of labelled, then unlabelled images."""
        n = len(batch.labelled)
        if self.way.one_forward or batch.unlabelled is None:
            retrieval, base = self._branches(batch.joined(), words)
        else:
            first = self._branches(batch.labelled, words.part(slice(0, n)))
            second = self._branches(batch.unlabelled, words.part(slice(n, None)))
            retrieval, base = (torch.cat(pair) for pair in zip(first, second, strict=True))
        masks = batch.labelled.required_masks
        settings = self.method.settings
        consistency = sharpened_consistency(retrieval[n:], base[n:], settings.temperature)
        weight = settings.consistency * sigmoid_ramp(fraction)
        return dice_ce(retrieval[:n], masks) + dice_ce(base[:n], masks) + weight * consistency

    def _branches(self, batch: Batch, words: Words) -> tuple[Tensor, Tensor]:
        """Logits of the retrieval and of the base decoder, in the plain way."""
        method = self.method
        query = self.query(batch, words)
        features = method.encoder(batch.images)
        attended = self._attended(features, batch, words)
        references, valid = self._references(batch, words, features[-1] if query is None else query)
        assert method.fusion is not None
        fused, _ = method.fusion(features[-1], references, valid)
        assert isinstance(method.retrieval_decoder, MCAMDecoder)
        base = plain_decoders.unet(method.base_decoder, attended, batch.size)
        return plain_decoders.mcam(method.retrieval_decoder, attended, fused, batch.size), base

    def query(self, batch: Batch, words: Words) -> Tensor | None:
        """The last features (B,C,h,w) of a pass of its own, None if there is none."""
        if self.way.query == "reused":
            return None
        with torch.set_grad_enabled(self.way.query == "graph"):
            features = self.method.encoder(batch.images)
            if self.way.query != "encoder":
                self._attended(features, batch, words)
        query: Tensor = features[-1]
        return query

    def _attended(self, features: list[Tensor], batch: Batch, words: Words) -> list[Tensor]:
        assert self.method.report_attention is not None
        tokens, padding = batch.report_tokens, batch.report_padding
        if self.report_model is not None:
            tokens, padding = read(self.report_model, self._padded(words.reports))
        attended: list[Tensor] = self.method.report_attention(features, tokens, padding)
        return attended

    def _padded(self, reports: Tensor) -> Tensor:
        return reports if self.way.reports == "padded" else shortened(reports)

    @torch.no_grad()
    def cot(self, batch: Batch, words: Words) -> Tensor:
        """The projected rationales (B,E)."""
        embedded = batch.cot if self.cot_model is None else read(self.cot_model, words.cots)[0][:, 0]
        assert self.method.alignment.cot_projection is not None
        projected: Tensor = self.method.alignment.cot_projection(embedded)
        return projected

    @torch.no_grad()
    def _references(self, batch: Batch, words: Words, query: Tensor) -> tuple[Tensor, Tensor]:
        """Token grids (B,k,T,C) of what is retrieved, and which of them count."""
        method, pool = self.method, self.method.pool
        cot = self.cot(batch, words)
        if self.maps is None:
            found = method.retriever(pool, batch, query.mean(dim=(2, 3)), cot, fresh=method.training)
            return pool.tokens[found.index], found.valid
        flat = pool.summarise(query)[1].flatten(1)
        result = two_stage_search(
            -torch.cdist(flat, self.maps),
            partial(cosine_similarity, cot, pool.cot),
            pool.allowed(batch.ids, batch.groups, exclude_group=method.settings.exclude_group),
            candidates=method.settings.candidates,
            k=method.settings.k,
        )
        return self.maps[result.index].reshape(*result.index.shape, *pool.tokens.shape[1:]), result.valid


def read(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States (B,L,D) of texts (B,L), and where there is no word (B,L)."""
    padding = ids == 0
    states: Tensor = model(input_ids=ids, attention_mask=(~padding).long()).last_hidden_state
    return states, padding


def shortened(ids: Tensor) -> Tensor:
    """The texts (B,L) without the columns that none of them reaches."""
    return ids[:, : int((ids != 0).sum(dim=1).max())]
