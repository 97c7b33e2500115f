"""What can be said of a set of rationales from their words alone: flaws, copies, vocabulary, agreement of the roles."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from cers.cot.rationale import ASPECTS, MAX_TOKENS, Rationale, audit_rationale, render, tokens
from cers.cot.records import ROLES, Role
from cers.cot.texts import Written, repeats

NEARLY = 0.8
"""Share of three-word sequences in common from which on two texts are nearly the same."""

_BLOCK = 512
_WORDS = r"(?u)\b\w+\b"


@dataclass(frozen=True)
class Flaw:
    """One thing wrong with one text; `kind` groups them, `detail` says the rest.

    `other` is the image whose text this one nearly is, where that is what is wrong.
    """

    image: str
    role: Role
    where: str
    kind: str
    detail: str = ""
    other: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def find_flaws(texts: Sequence[Written], reports: Mapping[str, str]) -> list[Flaw]:
    """Flaws of single texts, and second texts for an image, in the order of `texts`; malformed ones first of each."""
    again = repeats(texts)
    flaws = []
    for i, text in enumerate(texts):
        found = audit_rationale(text.text, reports.get(text.image))
        found += [f"second text: {again[i]}"] if i in again else []
        flaws += [_flaw(text, line) for line in found]
    return flaws


def near_identical(
    rationales: Mapping[str, Rationale], alike: Collection[frozenset[str]] = ()
) -> list[tuple[str, str, float]]:
    """Each image whose text another image has nearly as well: (image, the other, share in common), the worst first.

    The share is the Jaccard index of the two sets of three-word sequences, at least `NEARLY`. Images in one set of
    `alike` may be described alike.
    """
    images = list(rationales)
    if len(images) < 2:
        return []
    code = {image: i for i, group in enumerate(alike) for image in group}
    groups = np.array([code.get(image, -1 - i) for i, image in enumerate(images)])
    shingles = _sets([render(r) for r in rationales.values()], ngrams=3)
    sizes = np.asarray(shingles.sum(axis=1)).ravel()
    found = []
    for start in range(0, len(images), _BLOCK):
        rows = slice(start, start + _BLOCK)
        common = (shingles[rows] @ shingles.T).toarray()
        share = common / np.maximum(sizes[rows, None] + sizes - common, 1)
        share[groups[rows, None] == groups] = 0
        best = share.argmax(axis=1)
        values = share[np.arange(len(best)), best]
        found += [(images[start + i], images[best[i]], float(values[i])) for i in np.flatnonzero(values >= NEARLY)]
    return sorted(found, key=lambda item: (-item[2], item[0]))


def vocabulary(rationales: Mapping[str, Rationale]) -> dict[str, Any]:
    """How rich the wording of a set is, fit for JSON.

    `tokens` (words and marks; 5th percentile, median, 95th) and how many are `over_long`; `distinct_texts`; `words`
    used at all and `rare_words` used for less than 1 % of the images; `common_share`, the share of a text's words that
    at least half of all texts use; and the `most_common` openings, the first three words of an aspect, with the share
    of the images they open.
    """
    rendered = [render(r) for r in rationales.values()]
    if not rendered:
        return {"texts": 0}
    lengths = np.array([tokens(text) for text in rendered])
    words = _sets(rendered)
    used_by = np.asarray(words.sum(axis=0)).ravel()
    common = words @ (used_by >= 0.5 * len(rendered)) / np.asarray(words.sum(axis=1)).ravel()
    openings = Counter(
        f"{name.capitalize()}: {' '.join(getattr(rationale, name).split()[:3])} …"
        for rationale in rationales.values()
        for name in ASPECTS
    )
    return {
        "texts": len(rendered),
        "distinct_texts": len(set(rendered)),
        "tokens": {name: float(np.percentile(lengths, q)) for name, q in (("p5", 5), ("median", 50), ("p95", 95))},
        "over_long": int((lengths > MAX_TOKENS).sum()),
        "words": len(used_by),
        "rare_words": int((used_by < 0.01 * len(rendered)).sum()),
        "common_share": float(common.mean()),
        "most_common": [[text, count / len(rendered)] for text, count in openings.most_common(5)],
    }


def agreement(
    first: Mapping[str, Rationale], second: Mapping[str, Rationale]
) -> dict[str, tuple[NDArray[np.float64], float]]:
    """Per aspect, and for "all": how many words the two rationales of an image share, and two of different images.

    The Jaccard index of the sets of words, per image in both mappings in the order of `first`, and its exact mean
    over all pairs of different images.
    """
    images = [image for image in first if image in second]
    if not images:
        return {}
    result = {}
    for name in ("all", *ASPECTS):
        ours = [render(first[i]) if name == "all" else getattr(first[i], name) for i in images]
        theirs = [render(second[i]) if name == "all" else getattr(second[i], name) for i in images]
        result[name] = _jaccard(_sets(ours + theirs), len(images))
    return result


def _jaccard(words: csr_matrix, n: int) -> tuple[NDArray[np.float64], float]:
    """The index of rows i and n+i for each i, and its mean over all pairs i, n+j with i != j (NaN for one image)."""
    sizes = np.asarray(words.sum(axis=1)).ravel()
    own, total = [], 0.0
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        common = (words[rows] @ words[n:].T).toarray()
        share = common / np.maximum(sizes[rows, None] + sizes[n:] - common, 1)
        own.append(share[rows - start, rows])
        total += float(share.sum())
    mine = np.concatenate(own)
    return mine, (total - float(mine.sum())) / (n * (n - 1)) if n > 1 else float("nan")


def _sets(texts: Sequence[str], ngrams: int = 1) -> csr_matrix:
    """Which words, or sequences of `ngrams` words, each text uses: (N, terms) of 0 and 1."""
    vectorizer = CountVectorizer(ngram_range=(ngrams, ngrams), token_pattern=_WORDS, binary=True, dtype=np.float32)
    try:
        return csr_matrix(vectorizer.fit_transform(texts))
    except ValueError:  # no text has so many words
        return csr_matrix((len(texts), 1), dtype=np.float32)


def _flaw(text: Written, line: str) -> Flaw:
    kind, _, detail = line.partition(": ")
    return Flaw(text.image, text.role, text.where, kind, detail)


def count_flaws(flaws: Sequence[Flaw]) -> dict[str, dict[str, int]]:
    """By kind and role how many texts have it, malformed ones first, then the most frequent."""
    counts = Counter((flaw.kind, flaw.role) for flaw in flaws)
    table: dict[str, dict[str, int]] = {
        kind: {role: counts[kind, role] for role in ROLES} for kind in {flaw.kind for flaw in flaws}
    }
    return dict(sorted(table.items(), key=lambda item: (item[0] != "malformed", -sum(item[1].values()), item[0])))
