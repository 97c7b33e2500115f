"""Text embeddings of a set of cases, ready to be put into batches."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from cers.data.case import Case
from cers.text.base import TextEncoder
from cers.text.cache import EmbeddingCache
from cers.text.sides import mirrored_words

View = tuple[str, bool]  # a case, mirrored or not


class TextTable:
    """The embedded reports and rationales of `cases`, looked up by case id.

    `render` turns a stored rationale into the text to embed (its four aspects) and raises ValueError on a malformed
    one, which then counts as unknown. Mask-informed rationales are read for the ids in `labelled` only: those of any
    other case would carry its hidden mask into the pool. An encoder that is None leaves its fields out of the batch.
    With `cot_states` rationales also come as tokens, for upper layers that train; with `mirrors` every text is there in
    the words of the mirrored image too.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        report: TextEncoder | None,
        cot: TextEncoder | None,
        render: Callable[[str], str],
        cache_folder: Path,
        labelled: Collection[str],
        cot_states: bool = False,
        mirrors: bool = False,
    ) -> None:
        self._views = {(c.id, mirrored) for c in cases for mirrored in {False, mirrors}}
        self.report_width = None if report is None else report.width
        self.cot_width = None if cot is None else cot.width
        self._cot_states = cot_states
        if report is not None:
            reports = {c.id: c.report for c in cases if c.report and c.report.strip()}
            self._report = _Column(reports, EmbeddingCache(cache_folder, report), report.width, mirrors)
        if cot is not None:
            known = set(labelled)
            free = _rendered(render, ((c.id, c.rationale) for c in cases))
            informed = _rendered(render, ((c.id, c.mask_rationale) for c in cases if c.id in known))
            cache = EmbeddingCache(cache_folder, cot, tokens=cot_states)
            self._cot = _Column(free, cache, cot.width, mirrors)
            self._mask_cot = _Column(informed, cache, cot.width, mirrors)

    def fields(self, ids: Sequence[str], mirrored: Sequence[bool] | None = None) -> dict[str, Tensor]:
        """The text fields of a `Batch` of the cases `ids`, float32 and bool (see `cers.data.case.Batch`).

        Raises:
            KeyError: an id is not that of a case of the table, or mirrored in a table without `mirrors`.
        """
        views = list(zip(ids, mirrored or [False] * len(ids), strict=True))
        for view in views:
            if view not in self._views:
                raise KeyError(view)
        fields: dict[str, Tensor] = {}
        if self.report_width is not None:
            fields["report_tokens"], fields["report_padding"] = self._report.tokens(views)
            fields["report"], fields["report_known"] = self._report.pooled(views)
        if self.cot_width is not None:
            fields["cot"], fields["cot_known"] = self._cot.pooled(views)
            fields["mask_cot"], fields["mask_cot_known"] = self._mask_cot.pooled(views)
            if self._cot_states:
                fields["cot_tokens"], fields["cot_padding"] = self._cot.tokens(views)
                fields["mask_cot_tokens"], fields["mask_cot_padding"] = self._mask_cot.tokens(views)
        return fields


def _rendered(render: Callable[[str], str], rationales: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    texts = {}
    for case_id, rationale in rationales:
        with suppress(ValueError):
            if rationale and rationale.strip():
                texts[case_id] = render(rationale)
    return texts


class _Column:
    """One kind of text: features of its distinct texts, and which text each view has: a case, mirrored or not.

    A text in which the encoder knows no word (zero `pooled`) counts as unknown.
    """

    def __init__(self, texts: Mapping[str, str], cache: EmbeddingCache, width: int, mirrors: bool) -> None:
        told = {(case_id, False): text for case_id, text in texts.items()}
        if mirrors:
            told |= {(case_id, True): mirrored_words(text) for case_id, text in texts.items()}
        features = {text: f for text, f in cache.features(told.values()).items() if f.pooled.any()}
        row = {text: i for i, text in enumerate(features)}
        self._rows = {view: row[text] for view, text in told.items() if text in row}
        self._tokens = [torch.from_numpy(f.tokens.copy()) for f in features.values()]
        # The last row is what a case without text gets.
        self._pooled = torch.zeros(len(features) + 1, width)
        for i, f in enumerate(features.values()):
            self._pooled[i] = torch.from_numpy(f.pooled.copy())

    def pooled(self, views: Sequence[View]) -> tuple[Tensor, Tensor]:
        """Pooled vectors (B,D), zero where unknown, and known (B,)."""
        rows = torch.tensor([self._rows.get(view, -1) for view in views], dtype=torch.long)
        return self._pooled[rows], rows >= 0

    def tokens(self, views: Sequence[View]) -> tuple[Tensor, Tensor]:
        """Token vectors (B,L,D) padded to the longest text, L >= 1, and padding (B,L), True where there is none."""
        rows = [self._rows.get(view) for view in views]
        lengths = [0 if row is None else len(self._tokens[row]) for row in rows]
        tokens = torch.zeros(len(views), max(1, *lengths), self._pooled.shape[1])
        for b, row in enumerate(rows):
            if row is not None:
                tokens[b, : lengths[b]] = self._tokens[row]
        return tokens, torch.arange(tokens.shape[1]) >= torch.tensor(lengths)[:, None]
